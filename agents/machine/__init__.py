"""The machine itself as an agent: what it is, how it is, and what may be done to it."""

from .agent import make

__all__ = ["make"]
