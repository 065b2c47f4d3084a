"""Score networks on the patients that each had never seen, and fit what goes with the weights.

    python bench/cross_validation.py DATA --weights 0=RUN0/model_final.pt 1=RUN1/model_final.pt --csv cv.csv
    python bench/cross_validation.py DATA --weights ... --ship RUN_ALL/model_final.pt

The temperature and the line to the predicted Dice are fitted for a fifth of the held-out patients on the other
four fifths, so nothing said of a patient rests on that patient's truth. ``--ship`` fits both on all held-out
patients and writes the given weights, trained on everybody, into the bundle with the temperature inside.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from components import components_table
from numpy.typing import NDArray
from other_weights import bundle_with
from remaining_error import remaining_error_table

from pipeline.confidence.predicted_dice import DicePredictor, fit_dice_predictor, soft_dice, write_dice_predictor
from pipeline.errors import AR2UNetError
from pipeline.evaluation.calibration import (
    ReliabilityBins,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from pipeline.evaluation.metrics import count_confusion
from pipeline.evaluation.scoring import PatientScores, score_patient
from pipeline.evaluation.tables import summarize, write_rows
from pipeline.formats.nifti import read_mask, read_scan
from pipeline.predictor import SEGMENTATION_BUNDLE, Predictor
from pipeline.training.entries import datalist_entries
from transforms.intensity import find_head

PARTS = 5  # of the held-out patients, each judged by what the others say
CERTAIN = 1e-6  # probabilities of 0 and 1 have no logit
REVIEW_BELOW = 0.7  # Dice
ENOUGH = 10_000_000  # voxels to fit a temperature to; the heads of 100 patients have eight times as many


class HeldOut(NamedTuple):
    """A patient's volume from the network that had not seen the patient; arrays ``(I, J, K)``."""

    subject: str
    site: str
    fold: int
    logits: NDArray[np.float32]
    mask: NDArray[np.bool_]
    truth: NDArray[np.bool_]
    head: NDArray[np.bool_]


def predict_held_out(data: Path, fold: int, predictor: Predictor, *, flair_alone: bool) -> Iterator[HeldOut]:
    """Segment the patients of a fold, from all three sequences or from FLAIR alone."""
    for entry in datalist_entries(data, fold, "validation"):
        t1, flair, t1c = map(Path, entry["image"])
        scan = read_scan(flair) if flair_alone else read_scan(flair, t1, t1c)
        prediction = predictor.predict(scan)
        probabilities = prediction.probabilities.clip(CERTAIN, 1 - CERTAIN)
        logits = np.log(probabilities / (1 - probabilities))
        truth = read_mask(Path(entry["label"])).mask > 0
        mask = prediction.mask > 0
        yield HeldOut(entry["subject"], entry["site"], fold, logits, mask, truth, find_head(scan.flair))


def probabilities_of(case: HeldOut, temperature: float) -> NDArray[np.float32]:
    """Return a case's probabilities at a temperature."""
    result: NDArray[np.float32] = 1 / (1 + np.exp(-case.logits / temperature))
    return result


def fit(cases: Sequence[HeldOut]) -> tuple[float, DicePredictor]:
    """Fit the temperature by likelihood in the head, and the line to the predicted Dice at that temperature."""
    step = max(1, sum(np.count_nonzero(case.head) for case in cases) // ENOUGH)
    logits = [case.logits[case.head][::step] for case in cases]
    truths = [case.truth[case.head][::step] for case in cases]
    temperature = fit_temperature(np.concatenate(logits), np.concatenate(truths))
    soft = [soft_dice(probabilities_of(case, temperature), case.mask) for case in cases]
    true = [count_confusion(case.mask, case.truth).dice for case in cases]
    return temperature, fit_dice_predictor(soft, true, review_below=REVIEW_BELOW)


class Scored(NamedTuple):
    """A patient's scores, with what was fitted on others."""

    scores: PatientScores
    fold: int
    soft: float
    predicted_dice: float
    bins: ReliabilityBins
    bins_before: ReliabilityBins


def score_part(cases: Sequence[HeldOut], others: Sequence[HeldOut]) -> list[Scored]:
    """Score patients; what is fitted is fitted on others."""
    temperature, line = fit(others)
    scored = []
    for case in cases:
        probabilities = probabilities_of(case, temperature)
        soft = soft_dice(probabilities, case.mask)
        scored.append(
            Scored(
                score_patient(case.subject, case.mask, case.truth, site=case.site),
                case.fold,
                soft,
                line.predict(soft),
                reliability(probabilities, case.truth, case.head),
                reliability(probabilities_of(case, 1.0), case.truth, case.head),
            )
        )
    return scored


def ranking(scored: Sequence[Scored]) -> dict[str, Any]:
    """Return how well the predicted Dice orders patients, and finds those whose Dice is too low."""
    from scipy.stats import spearmanr

    predicted = np.array([each.soft for each in scored])
    true = np.array([each.scores.counts.dice for each in scored])
    low, high = predicted[true < REVIEW_BELOW], predicted[true >= REVIEW_BELOW]
    flagged = np.array([each.predicted_dice for each in scored]) < REVIEW_BELOW
    # The area under the ROC curve: how often a low one is predicted lower than a high one; ties count half.
    wins = (low[:, None] < high).mean() + (low[:, None] == high).mean() / 2 if len(low) and len(high) else None
    return {
        "spearman": float(spearmanr(predicted, true).statistic),
        "auc_below_0.7": None if wins is None else float(wins),
        "patients_below_0.7": len(low),
        "flagged": int(flagged.sum()),
        "flagged_and_below_0.7": int((flagged & (true < REVIEW_BELOW)).sum()),
        "mean_absolute_error": float(np.mean([abs(s.predicted_dice - s.scores.counts.dice) for s in scored])),
    }


def cross_validate(cases: Sequence[HeldOut]) -> dict[str, Any]:
    """Score every held-out patient."""
    scored: list[Scored] = []
    for part in range(PARTS):
        inside = list(cases[part::PARTS])
        scored += score_part(inside, [case for case in cases if all(case is not each for each in inside)])
    worst = sorted(each.scores.counts.dice for each in scored)[: max(1, len(scored) // 10)]
    bins, before = (sum_bins([getattr(each, name) for each in scored]) for name in ("bins", "bins_before"))
    return {
        "summary": summarize([each.scores for each in scored]),
        "dice_of_the_worst_tenth": float(np.mean(worst)),
        "calibration_error": expected_calibration_error(bins),
        "calibration_error_before": expected_calibration_error(before),
        "predicted_dice": ranking(scored),
        "patients": [
            {"fold": each.fold, "predicted_dice": each.predicted_dice, **each.scores.row()} for each in scored
        ],
    }


def sum_bins(bins: Sequence[ReliabilityBins]) -> ReliabilityBins:
    """Return the bins of all patients together."""
    total = bins[0]
    for each in bins[1:]:
        total = total + each
    return total


def markdown_table(results: dict[str, dict[str, Any]]) -> str:
    """Return the figures of each input as a table."""
    lines = ["| figure | " + " | ".join(results) + " |", "| --- |" + " --- |" * len(results)]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in _rows(list(results.values()))]
    return "\n".join(lines)


def _rows(results: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Yield each figure's name and its cells."""
    summaries = [result["summary"] for result in results]
    yield "patients", [str(summary["patients"]) for summary in summaries]
    for statistic in ("mean", "median"):
        pairs = [(summary[statistic]["dice"], summary["intervals"][statistic]["dice"]) for summary in summaries]
        yield (
            f"Dice, {statistic} (95 % interval)",
            [f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})" for value, interval in pairs],
        )
    yield "Dice, mean of the worst tenth", [f"{result['dice_of_the_worst_tenth']:.3f}" for result in results]
    for name in ("dice", "iou", "precision", "recall", "pixel_accuracy"):
        label = name.replace("_", " ").replace("dice", "Dice").replace("iou", "IoU")
        yield f"pooled {label}", [f"{summary['pooled_over_voxels'][name]:.4f}" for summary in summaries]
    for name in ("hd95_voxels", "lesion_f1"):
        yield f"mean {name}", [f"{summary['mean'][name]:.3f}" for summary in summaries]
    for site in sorted(summaries[0]["by_site"]):
        sites = [summary["by_site"][site] for summary in summaries]
        yield f"Dice, site {site} (n)", [f"{group['mean']['dice']:.3f} ({group['patients']})" for group in sites]
    for size in summaries[0]["by_lesion_size"]:
        sizes = [summary["by_lesion_size"][size] for summary in summaries]
        yield f"Dice, {size} lesions (n)", [f"{group['mean']['dice']:.3f} ({group['patients']})" for group in sizes]
    for fold in sorted({row["fold"] for row in results[0]["patients"]}):
        dice = [[row["dice"] for row in result["patients"] if row["fold"] == fold] for result in results]
        yield f"Dice, fold {fold} (n)", [f"{np.mean(values):.3f} ({len(values)})" for values in dice]
    yield "calibration error in the head", [f"{result['calibration_error']:.4f}" for result in results]
    yield "… at temperature 1", [f"{result['calibration_error_before']:.4f}" for result in results]
    for name, label in (
        ("spearman", "predicted Dice: rank correlation"),
        ("auc_below_0.7", "… AUC for Dice below 0.7"),
        ("mean_absolute_error", "… mean absolute error"),
    ):
        values = [result["predicted_dice"][name] for result in results]
        yield label, ["-" if value is None else f"{value:.3f}" for value in values]
    marked = [result["predicted_dice"] for result in results]
    yield (
        f"patients below {REVIEW_BELOW} / marked for review / both",
        [f"{each['patients_below_0.7']} / {each['flagged']} / {each['flagged_and_below_0.7']}" for each in marked],
    )


def write_patients(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Write a line for each input of each patient.

    Raises:
        AR2UNetError: If the file cannot be written.
    """
    write_rows(path, [{"input": name, **row} for name, result in results.items() for row in result["patients"]])


def ship(weights: Path, temperature: float, path: Path) -> None:
    """Write weights whose logits are divided by a temperature: the last layer is linear, so it takes it in."""
    import torch

    state = torch.load(weights, map_location="cpu", weights_only=True)
    for name in ("head.weight", "head.bias"):
        state[name] = state[name] / temperature
    torch.save(state, path)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="what `ar2unet prepare lgg` wrote")
    parser.add_argument("--weights", nargs="+", required=True, metavar="FOLD=FILE", help="of one fold or more")
    parser.add_argument("--bundle", type=Path, default=SEGMENTATION_BUNDLE)
    parser.add_argument("--network", type=Path, metavar="FILE", help="config on top of the bundle's inference.yaml")
    parser.add_argument("--json", type=Path, help="write the figures, patient by patient")
    parser.add_argument("--csv", type=Path, help="write the patients' scores as a table")
    parser.add_argument("--ship", type=Path, metavar="FILE", help="write these weights into the bundle, calibrated")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Cross-validate, print the table and return the exit code."""
    options = parse_arguments(arguments)
    try:
        cases = segment_held_out(options)
        results = {name: cross_validate(held_out) for name, held_out in cases.items()}
        print(markdown_table(results))
        for name, held_out in cases.items():
            print(f"\nMean Dice by the smallest component that is kept, {name}:\n\n{components_table(held_out)}")
            print(f"\nWhere the remaining error lies, {name}:\n\n{remaining_error_table(held_out)}")
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
        if options.csv:
            write_patients(options.csv, results)
        if options.ship:
            temperature, line = fit(cases["t1, FLAIR, t1c"])
            ship(options.ship, temperature, options.bundle / "models" / "model.pt")
            write_dice_predictor(line, options.bundle / "models" / "predicted_dice.json")
            print(f"shipped with temperature {temperature:.3f} and {line}")
    except AR2UNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def segment_held_out(options: argparse.Namespace) -> dict[str, list[HeldOut]]:
    """Segment the patients of each fold with the weights given for it, from all sequences and from FLAIR alone."""
    cases: dict[str, list[HeldOut]] = {"t1, FLAIR, t1c": [], "FLAIR alone": []}
    for pair in options.weights:
        fold, _, weights = pair.partition("=")
        with tempfile.TemporaryDirectory() as folder:
            predictor = Predictor(bundle_with(Path(weights), options.bundle, Path(folder, "bundle"), options.network))
            predictor.assessor = None  # what it would assess by is what is being fitted here
            for name, held_out in cases.items():
                held_out += predict_held_out(options.data, int(fold), predictor, flair_alone=name == "FLAIR alone")
                print(f"fold {fold}, {name}: {len(held_out)} patients so far", file=sys.stderr)
    return cases


if __name__ == "__main__":
    sys.exit(main())
