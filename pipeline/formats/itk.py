"""Reading NRRD and MetaImage (.nrrd, .nhdr, .mha, .mhd) through SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ScanError
from pipeline.formats.nifti_header import printable
from pipeline.formats.scan import Scan

__all__ = ["ITK_ENDINGS", "read_itk"]

ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
MAX_VOXELS = 2**29  # 2 GiB as float32: more than any scan, less than a header that lies may ask for
RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_itk(path: Path) -> Scan:
    """Read a FLAIR volume whose format ITK knows; its spacing is always in mm.

    Args:
        path: The file; of .nhdr and .mhd the header, beside which the data lie.

    Returns:
        Image ``(1, I, J, K)``; the affine is RAS+, ITK's own being LPS+.

    Raises:
        ScanError: If the file is missing, damaged, or not one real-valued 3D volume of finite, varying intensities.
    """
    import SimpleITK

    sitk: Any = SimpleITK  # published with a marker of types, but without most of them
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    name = printable(path)
    if not path.is_file():
        raise ScanError(f"{name}: expected a file, got no such file")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if len(size) != 3 or min(size) < 2 or reader.GetNumberOfComponents() != 1:
            parts = f"shape {tuple(size)} of {reader.GetNumberOfComponents()} values a voxel"
            raise ScanError(f"{name}: expected one 3D volume of at least 2 voxels a side, got {parts}")
        if np.prod(size, dtype=float) > MAX_VOXELS:
            raise ScanError(f"{name}: expected at most {MAX_VOXELS:,} voxels, got shape {tuple(size)}")
        reader.SetOutputPixelType(sitk.sitkFloat32)
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        reason = (str(error).strip().splitlines() or ["not enough memory"])[-1]
        raise ScanError(f"{name}: expected a volume that ITK can read: {reason}") from error
    volume = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    low, high = float(volume.min()), float(volume.max())
    if not np.isfinite([low, high]).all():
        raise ScanError(f"{name}: expected finite intensities, got NaN or infinite ones")
    if low == high:
        raise ScanError(f"{name}: expected intensities that vary, got {low:g} in every voxel")
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    first, second, third = (float(edge) for edge in image.GetSpacing())
    return Scan(volume[None], RAS_FROM_LPS @ lps, (first, second, third), str(path))
