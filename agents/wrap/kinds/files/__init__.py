"""Files that come into a folder, and files that are put there."""

from .kind import Files

__all__ = ["Files"]
