"""Tests that need a program of the system: left out, and named, where it is not."""

from __future__ import annotations

import shutil

import pytest

from .conftest import MISSING


def needs(*programs: str) -> pytest.MarkDecorator:
    """Mark tests that need these programs."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{MISSING} {', '.join(missing)}")
