"""protocols/vectors, as the tests read them."""

from __future__ import annotations

import pytest

from spinal.conform.vectors import FOLDER, Case, cases, text_of

__all__ = ["FOLDER", "Case", "cases", "each", "text_of"]


def each(file: str, kind: str | None = None) -> pytest.MarkDecorator:
    """Run a test with each case of a file, or of one kind in it."""
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=case["name"].encode("unicode_escape").decode())
            for case in cases(file)
            if kind is None or case["kind"] == kind
        ],
    )
