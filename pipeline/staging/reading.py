"""The door for staging: one T1 slice or a T1 volume, of any axis order, comes out as slices in the training frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ScanError
from pipeline.formats.printable import printable
from pipeline.staging.frame import COLUMNS, EXPECTED, ROWS, SLICES
from pipeline.staging.pictures import PICTURE_STARTS, read_picture

if TYPE_CHECKING:
    from pipeline.formats.scan import Scan

__all__ = ["ENDINGS", "T1Slices", "read_slices", "stage_name"]

ENDINGS = (".nii.gz", ".nii", ".png", ".jpeg", ".jpg", ".dcm", ".ima", ".nrrd", ".nhdr", ".mha", ".mhd")
SPACING_TOLERANCE = 0.02  # mm; headers in float32 and averages over a series are off by less
NIFTI_STARTS = (
    b"\x1f\x8b",
    b"\x5c\x01\0\0",
    b"\0\0\x01\x5c",
    b"\x1c\x02\0\0",
    b"\0\0\x02\x1c",
)  # gzip, or header sizes


@dataclass(frozen=True, eq=False)
class T1Slices:
    """What was read, in the training slices' frame.

    Attributes:
        slices: Raw intensities ``(N, rows, columns)``, float32: rows run to posterior, columns to the patient's
            right, slices upwards. N is 1 for a single slice, else at least ``SLICES``.
        color: As in ``Picture``.
        sides_known: Whether the file states which side is left.
        source: Where it was read from.
        notes: What was decided on the way, a line each.
    """

    slices: NDArray[np.float32]
    color: float
    sides_known: bool
    source: Path
    notes: tuple[str, ...] = ()

    @property
    def is_single(self) -> bool:
        """Whether it is one slice and no volume."""
        return len(self.slices) == 1


def stage_name(path: Path) -> str:
    """Return a file's name for its results, without its ending."""
    for ending in ENDINGS:
        name = path.name[: -len(ending)]
        if path.name.lower().endswith(ending) and name not in ("", ".", ".."):
            return name
    return path.name


def read_slices(path: Path) -> T1Slices:
    """Read one slice (PNG, JPEG, NIfTI, DICOM) or a volume (NIfTI, NRRD, MetaImage).

    Raises:
        ScanError: If it cannot be read, or is not of the training slices' size and spacing.
    """
    start = _read_start(path)
    if any(start.startswith(magic) for magic in PICTURE_STARTS):
        picture = read_picture(path)
        return T1Slices(picture.pixels[None], picture.color, False, path, picture.notes)
    if start[128:132] == b"DICM":
        return _read_dicom(path)
    if start.startswith(NIFTI_STARTS):
        return _read_nifti(path)
    if path.name.lower().endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
        from pipeline.formats.itk import read_itk

        return _from_scan(read_itk(path), path)
    from pipeline.formats.foreign import START_BYTES, describe_content

    received = "an empty file" if not start else describe_content(start[:START_BYTES])
    raise ScanError(f"{printable(path)}: expected {EXPECTED}, as PNG, JPEG, NIfTI or DICOM; got {received}")


def _read_start(path: Path) -> bytes:
    from pipeline.formats.foreign import START_BYTES

    name = printable(path)
    try:
        if path.is_dir():
            raise ScanError(f"{name}: expected one file, got a folder; name the slice or the volume in it")
        if path.exists() and not path.is_file():  # opening a named pipe would wait for ever
            raise ScanError(f"{name}: expected a file, got a device or pipe; save it as a file")
        with path.open("rb") as file:
            return file.read(START_BYTES)
    except FileNotFoundError as error:
        raise ScanError(f"{name}: expected a T1 slice or volume, got no such file; check the path") from error
    except (OSError, ValueError) as error:
        raise ScanError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _read_nifti(path: Path) -> T1Slices:
    """Read a volume, or a single slice, whose file has two axes or one of length 1."""
    from pipeline.formats.nifti import read_scan
    from pipeline.formats.nifti_header import read_layout

    single = _read_flat_nifti(path)
    if single is not None:
        return single
    shape = read_layout(path).spatial_shape
    if not {ROWS, COLUMNS} <= set(shape):  # before all of it is read
        raise _refuse(path, shape)
    return _from_scan(read_scan(path), path)


def _read_flat_nifti(path: Path) -> T1Slices | None:
    """Read a NIfTI file of one slice; None where it has more of them, or is for ``read_scan`` to refuse."""
    import nibabel

    try:
        image: Any = nibabel.load(path)
        shape = tuple(size for size in image.shape if size > 1)
        if len(shape) != 2 or len(image.shape) > 3:
            return None
        if sorted(shape) != [COLUMNS, ROWS]:
            raise _refuse(path, image.shape)
        values = np.asarray(image.dataobj, dtype=np.float32).reshape((*image.shape, 1)[:3])
        affine = np.asarray(image.affine, dtype=np.float64)
        unit, coded = image.header.get_xyzt_units()[0], bool(image.header["sform_code"] or image.header["qform_code"])
    except ScanError:
        raise
    except Exception:  # whatever is wrong with it, the reader of volumes has a line for it
        return None
    if not np.isfinite(values).all() or values.min() == values.max():
        raise ScanError(f"{printable(path)}: expected finite pixels that vary, got {_describe(values)}")
    # The thickness of a single slice does not matter.
    edges = [edge for edge, size in zip(_edges(affine), values.shape, strict=True) if size > 1]
    slices = _orient(values, affine, path, None if unit == "unknown" else edges)
    return T1Slices(slices, 0.0, coded and unit != "unknown", path)


def _describe(values: NDArray[np.float32]) -> str:
    return f"{values.flat[0]:g} in every pixel" if np.isfinite(values).all() else "NaN or infinite ones"


def _read_dicom(path: Path) -> T1Slices:
    """Read one DICOM slice; series in the atlas frame do not come as DICOM."""
    from pipeline.formats.dicom.files import open_files
    from pipeline.formats.dicom.headers import quiet_pydicom, read_headers
    from pipeline.formats.dicom.pixels import read_volume
    from pipeline.formats.dicom.planes import list_planes

    quiet_pydicom()
    name = printable(path)
    with open_files(path) as files:
        headers, damaged = read_headers(files)
        if damaged or not headers:
            raise ScanError(f"{name}: expected a DICOM image: {damaged[0] if damaged else 'got no pixels'}")
        try:
            planes = list_planes(headers)
            if len(planes) != 1 or sorted(planes[0].shape) != [COLUMNS, ROWS]:
                raise _refuse(path, (*reversed(planes[0].shape), len(planes)))
            volume, _ = read_volume(planes)
        except ScanError as error:
            raise error if str(error).startswith(name) else ScanError(f"{name}: {error}") from error
    plane = planes[0]
    rightwards, downwards = plane.directions
    affine = np.eye(4)
    affine[:3, :3] = np.stack([rightwards, downwards, np.cross(rightwards, downwards)], axis=1)
    affine[:2] *= -1  # DICOM's axes lead to left and posterior
    return T1Slices(_orient(volume, affine, path, plane.pixel_spacing), 0.0, True, path)


def _from_scan(scan: Scan, path: Path) -> T1Slices:
    from pipeline.measurement.laterality import is_orientation_stated

    slices = _orient(scan.image[0], scan.affine, path, scan.spacing)
    # A header without spacing was written by somebody who did not know the scanner's axes either.
    return T1Slices(slices, 0.0, scan.spacing is not None and is_orientation_stated(scan), path)


def _orient(
    volume: NDArray[np.float32], affine: NDArray[np.float64], path: Path, spacing: Sequence[float] | None
) -> NDArray[np.float32]:
    """Return ``(I, J, K)`` as ``(slice, row, column)`` of the training frame, or refuse its size and spacing."""
    from nibabel import orientations

    nibabel: Any = orientations  # published without types
    turn = nibabel.ornt_transform(nibabel.io_orientation(affine), nibabel.axcodes2ornt(("R", "P", "S")))
    oriented: NDArray[np.float32] = nibabel.apply_orientation(volume, turn)
    columns, rows, count = oriented.shape
    if (columns, rows) != (COLUMNS, ROWS) or (count != 1 and count < SLICES):
        raise _refuse(path, oriented.shape, " across, from front to back and upwards")
    if spacing is not None and max(abs(edge - 1) for edge in spacing) > SPACING_TOLERANCE:
        sizes = " x ".join(f"{edge:g}" for edge in spacing)
        raise ScanError(f"{printable(path)}: expected {EXPECTED}; got voxels of {sizes} mm")
    return np.ascontiguousarray(oriented.transpose(2, 1, 0))


def _edges(affine: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())


def _refuse(path: Path, shape: tuple[int, ...], axes: str = "") -> ScanError:
    sizes = "x".join(str(size) for size in shape)
    return ScanError(f"{printable(path)}: expected {EXPECTED}; got {sizes} voxels{axes}")
