"""Taking a file that is sent, without ever holding it in memory."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from pipeline.web.refusals import Refusal

__all__ = ["receive_file"]

BUFFER_BYTES = 2**20  # written at once
STALL_SECONDS = 60.0  # without a byte


@asynccontextmanager
async def receive_file(request: Request, folder: Path, limit: int) -> AsyncIterator[tuple[Path, int]]:
    """Write a request's body to a file, as it comes.

    Args:
        request: Its body is the file.
        folder: Where it goes, under a random, hidden name.
        limit: The most bytes that are taken; a body that declares more is refused before it is read.

    Yields:
        The file and its size. It is removed at the end unless it has been renamed.

    Raises:
        Refusal: If it is too large, too slow, or breaks off; if there is no space left.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit, int(declared))
    path = folder / f".{secrets.token_hex(8)}.upload"
    try:
        try:
            size = await _write_body(request, path, limit)
        except ClientDisconnect as error:
            raise Refusal("disconnected", "expected the whole file, got a connection that broke off") from error
        except TimeoutError as error:
            raise Refusal("too_slow", f"expected the file, got nothing for {STALL_SECONDS:g} s") from error
        except FileNotFoundError as error:  # cancelled or deleted meanwhile
            raise Refusal("wrong_state", "the job takes no more files") from error
        except OSError as error:
            raise Refusal("storage_full", "there is no space left for the file") from error
        yield path, size
    finally:
        await run_in_threadpool(path.unlink, missing_ok=True)


async def _write_body(request: Request, path: Path, limit: int) -> int:
    size, buffer = 0, bytearray()
    chunks = request.stream()
    file = await run_in_threadpool(path.open, "xb")
    try:
        while True:
            async with asyncio.timeout(STALL_SECONDS):
                chunk = await anext(chunks, b"")
            buffer += chunk
            size += len(chunk)
            if size > limit:
                raise _too_large(limit, size)
            if len(buffer) >= BUFFER_BYTES or (buffer and not chunk):
                await run_in_threadpool(file.write, bytes(buffer))
                buffer.clear()
            if not chunk:
                return size
    finally:
        await run_in_threadpool(file.close)


def _too_large(limit: int, size: int) -> Refusal:
    return Refusal("too_large", f"expected at most {limit:,} bytes, got {size:,} or more")
