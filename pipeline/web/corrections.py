"""Masks that a person corrected: checked against the model's mask, and kept with who says so."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import AR2UNetError, ScanError
from pipeline.formats.atomic import atomic_write
from pipeline.formats.nifti_header import Layout, check_same_grid, open_nifti, printable, read_layout
from pipeline.web.refusals import Refusal

__all__ = ["AUTHOR", "CorrectedMask", "model_of", "read_correction", "save_correction"]

AUTHOR = "corrected in the web page"
DESCRIPTION = b"FLAIR abnormality mask, corrected in the web page"
MAX_TRAILING_BYTES = 2**20  # read behind the data in search of gzip's checksum


@dataclass(frozen=True, eq=False)
class CorrectedMask:
    """A mask that fits.

    Attributes:
        layout: Of the model's mask, on whose grid it lies.
        values: ``(K, J, I)``, uint8, as the file has them.
    """

    layout: Layout
    values: NDArray[np.uint8]

    @property
    def lesion_voxels(self) -> int:
        """How many voxels it marks."""
        return int(np.count_nonzero(self.values))


def read_correction(path: Path, model_mask: Path) -> CorrectedMask:
    """Read a corrected mask; never more of it than the model's mask has voxels.

    Args:
        path: What was sent.
        model_mask: The job's own mask.

    Raises:
        Refusal: If it is no NIfTI file of uint8 zeros and ones on the same grid.
    """
    try:
        layout, grid = read_layout(path), read_layout(model_mask)
        check_same_grid(layout, grid)
        if layout.dtype != np.uint8 or (layout.slope, layout.intercept) != (1.0, 0.0):
            scaled = "" if (layout.slope, layout.intercept) == (1.0, 0.0) else ", scaled"
            raise ScanError(f"{printable(path)}: expected uint8 without scaling, got {layout.dtype.name}{scaled}")
        values = np.empty(tuple(reversed(layout.spatial_shape)), np.uint8)
        with open_nifti(path) as file:
            file.seek(layout.offset)
            for k, plane in enumerate(values):
                content = file.read(plane.size)
                if len(content) != plane.size:
                    got = f"a file that ends in slice {k + 1}"
                    raise ScanError(f"{printable(path)}: expected {len(values)} slices, got {got}")
                plane[...] = np.frombuffer(content, np.uint8).reshape(plane.shape)
            file.read(MAX_TRAILING_BYTES)  # only at its end does gzip find out whether all is well
        if values.max() > 1:
            raise ScanError(f"{printable(path)}: expected a mask of 0 and 1, got values up to {values.max()}")
    except ScanError as error:
        message = str(error).replace(printable(path), "the corrected mask")
        raise Refusal("bad_mask", message.replace(printable(model_mask), "the job's mask")) from error
    return CorrectedMask(grid, values)


@contextmanager
def save_correction(mask: CorrectedMask, folder: Path, number: int, provenance: dict[str, Any]) -> Iterator[int]:
    """Write a corrected mask with the geometry of the model's, bit by bit, and beside it its provenance.

    Args:
        mask: What was read.
        folder: Made where missing.
        number: Of the correction; neither file may be there.
        provenance: What is known of it, for JSON.

    Yields:
        The bytes of both files; an exception that comes takes the files away again.

    Raises:
        Refusal: If there is no space left.
    """
    header = mask.layout.header.copy()
    header["descrip"] = DESCRIPTION
    header["vox_offset"] = header.sizeof_hdr + 4
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as file:
        file.write(header.binaryblock + bytes(4))
        file.write(mask.values.tobytes())
    text = json.dumps(
        {
            "mask": f"{number:04d}_mask.nii.gz",
            "author": AUTHOR,
            "saved": datetime.now(UTC).isoformat(timespec="seconds"),
            "lesion_voxels": mask.lesion_voxels,
            **provenance,
        },
        indent=2,
    )
    contents = {f"{number:04d}_mask.nii.gz": packed.getvalue(), f"{number:04d}.json": text.encode() + b"\n"}
    try:
        folder.mkdir(exist_ok=True)
        for name, content in contents.items():
            with atomic_write(folder / name) as file:
                file.write(content)
        yield sum(len(content) for content in contents.values())
    except (OSError, AR2UNetError, sqlite3.Error) as error:
        for name in contents:
            (folder / name).unlink(missing_ok=True)
        raise Refusal("storage_full", "there is no space left for the corrected mask") from error


def model_of(results: Path, about: Mapping[str, str]) -> dict[str, object]:
    """Return which model made a job's mask: its report knows; where that cannot be read, the one that serves.

    Args:
        results: The job's folder of results.
        about: What the worker says of itself.
    """
    try:
        report = json.loads((results / "report.json").read_bytes())
        return {"bundle": report["bundle"], "weights_sha256": report["weights_sha256"], "engine": report["engine"]}
    except (OSError, ValueError, KeyError):
        return {"weights_sha256": about.get("weights_sha256")}
