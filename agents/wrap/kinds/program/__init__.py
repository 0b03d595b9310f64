"""A program that is kept running."""

from .kind import Program

__all__ = ["Program"]
