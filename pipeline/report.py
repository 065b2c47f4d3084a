"""The report of one case: what was segmented, what was found, and with what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.formats.atomic import atomic_write
from pipeline.formats.scan import CHANNELS, Scan
from pipeline.measurement import Diameters, Laterality, Measurements, volume_interval
from pipeline.provenance import software_versions

if TYPE_CHECKING:
    from pipeline.confidence.assessment import Assessment

__all__ = ["STAGES", "build_report", "write_report"]

SCHEMA_VERSION = "1.3"
STAGES = ("read", "preprocess", "network", "postprocess", "write", "total")
NO_SPACING_NOTE = "The scan does not state its voxel spacing, so a volume in millilitres cannot be given."
INTERVAL_NOTE = (
    "Where the true volume lies if the Dice is as predicted. That is not certain: of 20 patients whom the network had "
    "not seen, 18 had their true volume inside."
)
NO_LESION_NOTE = "No lesion was found, and from the Dice alone no interval follows for its volume."
NO_DICE_NOTE = "No usable Dice is predicted for this mask, so an interval of the volume cannot be given."
NOTICE = "For research use only. Not a medical device; not for diagnosis or treatment."
SOFTWARE = ("torch", "monai", "numpy", "scipy", "nibabel")


def build_report(
    *,
    scan: Scan,
    measurements: Measurements,
    inputs: Mapping[str, Path | str],
    bundle_name: str,
    bundle_version: str,
    weights_sha256: str,
    engine: str,
    seconds: Mapping[str, float],
    assessment: Assessment | None = None,
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> dict[str, object]:
    """Gather the report of one case, as ``schemas/report.schema.json`` describes it.

    Args:
        scan: What was segmented.
        measurements: Of its mask.
        inputs: The file or folder of each sequence given, by "t1", "flair" or "t1c"; the
            report keeps their names without the folders above.
        bundle_name: The bundle's folder name.
        bundle_version: From its metadata.
        weights_sha256: Of the weights file, 64 hexadecimal digits.
        engine: What multiplied, such as "torch".
        seconds: Wall-clock time of each of ``STAGES``.
        assessment: How far the mask can be trusted; None where nobody can say.
        warnings: What the reader of the result should know besides the assessment's own warnings.
        notes: What was decided while reading the scan.

    Raises:
        ValueError: If ``inputs`` or ``seconds`` has other keys than those named.
    """
    if "flair" not in inputs or not set(inputs) <= set(CHANNELS):
        raise ValueError(f"inputs must name flair and perhaps t1 and t1c, got {sorted(inputs)}")
    if set(seconds) != set(STAGES):
        raise ValueError(f"seconds must name {', '.join(STAGES)}, got {', '.join(seconds)}")
    known = measurements.volume_ml is not None
    interval, interval_note = _volume_interval(measurements, assessment)
    return {
        "schema_version": SCHEMA_VERSION,
        "inputs": {name: Path(inputs[name]).name for name in CHANNELS if name in inputs},
        "shape": list(scan.spatial_shape),
        "spacing_mm": None if scan.spacing is None else [_rounded(size) for size in scan.spacing],
        "volume_ml": _rounded(measurements.volume_ml),
        "volume_note": None if known else NO_SPACING_NOTE,
        "volume_interval_ml": interval,
        "volume_interval_note": interval_note,
        "lesion_voxels": measurements.lesion_voxels,
        "lesion_count": measurements.lesion_count,
        "lesions": [
            {
                "voxels": lesion.voxels,
                "volume_ml": _rounded(lesion.volume_ml),
                "centre_ras_mm": lesion.centre_mm and [round(value, 2) for value in lesion.centre_mm],
                "diameters": _diameters(lesion.diameters),
                "side": lesion.laterality and lesion.laterality.side,
            }
            for lesion in measurements.lesions
        ],
        "laterality": _laterality(measurements.laterality),
        "slices_total": measurements.slices_total,
        "slices_with_lesion": measurements.slices_with_lesion,
        "confidence": None
        if assessment is None
        else {"predicted_dice": round(assessment.predicted_dice, 3), "review": assessment.review},
        "bundle": {"name": bundle_name, "version": bundle_version},
        "weights_sha256": weights_sha256,
        "engine": engine,
        "seconds": {stage: round(seconds[stage], 3) for stage in STAGES},
        "software": software_versions(SOFTWARE),
        "warnings": [*(() if assessment is None else assessment.warnings), *warnings],
        "notes": list(notes),
        "notice": NOTICE,
    }


def write_report(path: Path, report: Mapping[str, object]) -> None:
    """Write a report as JSON; the file appears under its name only when it is complete.

    Raises:
        ValueError: If a number is not finite.
        AR2UNetError: If the file cannot be written.
    """
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        # A file name may hold bytes that are no characters.
        file.write(text.encode("utf-8", "backslashreplace") + b"\n")


def _volume_interval(
    measurements: Measurements, assessment: Assessment | None
) -> tuple[list[float | None] | None, str]:
    """Return the interval in ml, and what it means or why there is none."""
    if measurements.volume_ml is None:
        return None, NO_SPACING_NOTE
    if not measurements.lesion_voxels:
        return None, NO_LESION_NOTE
    interval = volume_interval(measurements.volume_ml, None if assessment is None else assessment.predicted_dice)
    if interval is None:
        return None, NO_DICE_NOTE
    return [_rounded(end) for end in interval], INTERVAL_NOTE


def _diameters(diameters: Diameters | None) -> dict[str, float | int] | None:
    if diameters is None:
        return None
    return {
        "longest_mm": round(diameters.longest_mm, 2),
        "perpendicular_mm": round(diameters.perpendicular_mm, 2),
        "product_mm2": round(diameters.product_mm2, 2),
        "slice": diameters.slice,
    }


def _laterality(laterality: Laterality | None) -> dict[str, str | float] | None:
    if laterality is None:
        return None
    return {"side": laterality.side, "left_fraction": round(laterality.left_fraction, 3)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
