"""The evaluation as one HTML file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.evaluation.pairing import LeftOut
from pipeline.evaluation.pictures import PREDICTION_COLOR, TRUTH_COLOR
from pipeline.evaluation.plots import (
    plot_dice,
    plot_dice_by_site,
    plot_dice_by_volume,
    plot_reliability,
    plot_volume_agreement,
)
from pipeline.evaluation.scoring import PatientScores
from pipeline.evaluation.tables import METRICS
from pipeline.html_page import figure, table, write_html

__all__ = ["CasePicture", "write_page"]

LABELS = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "pixel_accuracy": "pixel accuracy",
    "lesion_f1": "lesion-wise F1",
    "hd95_voxels": "HD95 (voxels)",
    "hd95_mm": "HD95 (mm)",
    "mean_surface_distance_voxels": "mean surface distance (voxels)",
    "mean_surface_distance_mm": "mean surface distance (mm)",
    "volume_error_voxels": "volume error (voxels)",
    "volume_error_ml": "volume error (ml)",
    "volume_error_relative": "volume error (relative)",
    "absolute_volume_error_relative": "absolute volume error (relative)",
}
GROUP_METRICS = ("dice", "recall", "precision", "lesion_f1", "hd95_voxels", "absolute_volume_error_relative")
PATIENT_COLUMNS = (
    "dice",
    "recall",
    "precision",
    "lesion_f1",
    "hd95_voxels",
    "hd95_mm",
    "true_voxels",
    "predicted_voxels",
    "volume_error_relative",
)


@dataclass(frozen=True)
class CasePicture:
    """The picture of one case.

    Attributes:
        patient: Whose case it is.
        png: The picture.
        kind: "worst" or "best".
    """

    patient: PatientScores
    png: bytes
    kind: str


def write_page(
    path: Path,
    patients: Sequence[PatientScores],
    summary: Mapping[str, Any],
    *,
    pictures: Sequence[CasePicture] = (),
    left_out: Sequence[LeftOut] = (),
) -> None:
    """Write the evaluation as one HTML file; styles, plots and pictures are inside, and no script.

    Args:
        path: The HTML file; its folder must exist.
        patients: At least one.
        summary: Of them, as ``summarize`` returns it; under ``calibration`` what ``summarize_calibration``
            returns, where probabilities are known.
        pictures: Of the worst and best cases.
        left_out: Patients that could not be scored.

    Raises:
        AR2UNetError: If the file cannot be written.
    """
    parts = [
        "<h1>Evaluation</h1>",
        _left_out(left_out),
        _overall(summary),
        "<h2>Plots</h2>",
        _plots(patients),
        _calibration(summary),
        *(("<h2>By site</h2>", _groups(summary["by_site"])) if _sites_known(patients) else ()),
        "<h2>By lesion size</h2>",
        _groups(summary["by_lesion_size"]),
        _cases(pictures),
        "<h2>Patients, the worst first</h2>",
        _patients(patients),
        "<p>For research use only. Not a medical device; not for diagnosis or treatment.</p>",
    ]
    write_html(path, f"Evaluation of {len(patients)} patients", parts)


def _left_out(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return ""
    items = "".join(f"<li>{html.escape(each.reason)}</li>" for each in left_out)
    return f'<div class="warning"><h2>Not scored: {len(left_out)}</h2><ul>{items}</ul></div>'


def _overall(summary: Mapping[str, Any]) -> str:
    bootstrap = summary["bootstrap"]
    percent = f"{100 * bootstrap['level']:g} %"
    rows = [
        [
            LABELS[name],
            _with_interval(summary, "mean", name),
            _with_interval(summary, "median", name),
            _number(summary["minimum"][name]),
            _number(summary["maximum"][name]),
            str(summary["defined"][name]),
        ]
        for name in METRICS
        if summary["defined"][name]
    ]
    scores = table(["", f"mean ({percent} interval)", f"median ({percent} interval)", "min", "max", "patients"], rows)
    absent = "" if summary["defined"]["hd95_mm"] else " No spacing is known, so there are no millimetres."
    return (
        f"<p>{summary['patients']} patients, each scored on the whole volume. Intervals: percentile bootstrap over "
        f"patients, {bootstrap['resamples']:,} resamples, seed {bootstrap['seed']}; none below "
        f"{bootstrap['minimum_patients']} patients. A distance is defined only where prediction and truth both hold a "
        f"lesion, so a patient without a distance may be one that was missed.{absent} A mask with nothing in it would "
        f"score a pixel accuracy of {_number(summary['pixel_accuracy_of_an_empty_mask'])}.</p>{scores}"
        f"<p>Pooled over all voxels, where large lesions count most: Dice "
        f"{_number(summary['pooled_over_voxels']['dice'])}.</p>"
    )


def _groups(groups: Mapping[str, Any]) -> str:
    rows = []
    for name, group in groups.items():
        size = ""
        if "unit" in group:
            size = f" ({_number(group['from'])} to {_number(group['to'])} {group['unit']})"
        cells = [_with_interval(group, "mean", metric) for metric in GROUP_METRICS]
        rows.append([f"{name}{size}", str(group["patients"]), *cells])
    return table(["", "patients", *(f"{LABELS[metric]}, mean" for metric in GROUP_METRICS)], rows)


def _plots(patients: Sequence[PatientScores]) -> str:
    plots = [
        (plot_dice, "Dice of the patients."),
        (plot_volume_agreement, "Bland-Altman: how far predicted volumes lie from true ones."),
        (plot_dice_by_volume, "Dice over the true volume."),
    ]
    if _sites_known(patients):
        plots.append((plot_dice_by_site, "Dice by site; the bar is the mean."))
    figures = [figure(plot(patients), "image/svg+xml", html.escape(caption)) for plot, caption in plots]
    return f'<div class="pictures">{"".join(figures)}</div>'


def _calibration(summary: Mapping[str, Any]) -> str:
    calibration = summary.get("calibration")
    if calibration is None:
        return ""
    caption = "Reliability: below the dashed line it is too sure of lesion, above it of background."
    plot = figure(plot_reliability(calibration), "image/svg+xml", caption)
    return (
        f"<h2>Calibration</h2><p>Expected calibration error in the {calibration['region']}: "
        f"{calibration['expected_calibration_error']:.4f}. Pooled over {calibration['voxels']:,} voxels, of which most "
        f"are surely background and hold it down, so look at the whole curve.</p>"
        f'<div class="pictures">{plot}</div>'
    )


def _sites_known(patients: Sequence[PatientScores]) -> bool:
    return any(patient.site is not None for patient in patients)


def _cases(pictures: Sequence[CasePicture]) -> str:
    if not pictures:
        return ""
    keys = "".join(
        f'<span class="key" style="background:{color}"></span> {name} '
        for color, name in ((TRUTH_COLOR, "truth"), (PREDICTION_COLOR, "prediction"))
    )
    text = (
        f"<h2>Worst and best cases</h2><p>{keys}On the axial slice with most lesion and, where it is another, the one "
        "with most wrong voxels. Numbered from the lowest; the patient's right on the left.</p>"
    )
    for kind in ("worst", "best"):
        figures = [
            figure(
                picture.png,
                "image/png",
                f"{kind}: {html.escape(picture.patient.subject)}, Dice {_number(picture.patient.counts.dice)}",
            )
            for picture in pictures
            if picture.kind == kind
        ]
        text += f'<div class="pictures">{"".join(figures)}</div>'
    return text


def _patients(patients: Sequence[PatientScores]) -> str:
    rows = []
    for patient in sorted(patients, key=lambda each: (each.counts.dice, each.subject)):
        row = patient.row()
        rows.append([patient.subject, patient.site or "", *(_number(row[name]) for name in PATIENT_COLUMNS)])
    labels = [LABELS.get(name, name.replace("_", " ")) for name in PATIENT_COLUMNS]
    return table(["patient", "site", *labels], rows)


def _with_interval(summary: Mapping[str, Any], statistic: str, name: str) -> str:
    interval = summary["intervals"][statistic][name]
    text = _number(summary[statistic][name])
    return text if interval is None else f"{text} ({_number(interval[0])} to {_number(interval[1])})"


def _number(value: float | str | None) -> str:
    """Return a number as people read it, and a dash for what is undefined."""
    if value is None:
        return "–"
    if isinstance(value, int | str):
        return f"{value:,}" if isinstance(value, int) else value
    if abs(value) >= 100:
        return f"{value:,.1f}"
    # Nearly all voxels are background, so three digits would make every specificity a 1.
    return f"{value:.5f}" if 0.999 < abs(value) < 1 else f"{value:.3f}"
