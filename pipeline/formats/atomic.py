"""Files that are either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import AR2UNetError
from pipeline.formats.printable import printable

__all__ = ["atomic_write"]


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only once it is complete.

    The bytes go to a hidden file in the same folder, are flushed to the disk, and the
    file is then renamed over ``path`` in one step. Whatever goes wrong before that
    leaves ``path`` as it was and nothing else behind.

    Args:
        path: The final name; its folder must exist.

    Yields:
        The open binary file.

    Raises:
        AR2UNetError: If the folder or the disk does not take the file.
    """
    # Not tempfile: that would leave the finished file readable by its owner only. And always the same
    # name: what a killed process leaves behind is overwritten by the next, and never piles up.
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
            except BaseException:  # an interrupt, too, leaves nothing behind
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise AR2UNetError(f"{printable(path)}: cannot be written: {error.strerror or error}") from error
