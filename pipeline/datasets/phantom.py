"""A phantom head whose lesion is known: the embedded sample, and how it was made.

The demonstration segments the files in ``pipeline/sample``; :func:`load_sample` finds
them and imports nothing heavy. :func:`make_phantom` builds them from the ICBM152 tissue
maps that nilearn carries, so nilearn is needed only to make the sample again:

    python -m pipeline.datasets.phantom OUT
"""

from __future__ import annotations

import gzip
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import AR2UNetError, DatasetError
from pipeline.formats.atomic import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Phantom", "SamplePaths", "load_sample", "make_phantom", "write_phantom"]

SEED = 152


@dataclass(frozen=True)
class Phantom:
    """A phantom head on one scan grid: three sequences and the lesion that is in them.

    The arrays are ``(I, J, K)``; ``affine`` takes voxels to RAS+ mm.
    """

    t1: NDArray[np.int16]
    flair: NDArray[np.int16]
    t1c: NDArray[np.int16]
    truth: NDArray[np.uint8]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class SamplePaths:
    """The files of the embedded sample."""

    t1: Path
    flair: Path
    t1c: Path
    truth: Path


def load_sample() -> SamplePaths:
    """Find the embedded sample.

    Returns:
        The paths of the four files; they exist.

    Raises:
        DatasetError: If a file of the sample is missing from the installation.
    """
    paths = _sample_paths(Path(str(files("pipeline").joinpath("sample"))))
    for path in (paths.t1, paths.flair, paths.t1c, paths.truth):
        if not path.is_file():
            raise DatasetError(f"the embedded sample must hold {path.name}, but {path} does not exist")
    return paths


def write_phantom(folder: Path) -> SamplePaths:
    """Make the phantom and write it as the four NIfTI files of the embedded sample.

    The same versions of NumPy, SciPy and zlib write the same bytes.

    Args:
        folder: Where to write; created if need be, files of the same names replaced.

    Returns:
        The paths of the files written.

    Raises:
        DatasetError: If nilearn is not installed, or ``folder`` cannot be a folder.
        AR2UNetError: If a file cannot be written.
    """
    phantom = make_phantom()
    paths = _sample_paths(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be made a folder for the phantom: {error.strerror or error}") from error
    for name in ("t1", "flair", "t1c", "truth"):
        with atomic_write(getattr(paths, name)) as file:
            file.write(_nifti_bytes(getattr(phantom, name), phantom.affine))
    return paths


def make_phantom(seed: int = SEED) -> Phantom:
    """Make a head with a lesion of known shape, seen by three MR sequences.

    The brain is the ICBM152 average (Fonov et al. 2011, "Unbiased average age-appropriate
    atlases for pediatric studies"), warped so that it is nobody's and not symmetric; skull,
    scalp, face and lesion are drawn around and into it. The lesion is on the right.

    Args:
        seed: Of every random choice: warp, lesion outline, bias field, noise.

    Returns:
        The scan, axial and oblique, stored left-anterior-superior (LAS). ``truth`` is 1
        where more than half of a voxel is lesion.

    Raises:
        DatasetError: If nilearn is not installed.
    """
    import numpy as np

    from pipeline.datasets.phantom_head import acquire, average_slices, draw_head, scan_affine, scan_coordinates

    rng = np.random.default_rng(seed)
    head, lesion = draw_head(rng)
    affine = scan_affine()
    coordinates = scan_coordinates(affine)
    truth = (average_slices(lesion, coordinates) > 0.5).astype(np.uint8)
    images = [acquire(rng, average_slices(signal, coordinates)) for signal in head]
    return Phantom(images[0], images[1], images[2], truth, affine)


def _sample_paths(folder: Path) -> SamplePaths:
    return SamplePaths(
        t1=folder / "sub-phantom_T1w.nii.gz",
        flair=folder / "sub-phantom_FLAIR.nii.gz",
        t1c=folder / "sub-phantom_ce-gadolinium_T1w.nii.gz",
        truth=folder / "sub-phantom_label-lesion_mask.nii.gz",
    )


def _nifti_bytes(voxels: NDArray[Any], affine: NDArray[np.float64]) -> bytes:
    """Encode as ``.nii.gz`` without a time stamp or file name, so equal images are equal bytes."""
    import nibabel as nib

    make_image: Any = nib.Nifti1Image  # nibabel's methods carry no types
    image = make_image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    content: bytes = image.to_bytes()
    return gzip.compress(content, compresslevel=9, mtime=0)


def _main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write(f"usage: python -m pipeline.datasets.phantom OUT, got {len(arguments)} arguments\n")
        return AR2UNetError.exit_code
    try:
        paths = write_phantom(Path(arguments[0]))
    except AR2UNetError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"wrote {paths.flair} and the three files beside it\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
