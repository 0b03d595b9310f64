"""A talk with a service in lines."""

from .kind import Tcp

__all__ = ["Tcp"]
