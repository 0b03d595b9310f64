"""Jobs: calls that were accepted, are kept on disk, and are seen through to an end."""
