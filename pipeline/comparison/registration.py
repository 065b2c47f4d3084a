"""Rigid registration of a patient's later visit onto the earlier one.

Inside of ITK, and in the transform's file, places are LPS+ mm; the matrix of a ``Registration`` is RAS+, as every
affine of this project.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ScanError
from pipeline.formats.atomic import atomic_write
from pipeline.formats.scan import Scan

__all__ = ["Registration", "assume_aligned", "register", "resample", "write_transform"]

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
LEVELS_MM = (8.0, 4.0, 2.0)  # a fine level alone would be caught in the optimum next to where it starts
BINS = 32  # of the joint histogram, each side
MAX_SAMPLES = 150_000  # a level; more took longer and came no nearer
MAX_STEPS = 300
FIRST_STEP, LAST_STEP = (
    2.0,
    0.001,
)  # mm of the voxel that moves most; stopping at 0.01 cost 1 mm where heads are cut off
SEED = 1
DECIMALS = 6  # of mm and radians that are kept: threads add up in another order every time, which shows in the 13th
OVERLAP_MARGIN = 0.15  # by which the heads may overlap less than in the best of the coarse registrations
OUTSIDE = -1e30  # what no intensity is

# Measured after registration: the heads of different patients correlate by 0.34 at most (13 pairs of 2D FLAIR); one
# scan turned, moved and resampled by 0.92 at least, and with 6 mm slices, noise, another contrast and a bias field by
# 0.81.
# The overlap of the heads does not tell patients apart (0.75 to 0.89), only body parts: bright coils make it 0.62.
MIN_CORRELATION = 0.5
MIN_HEAD_OVERLAP = 0.5
MAX_ROTATION = 45.0  # degrees; in a head coil nobody lies turned as far


@dataclass(frozen=True, eq=False)
class Registration:
    """Where the places of the earlier visit lie in the later one, and how well they fit.

    Attributes:
        matrix: ``(4, 4)``, from the earlier visit to the later, RAS+ mm.
        rotation_degrees: Angle of its rotation.
        translation_mm: How far it moves the middle of the earlier visit's volume.
        mutual_information: Mattes et al. 2003, in nats, of the finest level; None where nothing was registered.
        correlation: Of the intensities inside of both heads, -1 to 1.
        head_overlap: Dice of the two heads, as far as both scans reach, 0 to 1.
        warnings: Why it is doubtful, a sentence each; empty where it is not.
    """

    matrix: NDArray[np.float64]
    rotation_degrees: float
    translation_mm: float
    mutual_information: float | None
    correlation: float
    head_overlap: float
    warnings: tuple[str, ...]

    @property
    def is_doubtful(self) -> bool:
        """Whether it is not to be relied on."""
        return bool(self.warnings)


def register(before: Scan, after: Scan) -> Registration:
    """Find the rotation and translation that bring the later visit onto the earlier one.

    Mattes mutual information of the FLAIR at 8, 4 and 2 mm, started from the scanner coordinates, from the middles
    of both volumes and from their centres of mass: what fits best at 8 mm is refined. The same scans give the same
    result: samples are drawn with a fixed seed, and results are rounded far below what they are worth.

    Args:
        before: Earlier visit.
        after: Later visit.

    Raises:
        ScanError: If a spacing is unknown, or if the two have nothing in common.
    """
    for scan in (before, after):
        if scan.spacing is None:
            raise ScanError(f"{scan.source}: expected a known voxel spacing, without which nothing can be registered")
    fixed, moving = _to_itk(before.flair, before.affine), _to_itk(after.flair, after.affine)
    coarse = [_align(fixed, moving, LEVELS_MM[0], start) for start in _starts(fixed, moving)]
    best = _choose(fixed, moving, [each for each in coarse if each is not None])
    for size in LEVELS_MM[1:]:
        best = None if best is None else _align(fixed, moving, size, best[0])
    if best is None:
        raise ScanError(f"{after.source}: cannot be registered onto {before.source}: their volumes do not fit together")
    transform, metric = best
    return _judge(before, after, _matrix_of(transform), -metric)


def assume_aligned(before: Scan, after: Scan) -> Registration:
    """Take two scans on one grid for registered already; what speaks against it is in the warnings.

    Raises:
        ValueError: If their shapes differ.
    """
    if before.spatial_shape != after.spatial_shape:
        raise ValueError(f"scans must have one shape, got {before.spatial_shape} and {after.spatial_shape}")
    # Voxel for voxel, whatever either affine says.
    return _judge(before, after, after.affine @ np.linalg.inv(before.affine), None)


def resample(
    volume: NDArray[np.generic],
    affine: NDArray[np.float64],
    grid: Scan,
    matrix: NDArray[np.float64],
    *,
    outside: float = 0.0,
) -> NDArray[np.float32]:
    """Resample a volume of the later visit onto the grid of the earlier one, linearly.

    Args:
        volume: ``(I, J, K)``.
        affine: Of the volume, voxel to RAS+ mm.
        grid: The earlier visit.
        matrix: Of the registration.
        outside: Value of voxels that the volume does not reach.

    Returns:
        ``(I, J, K)`` on the grid of ``grid``.
    """
    sitk = _sitk()
    lps = LPS_FROM_RAS @ matrix @ LPS_FROM_RAS
    transform = sitk.AffineTransform(lps[:3, :3].ravel().tolist(), lps[:3, 3].tolist())
    origin, spacing, direction = _geometry(grid.affine)
    moved: NDArray[np.float32] = sitk.GetArrayFromImage(
        sitk.Resample(
            _to_itk(volume, affine),
            grid.spatial_shape,
            transform,
            sitk.sitkLinear,
            origin,
            spacing,
            direction,
            outside,
            sitk.sitkFloat32,
        )
    )
    return moved.transpose(2, 1, 0)


def write_transform(registration: Registration, path: Path) -> None:
    """Write a registration as ITK transform file, from the earlier visit to the later, LPS+ mm.

    With it ITK, and what is built on it, resamples the later visit onto the earlier one's grid.

    Args:
        registration: What is written.
        path: Ends in .tfm.

    Raises:
        AR2UNetError: If the file cannot be written.
    """
    sitk = _sitk()
    lps = LPS_FROM_RAS @ registration.matrix @ LPS_FROM_RAS
    transform = sitk.Euler3DTransform()
    transform.SetMatrix(lps[:3, :3].ravel().tolist(), 1e-6)
    transform.SetTranslation(lps[:3, 3].tolist())
    with TemporaryDirectory() as folder:  # ITK wants a name of its own to write to
        written = Path(folder) / "transform.tfm"
        sitk.WriteTransform(transform, str(written))
        content = written.read_bytes()
    with atomic_write(path) as file:
        file.write(content)


def _sitk() -> Any:
    import SimpleITK

    sitk: Any = SimpleITK  # published with a marker of types, but without most of them
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk


def _geometry(affine: NDArray[np.float64]) -> tuple[list[float], list[float], list[float]]:
    """Return origin, spacing and direction, row by row, in LPS+."""
    lps = LPS_FROM_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return lps[:3, 3].tolist(), spacing.tolist(), (lps[:3, :3] / spacing).ravel().tolist()


def _to_itk(volume: NDArray[np.generic], affine: NDArray[np.float64]) -> Any:
    image = _sitk().GetImageFromArray(np.ascontiguousarray(volume.transpose(2, 1, 0), dtype=np.float32))
    origin, spacing, direction = _geometry(affine)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    return image


def _starts(fixed: Any, moving: Any) -> list[Any]:
    sitk = _sitk()
    middle = [(size - 1) / 2 for size in fixed.GetSize()]
    same_place = sitk.Euler3DTransform()
    same_place.SetCenter(fixed.TransformContinuousIndexToPhysicalPoint(middle))
    starts, centred = [same_place], sitk.CenteredTransformInitializerFilter
    for kind in (centred.GEOMETRY, centred.MOMENTS):
        start = sitk.Euler3DTransform(sitk.CenteredTransformInitializer(fixed, moving, sitk.Euler3DTransform(), kind))
        start.SetCenter([round(value, DECIMALS) for value in start.GetCenter()])
        start.SetTranslation([round(value, DECIMALS) for value in start.GetTranslation()])
        starts.append(start)
    return starts


def _align(fixed: Any, moving: Any, size_mm: float, start: Any) -> tuple[Any, float] | None:
    """Refine a transform at one level of resolution; return it with the metric, lower is better; None if it fails."""
    sitk = _sitk()
    fixed, moving = _coarser(fixed, size_mm), _coarser(moving, size_mm)
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # several would add in another order every time
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(min(1.0, MAX_SAMPLES / math.prod(fixed.GetSize())), SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(FIRST_STEP, LAST_STEP, MAX_STEPS, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    transform = sitk.Euler3DTransform(start)
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:  # too few samples of one lie inside of the other
        return None
    transform.SetParameters([round(value, DECIMALS) for value in transform.GetParameters()])
    return transform, round(float(method.GetMetricValue()), DECIMALS)


def _choose(fixed: Any, moving: Any, found: list[tuple[Any, float]]) -> tuple[Any, float] | None:
    """Return the coarse registration that fits best; None where there is none."""
    sitk = _sitk()
    heads = [sitk.OtsuThreshold(_coarser(image, LEVELS_MM[0]), 0, 1) for image in (fixed, moving)]
    measure, overlaps = sitk.LabelOverlapMeasuresImageFilter(), []
    for transform, _ in found:
        measure.Execute(heads[0], sitk.Resample(heads[1], heads[0], transform, sitk.sitkNearestNeighbor))
        overlap = measure.GetDiceCoefficient()
        overlaps.append(overlap if math.isfinite(overlap) else 0.0)  # two empty heads
    # Two heads that overlap by a few voxels only can have any mutual information.
    kept = [each for each, overlap in zip(found, overlaps, strict=True) if overlap >= max(overlaps) - OVERLAP_MARGIN]
    return min(kept, key=lambda each: each[1], default=None)


def _coarser(image: Any, size_mm: float) -> Any:
    """Return the image in voxels of about ``size_mm``, along each axis on its own: slices may be thick already.

    Means of whole voxels: ITK's other way of shrinking shifts the image by half a voxel where a factor is even.
    """
    edges = zip(image.GetSpacing(), image.GetSize(), strict=True)
    return _sitk().BinShrink(image, [max(1, min(round(size_mm / edge), size // 4)) for edge, size in edges])


def _matrix_of(transform: Any) -> NDArray[np.float64]:
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    lps[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    return LPS_FROM_RAS @ lps @ LPS_FROM_RAS


def _judge(before: Scan, after: Scan, matrix: NDArray[np.float64], metric: float | None) -> Registration:
    """Measure how well a registration fits, and say what speaks against it."""
    from transforms.intensity import find_head

    head = find_head(before.flair)
    moved = resample(after.flair, after.affine, before, matrix, outside=OUTSIDE)
    moved_head = resample(find_head(after.flair), after.affine, before, matrix) > 0.5
    head &= moved > OUTSIDE / 2  # only where both scans look
    both = head & moved_head
    overlap = 2 * float(both.sum()) / max(1.0, float(head.sum() + moved_head.sum()))
    correlation = _correlation(before.flair[both], moved[both])
    centre = before.affine @ np.array([*((np.array(before.spatial_shape) - 1) / 2), 1])
    if metric is None:
        rotation, translation = 0.0, 0.0
    else:
        rotation = math.degrees(math.acos(min(1.0, max(-1.0, (float(np.trace(matrix[:3, :3])) - 1) / 2))))
        translation = float(np.linalg.norm((matrix @ centre - centre)[:3]))
    return Registration(
        matrix, rotation, translation, metric, correlation, overlap, _warnings(correlation, overlap, rotation)
    )


def _correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    if len(first) < 2:
        return 0.0
    # Scalp and vessels are so bright that a few voxels would decide.
    one, other = (values.clip(*np.percentile(values, (1, 99))) for values in (first, second))
    return 0.0 if one.min() == one.max() or other.min() == other.max() else float(np.corrcoef(one, other)[0, 1])


def _warnings(correlation: float, overlap: float, rotation: float) -> tuple[str, ...]:
    reasons = []
    if correlation < MIN_CORRELATION:
        reasons.append(f"intensities inside the heads correlate by {correlation:.2f} only (expected {MIN_CORRELATION})")
    if overlap < MIN_HEAD_OVERLAP:
        reasons.append(f"the heads overlap by a Dice of {overlap:.2f} only (expected {MIN_HEAD_OVERLAP})")
    if rotation > MAX_ROTATION:
        reasons.append(f"the head would be turned by {rotation:.0f} degrees")
    if not reasons:
        return ()
    text = "; ".join(reasons)
    return (f"the two scans do not fit together: {text}; are they of one patient, the same body part and sequence?",)
