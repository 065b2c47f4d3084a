"""NIfTI files that are wrong in one place, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import pytest

from pipeline.errors import ScanError
from pipeline.formats.nifti import read_scan


@pytest.fixture
def edit_header() -> Callable[..., Path]:
    """Overwrite header fields of an uncompressed NIfTI-1 file, sane or not."""

    def edit(path: Path, **fields: object) -> Path:
        content = path.read_bytes()
        header = nib.Nifti1Header(content[:348], check=False)
        for name, value in fields.items():
            header[name] = value
        path.write_bytes(header.binaryblock + content[348:])
        return path

    return edit


@pytest.fixture
def refusal() -> Callable[..., str]:
    """Have a scan refused; the message is one line and names a file."""

    def refuse(path: Path, **others: Path) -> str:
        with pytest.raises(ScanError) as caught:
            read_scan(path, **others)
        message = str(caught.value)
        assert "\n" not in message
        assert path.name in message or any(other.name in message for other in others.values())
        return message

    return refuse
