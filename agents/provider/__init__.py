"""Machines of one vendor's account, as operations on the bus."""

from .agent import assemble, make

__all__ = ["assemble", "make"]
