"""Reading NRRD and MetaImage (.nrrd, .nhdr, .mha, .mhd) through SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ScanError
from pipeline.formats.foreign import REPLACE
from pipeline.formats.itk_header import read_itk_header
from pipeline.formats.printable import printable
from pipeline.formats.scan import Scan

__all__ = ["ITK_ENDINGS", "read_itk"]

ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_itk(path: Path) -> Scan:
    """Read a FLAIR volume whose format ITK knows; its spacing is in mm, or unknown where the file has none.

    Args:
        path: The file; of .nhdr and .mhd the header, beside which the data lie.

    Returns:
        Image ``(1, I, J, K)``; the affine is RAS+, ITK's own being LPS+.

    Raises:
        ScanError: If the file is missing, damaged, or not one real-valued 3D volume of finite, varying intensities.
    """
    name, header = printable(path), read_itk_header(path)
    import SimpleITK

    sitk: Any = SimpleITK  # published with a marker of types, but without most of them
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if len(size) != 3 or min(size) < 2 or reader.GetNumberOfComponents() != 1:
            parts = f"shape {tuple(size)} of {reader.GetNumberOfComponents()} values a voxel"
            raise ScanError(f"{name}: expected one 3D volume of at least 2 voxels a side, got {parts}")
        reader.SetOutputPixelType(sitk.sitkFloat32)
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        reason = (str(error).strip().splitlines() or ["not enough memory"])[-1]
        raise ScanError(f"{name}: expected a volume that ITK can read: {reason}") from error
    volume = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    low, high = float(volume.min()), float(volume.max())
    if not np.isfinite([low, high]).all():
        raise ScanError(f"{name}: expected finite intensities, got NaN or infinite ones; {REPLACE}")
    if low == high:
        raise ScanError(f"{name}: expected intensities that vary, got {low:g} in every voxel")
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    # Not ITK's own: of directions that are no unit vectors it keeps the lengths apart.
    first, second, third = np.linalg.norm(lps[:3, :3], axis=0).tolist()
    spacing = (first, second, third) if header.has_spacing else None
    return Scan(volume[None], RAS_FROM_LPS @ lps, spacing, str(path))
