"""Statements to a database."""

from .kind import Sql

__all__ = ["Sql"]
