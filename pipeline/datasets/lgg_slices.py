"""One patient of the LGG FLAIR data: the publisher's slices, stacked to volumes.

A patient's folder holds ``<patient>_<k>.tif`` (RGB: before contrast, FLAIR, after contrast) and
``<patient>_<k>_mask.tif`` (0 or 255), k counting from 1 at the skull base upwards. There is no voxel spacing in them.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import DatasetError
from pipeline.formats.foreign import AGAIN
from pipeline.formats.printable import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LAYOUT", "LggPatient", "list_slices", "read_lgg_patient"]

LAYOUT = (
    "kaggle_3m holds one folder a patient, such as TCGA_CS_4941_19960909, with slices TCGA_CS_4941_19960909_1.tif "
    "and masks TCGA_CS_4941_19960909_1_mask.tif"
)
FILE = re.compile(r"(?P<patient>.+?)_(?P<number>\d+)(?P<mask>_mask)?\.tiff?", re.IGNORECASE | re.DOTALL)
# The publisher's are 256 x 256. Where no spacing is known nothing makes a slice smaller, and the network's memory
# grows with its pixels.
MAX_PIXELS = 2**20  # of one slice
MAX_NAMES = 3  # patients in a line
APART = "give each a folder of its own"
BITS_PER_SAMPLE = 258  # a TIFF's tag


@dataclass(frozen=True)
class LggPatient:
    """One patient as volumes.

    Attributes:
        patient: The name the files begin with, such as ``TCGA_CS_4941_19960909``.
        volume: uint8 ``(3, I, J, K)``, channels t1, flair, t1c. I are the columns, towards the patient's left; J the
            rows, towards posterior; K the slices, towards superior.
        label: uint8 ``(I, J, K)``, 1 in the FLAIR abnormality, else 0; None if masks were not asked for.
        affine: Voxel to RAS+, ``(4, 4)``. Its unit is the voxel: spacing is unknown.
    """

    patient: str
    volume: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    affine: NDArray[np.float64]


def read_lgg_patient(folder: Path, *, with_mask: bool = True) -> LggPatient:
    """Stack the slices of one patient's folder, in the order of their numbers.

    Args:
        folder: Holds ``<patient>_<k>.tif`` and ``<patient>_<k>_mask.tif``, k from 1 without a gap.
        with_mask: Whether to read the masks as well. Without, masks may be missing and are not looked at.

    Returns:
        The patient's volumes.

    Raises:
        DatasetError: Naming patient and slice, if the folder has no slices, if a slice or mask is missing, unreadable,
            of another size or kind than expected, or if a mask has values other than 0 and 255.
    """
    import numpy as np

    from pipeline.formats.nifti_header import MAX_VOXELS

    patient, slices, masks = find_slices(folder)
    if with_mask:
        check_masks(patient, slices, masks)
    volume: NDArray[np.uint8] | None = None
    label: NDArray[np.uint8] | None = None
    for number, path in slices.items():
        pixels = read_tiff(path, "RGB", f"{patient}, slice {number}")
        if volume is None:
            rows, columns = pixels.shape[:2]
            if len(slices) * rows * columns > MAX_VOXELS:
                received = f"{len(slices)} slices of {columns}x{rows}"
                raise DatasetError(f"{patient}: expected at most {MAX_VOXELS:,} voxels, got {received}")
            # Allocated slice by slice and seen as (I, J, K), so that both TIFF and NIfTI order are contiguous.
            volume = np.empty((3, len(slices), rows, columns), np.uint8)
            label = np.zeros(volume.shape[1:], np.uint8) if with_mask else None
        check_size(pixels, volume.shape[2:], f"{patient}, slice {number}: the slice", "the first slice")
        volume[:, number - 1] = np.moveaxis(pixels, -1, 0)
        if label is not None:
            label[number - 1] = read_mask(masks[number], volume.shape[2:], f"{patient}, slice {number}")
    if volume is None:  # find_slices has refused an empty folder already
        raise DatasetError(f"{patient}: no slices in {folder}")
    # Columns run to the patient's left and rows to posterior, both against RAS+; slices run upwards.
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    return LggPatient(
        patient, volume.transpose(0, 3, 2, 1), None if label is None else label.transpose(2, 1, 0), affine
    )


def find_slices(folder: Path) -> tuple[str, dict[int, Path], dict[int, Path]]:
    """Find a folder's slices and masks by number, ascending, and the name that all of them begin with."""
    slices: dict[int, Path] = {}
    masks: dict[int, Path] = {}
    listed = list_slices(folder)
    name = printable(folder.name)
    patients = {match["patient"] for _, match in listed}
    if len(patients) > 1:
        some = ", ".join(printable(patient) for patient in sorted(patients)[:MAX_NAMES])
        more = "" if len(patients) <= MAX_NAMES else f" and {len(patients) - MAX_NAMES} more"
        raise DatasetError(f"{name}: expected one patient's slices, found those of {some}{more}; {APART}")
    for path, match in listed:
        found, number = masks if match["mask"] else slices, int(match["number"])
        if number in found:
            both = f"{printable(found[number].name)} and {printable(path.name)}"
            raise DatasetError(f"{name}, slice {number}: both {both} claim it; take one away")
        found[number] = path
    if not slices:
        raise DatasetError(f"{name}: no slices named <patient>_<number>.tif in {printable(folder)}; {LAYOUT}")
    patient = printable(patients.pop())
    if 0 in slices:
        raise DatasetError(f"{patient}, slice 0: slices are numbered from 1, found {printable(slices[0].name)}")
    missing = next(number for number in range(1, len(slices) + 2) if number not in slices)
    if missing <= len(slices):
        raise DatasetError(
            f"{patient}, slice {missing}: missing; slices must run from 1 to {max(slices)} without a gap"
        )
    return patient, dict(sorted(slices.items())), masks


def list_slices(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    """List a folder's slices and masks, sorted by name, each with what its name says; hidden files are no slices."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DatasetError(f"{printable(folder)}: cannot list the folder: {error.strerror}; {LAYOUT}") from error
    found = ((path, FILE.fullmatch(path.name)) for path in paths if not path.name.startswith("."))
    return [(path, match) for path, match in found if match is not None]


def check_masks(patient: str, slices: dict[int, Path], masks: dict[int, Path]) -> None:
    """Refuse a slice without a mask, and a mask without a slice."""
    for number in slices:
        if number not in masks:
            raise DatasetError(
                f"{patient}, slice {number}: its mask {printable(slices[number].stem)}_mask.tif is missing"
            )
    for number in sorted(masks):
        if number not in slices:
            raise DatasetError(
                f"{patient}, slice {number}: there is a mask, {printable(masks[number].name)}, but no slice"
            )


def check_size(pixels: NDArray[np.uint8], expected: tuple[int, ...], what: str, like: str) -> None:
    """Refuse pixels ``(rows, columns, ...)`` of another size than ``expected``, given as rows, columns."""
    if pixels.shape[:2] != expected:
        rows, columns = pixels.shape[:2]
        raise DatasetError(f"{what} is {columns}x{rows} pixels, expected {expected[1]}x{expected[0]} as {like}")


def read_mask(path: Path, size: tuple[int, ...], where: str) -> NDArray[np.uint8]:
    """Read a mask of ``size`` (rows, columns) as 0 and 1."""
    import numpy as np

    pixels = read_tiff(path, "L", f"{where}: its mask")
    check_size(pixels, size, f"{where}: its mask", "the slice")
    lesion = pixels == 255
    odd = pixels[~lesion & (pixels != 0)]
    if odd.size:
        raise DatasetError(f"{where}: its mask has the value {odd[0]} in {path.name}, expected 0 and 255 only")
    mask: NDArray[np.uint8] = lesion.astype(np.uint8)
    return mask


def read_tiff(path: Path, mode: str, where: str) -> NDArray[np.uint8]:
    """Read a TIFF's pixels ``(rows, columns)`` or ``(rows, columns, 3)``, and refuse any other mode."""
    import numpy as np
    from PIL import Image

    name = printable(path.name)
    if not path.is_file():  # opening a named pipe would wait for ever
        raise DatasetError(f"{where}: cannot read {name}: expected a file, got none, a folder or a pipe")
    try:
        with warnings.catch_warnings():
            # Pillow only warns of some files that end too early.
            warnings.simplefilter("error")
            with path.open("rb") as file, Image.open(file, formats=["TIFF"]) as image:
                size, bits = image.size, set(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,)))
                # Of 16 bits Pillow would keep the upper 8 and call it RGB all the same.
                found = image.mode if bits == {8} or image.mode != mode else f"{image.mode} of {max(bits)} bits"
                fits = found == mode and size[0] * size[1] <= MAX_PIXELS
                pixels: NDArray[np.uint8] = np.asarray(image if fits else [])
    except MemoryError:
        raise
    # Damaged tags surface as KeyError, TypeError, struct.error and others: all mean that the file is not readable.
    except Exception as error:
        reason = (
            f"got none ({type(error).__name__})"
            if "cannot identify" in str(error)
            else printable(str(error)).rstrip(".")
        )
        raise DatasetError(f"{where}: cannot read {name} as TIFF: {reason}; {AGAIN}") from error
    if found != mode:
        expected = {"RGB": "8-bit RGB", "L": "8-bit grey"}[mode]
        raise DatasetError(f"{where}: {name} has pixels of kind {found}, expected {expected}")
    if not fits:
        raise DatasetError(f"{where}: {name} is {size[0]}x{size[1]} pixels, expected at most {MAX_PIXELS:,} in all")
    return pixels
