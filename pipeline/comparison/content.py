"""What ``compare.json`` holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.linalg import det

from pipeline.comparison.change import (
    PRODUCT_RULE,
    RULE,
    SOURCES,
    UNKNOWN_TO_PROGRAM,
    WHY_VOLUME,
    Change,
    NewLesion,
    Overlap,
)
from pipeline.provenance import software_versions
from pipeline.report import NOTICE

if TYPE_CHECKING:
    from pipeline.comparison.compare import Found
    from pipeline.comparison.registration import Registration

__all__ = ["build_content"]

SCHEMA_VERSION = "1.0"
SOFTWARE = ("numpy", "scipy", "SimpleITK")


def build_content(
    found: tuple[Found, Found],
    registration: Registration,
    change: Change,
    overlap: Overlap,
    new_lesions: Sequence[NewLesion],
    days: int | None,
    warnings: Sequence[str],
    transform: str,
) -> dict[str, Any]:
    """Gather a comparison as ``schemas/comparison.schema.json`` describes it.

    Args:
        found: The earlier visit and the later.
        registration: Of the later onto the earlier.
        change: Between them.
        overlap: On the earlier one's grid.
        new_lesions: The largest first.
        days: Between the visits; None where unknown.
        warnings: A sentence each.
        transform: Name of the file of the transform, where something was registered.
    """
    before, after = found
    voxel_ml = None if before.scan.spacing is None else abs(float(det(before.scan.affine[:3, :3]))) / 1000
    volumes = {
        f"{name}_ml": None if voxel_ml is None else _rounded(count * voxel_ml)
        for name, count in (("stable", overlap.stable), ("new", overlap.new), ("resolved", overlap.resolved))
    }
    is_rigid = registration.mutual_information is not None
    small = [lesion for lesion in new_lesions if not lesion.counts]
    notes = []
    if small:
        size = "of unknown volume" if before.scan.spacing is None else "too small to count as measurable"
        notes.append(f"{len(small)} spots of AFTER lie apart from every lesion of BEFORE, {size}")
    return {
        "schema_version": SCHEMA_VERSION,
        "before": _visit(before),
        "after": _visit(after),
        "days_between": days,
        "change": {
            "volume_ml": _rounded(change.ml),
            "percent": _rounded(change.percent),
            "diameter_product_percent": _rounded(change.product_percent),
            "distinguishable_from_no_change": change.is_distinguishable,
            "overlap": {
                "stable_voxels": overlap.stable,
                "new_voxels": overlap.new,
                "resolved_voxels": overlap.resolved,
                **volumes,
            },
            "new_lesions": [_new_lesion(lesion) for lesion in new_lesions],
        },
        "category": {
            "name": change.category,
            "by_diameter_product": change.category_by_product,
            "reason": change.reason,
            "rule": RULE,
            "why_volume": WHY_VOLUME,
            "diameter_rule": PRODUCT_RULE,
            "not_assessed": UNKNOWN_TO_PROGRAM,
            "sources": list(SOURCES),
        },
        "registration": {
            "method": "rigid" if is_rigid else "none",
            "transform": transform if is_rigid else None,
            "matrix_ras": registration.matrix.tolist(),
            "rotation_degrees": _rounded(registration.rotation_degrees),
            "translation_mm": _rounded(registration.translation_mm) if is_rigid else None,
            "mutual_information": _rounded(registration.mutual_information),
            "correlation": _rounded(registration.correlation),
            "head_overlap": _rounded(registration.head_overlap),
            "doubtful": registration.is_doubtful,
        },
        "software": software_versions(SOFTWARE),
        "warnings": [
            *warnings,
            *(f"{name}: {line}" for name, each in (("BEFORE", before), ("AFTER", after)) for line in each.warnings),
        ],
        "notes": notes,
        "notice": NOTICE,
    }


def _visit(found: Found) -> dict[str, Any]:
    amount, scan = found.amount, found.scan
    interval = amount.interval_ml
    return {
        "input": found.visit.flair.name or str(found.visit.flair.resolve().name),
        "mask": found.mask_file.name,
        "mask_given": found.visit.mask is not None,
        "shape": list(scan.spatial_shape),
        "spacing_mm": None if scan.spacing is None else [_rounded(size) for size in scan.spacing],
        "lesion_voxels": amount.voxels,
        "lesion_count": amount.lesion_count,
        "volume_ml": _rounded(amount.volume_ml),
        "volume_interval_ml": None if interval is None else [_rounded(value) for value in interval],
        "diameter_product_mm2": _rounded(amount.product_mm2),
        "predicted_dice": _rounded(found.predicted_dice),
    }


def _new_lesion(lesion: NewLesion) -> dict[str, Any]:
    return {
        "voxels": lesion.voxels,
        "volume_ml": _rounded(lesion.volume_ml),
        "distance_mm": _rounded(lesion.distance_mm),
        "centre_voxel": [round(value, 2) for value in lesion.centre_voxel],
        "counts": lesion.counts,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
