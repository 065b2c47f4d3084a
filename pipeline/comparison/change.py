"""How much a lesion changed between two visits, and what RANO would call it from the images alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MIN_NEW_LESION_ML",
    "PRODUCT_RULE",
    "RULE",
    "SOURCES",
    "UNKNOWN_TO_PROGRAM",
    "WHY_VOLUME",
    "Amount",
    "Category",
    "Change",
    "NewLesion",
    "Overlap",
    "categorize",
    "find_new_lesions",
    "measure_change",
    "measure_overlap",
    "share_outside",
]

Category = Literal["complete response", "partial response", "minor response", "stable", "progression", "no lesion"]

# Change in percent from which on it is a partial response, a minor response, or a progression.
VOLUME_LIMITS = (-65.0, -35.0, 40.0)
PRODUCT_LIMITS = (-50.0, -25.0, 25.0)
MIN_NEW_LESION_ML = 0.5  # a sphere of 10 mm, the diameter from which on RANO calls a lesion measurable
MIN_NEW_DISTANCE_MM = 5.0  # nearer, it is the growth of a lesion that was there, or an error of the registration

RULE = (
    "Volume of the FLAIR abnormality at the later visit against the earlier one: complete response where nothing is "
    "left; partial response from -65 %; minor response from -35 %; progression from +40 %, or where a new lesion of at "
    f"least {MIN_NEW_LESION_ML:g} ml (a sphere of 10 mm, RANO's smallest measurable lesion) lies at least "
    f"{MIN_NEW_DISTANCE_MM:g} mm from every earlier one; stable otherwise."
)
PRODUCT_RULE = (
    "Sum of the products of the perpendicular diameters: complete response where nothing is left; partial response "
    "from -50 %; minor response from -25 %; progression from +25 %; stable otherwise."
)
WHY_VOLUME = (
    "The volume decides, because it takes in every voxel of the mask; two diameters in one slice depend on how the "
    "head was tilted and on which slices were acquired. The limits of -65 % and +40 % are those that RANO 2.0 gives "
    "for volumes; -35 % is the volume of a sphere whose product of diameters falls by the 25 % of RANO-LGG."
)
UNKNOWN_TO_PROGRAM = (
    "RANO also weighs what no program sees in these images: the patient's clinical state, steroids, contrast "
    "enhancement, recent radiotherapy, and a confirming scan some weeks later; and it counts progression from the "
    "smallest size ever seen, which need not be that of the earlier visit here."
)
SOURCES = (
    "RANO-LGG: van den Bent et al., Lancet Oncology 2011, Response assessment in neuro-oncology (a report of the RANO "
    "group): assessment of outcome in trials of diffuse low-grade gliomas",
    "RANO 2.0: Wen et al., Journal of Clinical Oncology 2023, RANO 2.0: Update to the Response Assessment in "
    "Neuro-Oncology Criteria for High- and Low-Grade Gliomas in Adults",
)


@dataclass(frozen=True)
class Amount:
    """How much lesion one visit has, measured on its own grid.

    Attributes:
        voxels: Of the mask.
        lesion_count: Connected components.
        volume_ml: None where the spacing is unknown.
        interval_ml: Where the true volume is to be expected, (low, high); None where nobody can say.
        product_mm2: Sum over the lesions of the product of their perpendicular diameters; None where unknown.
    """

    voxels: int
    lesion_count: int
    volume_ml: float | None
    interval_ml: tuple[float, float] | None
    product_mm2: float | None


@dataclass(frozen=True)
class NewLesion:
    """A lesion of the later visit that lies apart from all of the earlier one.

    Attributes:
        voxels: Its size.
        volume_ml: None where the spacing is unknown.
        distance_mm: From the nearest lesion of the earlier visit; None where there was none, or no spacing is known.
        centre_voxel: Of its mass, on the later visit's grid.
    """

    voxels: int
    volume_ml: float | None
    distance_mm: float | None
    centre_voxel: tuple[float, float, float]

    @property
    def counts(self) -> bool:
        """Whether it is known to be large enough to be measured."""
        return self.volume_ml is not None and self.volume_ml >= MIN_NEW_LESION_ML


@dataclass(frozen=True)
class Overlap:
    """Voxels on the earlier visit's grid; approximate, for one of the masks was resampled.

    Attributes:
        stable: Lesion at both visits.
        new: At the later one only.
        resolved: At the earlier one only, where the later scan looked.
    """

    stable: int
    new: int
    resolved: int


@dataclass(frozen=True)
class Change:
    """What changed.

    Attributes:
        ml: Later volume less the earlier; None where the spacing is unknown.
        percent: Of the earlier volume; None where that was zero.
        product_percent: Of the sum of products of diameters; None where unknown.
        category: By volume; None where it cannot be told.
        category_by_product: By diameters; None where it cannot be told.
        is_distinguishable: Whether the two volumes' intervals lie apart; None where they are unknown.
        reason: Why the category is what it is, a sentence.
    """

    ml: float | None
    percent: float | None
    product_percent: float | None
    category: Category | None
    category_by_product: Category | None
    is_distinguishable: bool | None
    reason: str


def categorize(before: float, after: float, limits: tuple[float, float, float]) -> Category | None:
    """Return the category of a change by size alone; None where nothing has become something.

    Args:
        before: Size at the earlier visit, in any unit.
        after: At the later one, in the same unit.
        limits: Percent from which on it is a partial response, a minor response, a progression.
    """
    if after == 0:
        return "no lesion" if before == 0 else "complete response"
    if before == 0:
        return None
    percent = 100 * (after - before) / before
    partial, minor, progression = limits
    if percent >= progression:
        return "progression"
    if percent <= partial:
        return "partial response"
    return "minor response" if percent <= minor else "stable"


def measure_change(
    before: Amount, after: Amount, new_lesions: tuple[NewLesion, ...] = (), *, is_registered: bool = True
) -> Change:
    """Compare two visits.

    Volumes where both are known, else voxels, which are only comparable on one grid.

    Args:
        before: Earlier visit.
        after: Later visit.
        new_lesions: As ``find_new_lesions`` returns them.
        is_registered: Whether the registration can be relied on; if not, new lesions decide nothing.
    """
    if before.volume_ml is None or after.volume_ml is None:
        sizes, ml = (float(before.voxels), float(after.voxels)), None
    else:
        sizes, ml = (before.volume_ml, after.volume_ml), after.volume_ml - before.volume_ml
    percent = 100 * (sizes[1] - sizes[0]) / sizes[0] if sizes[0] else None
    by_size = categorize(*sizes, VOLUME_LIMITS)
    counted = [lesion for lesion in new_lesions if lesion.counts] if is_registered else []
    category: Category | None = "progression" if counted else by_size
    product_percent, by_product = None, None
    if before.product_mm2 is not None and after.product_mm2 is not None:
        by_product = categorize(before.product_mm2, after.product_mm2, PRODUCT_LIMITS)
        if before.product_mm2:
            product_percent = 100 * (after.product_mm2 - before.product_mm2) / before.product_mm2
        by_product = "progression" if counted else by_product
    distinguishable = None
    if before.interval_ml is not None and after.interval_ml is not None:
        distinguishable = before.interval_ml[1] < after.interval_ml[0] or after.interval_ml[1] < before.interval_ml[0]
    reason = _reason(percent, by_size, len(counted))
    return Change(ml, percent, product_percent, category, by_product, distinguishable, reason)


def find_new_lesions(
    before: NDArray[np.bool_],
    after: NDArray[np.bool_],
    to_before: NDArray[np.float64],
    before_affine: NDArray[np.float64],
    voxel_ml: float | None,
) -> tuple[NewLesion, ...]:
    """Find lesions of the later visit that lie apart from all of the earlier one, where that one looked.

    Places are moved, not voxels: nothing is resampled, and each lesion keeps its volume.

    Args:
        before: Mask of the earlier visit.
        after: Mask of the later visit, on its own grid.
        to_before: ``(4, 4)``, from voxels of the later visit to voxels of the earlier.
        before_affine: ``(4, 4)``, from voxels of the earlier visit to mm.
        voxel_ml: Volume of a voxel of the later visit; None where unknown, and then distances are in voxels.

    Returns:
        The largest first.
    """
    from scipy import ndimage
    from scipy.spatial import KDTree

    labels, count = ndimage.label(after, structure=np.ones((3, 3, 3)))
    known = np.argwhere(before) @ before_affine[:3, :3].T
    tree = KDTree(known) if len(known) else None
    lesions = []
    for label, box in enumerate(ndimage.find_objects(labels, count), start=1):
        voxels = np.argwhere(labels[box] == label) + [side.start for side in box]
        places = voxels @ to_before[:3, :3].T + to_before[:3, 3]
        if not _inside(places, before.shape).all():
            continue  # whether it was there before nobody saw
        distance = None if tree is None else float(tree.query(places @ before_affine[:3, :3].T)[0].min())
        if distance is not None and distance < MIN_NEW_DISTANCE_MM:
            continue
        first, second, third = (float(value) for value in voxels.mean(axis=0))
        volume = None if voxel_ml is None else len(voxels) * voxel_ml
        known_distance = None if voxel_ml is None else distance
        lesions.append(NewLesion(len(voxels), volume, known_distance, (first, second, third)))
    return tuple(sorted(lesions, key=lambda lesion: -lesion.voxels))


def share_outside(mask: NDArray[np.bool_], to_other: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Return which share of a lesion, from 0 to 1, the other visit's scan did not look at.

    Args:
        mask: Of one visit.
        to_other: ``(4, 4)``, from its voxels to voxels of the other visit.
        shape: Of the other visit.
    """
    places = np.argwhere(mask) @ to_other[:3, :3].T + to_other[:3, 3]
    return float(1 - _inside(places, shape).mean()) if len(places) else 0.0


def measure_overlap(
    before: NDArray[np.bool_], moved: NDArray[np.bool_], is_seen: NDArray[np.bool_] | None = None
) -> Overlap:
    """Count what stayed, came and went, on the earlier visit's grid.

    Args:
        before: Mask of the earlier visit.
        moved: Of the later one, resampled onto that grid.
        is_seen: Where the later scan looked; everywhere if not given.
    """
    gone = before & ~moved if is_seen is None else before & ~moved & is_seen
    stable, new = np.count_nonzero(before & moved), np.count_nonzero(moved & ~before)
    return Overlap(int(stable), int(new), int(np.count_nonzero(gone)))


def _inside(places: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.asarray(((places >= -0.5) & (places <= np.array(shape) - 0.5)).all(axis=1))


def _reason(percent: float | None, by_size: Category | None, counted: int) -> str:
    size = {"no lesion": "no lesion at either visit", "complete response": "nothing is left"}.get(by_size or "")
    if size is None:
        size = "there was nothing to compare with" if percent is None else f"the volume changed by {percent:+.0f} %"
    if counted:
        return f"{counted} new lesion{'s' if counted > 1 else ''} of at least {MIN_NEW_LESION_ML:g} ml; {size}"
    if by_size is None:
        return f"{size}, and what came is too small, or not surely enough seen, to be called a new lesion"
    return size
