"""What a request is refused with: a status, and one line."""

from __future__ import annotations

from typing import NoReturn

from fastapi import HTTPException

__all__ = ["BAD_GATEWAY", "FAILED", "NOT_ALLOWED", "NOT_FOUND", "UNPROCESSABLE", "refuse"]

NOT_FOUND, NOT_ALLOWED, UNPROCESSABLE, FAILED, BAD_GATEWAY = 404, 405, 422, 500, 502


def refuse(status: int, reason: str) -> NoReturn:
    """Answer the request with a status and its reason."""
    raise HTTPException(status_code=status, detail=reason)
