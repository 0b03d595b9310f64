"""A request to an HTTP service for each call."""

from .kind import Http

__all__ = ["Http"]
