"""A program that is run once for each call."""

from .kind import Command

__all__ = ["Command"]
