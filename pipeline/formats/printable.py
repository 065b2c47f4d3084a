"""Paths as a message shows them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["printable"]


def printable(path: Path | str) -> str:
    """Return a path on one line that every terminal takes, whatever characters it holds."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))
