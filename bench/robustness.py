"""Measure what changes of the test scans cost: the patients' Dice on changed volumes against that on unchanged ones.

    python bench/robustness.py DATA --fold 0 --json robustness.json --plot robustness.png

DATA is what `ar2unet prepare` writes, FOLD what the weights were not trained on. Each volume is changed in memory and
segmented by `pipeline.predictor`, the road of the product. The truth turns and is resampled with its volume.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from other_weights import bundle_with
from scipy import ndimage

from pipeline.errors import AR2UNetError
from pipeline.evaluation.metrics import count_confusion
from pipeline.evaluation.tables import write_summary
from pipeline.formats.nifti import read_mask, read_scan
from pipeline.formats.scan import Scan
from pipeline.predictor import SEGMENTATION_BUNDLE, Prediction, Predictor
from pipeline.training.entries import datalist_entries
from transforms.geometry import FLAIR_CHANNEL, TRAINING_PIXEL_SPACING
from transforms.intensity import find_head

orientations: Any = nib.orientations  # its functions carry no types

SLICE_SPACING = 5.0  # mm, where it has to be something; nothing is resampled across slices, so it changes no mask
ORIENTATIONS = ("RAS", "LAS", "LPI", "PIR", "ASL", "LSA")  # flips, permutations and both; the data are L, P, S
FULL_WIDTH = 2.355  # standard deviations of a Gaussian between the points of half its height
SEED = 0
MM3_PER_ML = 1000


@dataclass(frozen=True, eq=False)
class Case:
    """A scan and its truth ``(I, J, K)``, bool, on the same voxels."""

    scan: Scan
    truth: NDArray[np.bool_]


@dataclass(frozen=True)
class Change:
    """A change of a case, and how much mean Dice it may cost."""

    name: str
    apply: Callable[[Case], Case]
    allowed: float


class Segments(Protocol):
    """What segments a scan, such as ``Predictor``."""

    def predict(self, scan: Scan) -> Prediction:
        """Return the mask on the scan's own voxels."""
        ...


# --- changes of the grid ------------------------------------------------------------------------------


def reoriented(case: Case, codes: str) -> Case:
    """Store the same scan with its axes in another order and direction; every voxel keeps its place in the world.

    Args:
        case: Of any orientation.
        codes: To which side of the patient I, J and K run, such as "RAS".
    """
    now, wanted = orientations.io_orientation(case.scan.affine), orientations.axcodes2ornt(tuple(codes))
    turn = orientations.ornt_transform(now, wanted)
    affine = case.scan.affine @ orientations.inv_ornt_aff(turn, case.scan.spatial_shape)
    image = np.stack([orientations.apply_orientation(channel, turn) for channel in case.scan.image])
    spacing = case.scan.spacing
    if spacing is not None:
        # turn[axis] says where the scan's axis went.
        first, second, third = (spacing[axis] for axis in np.argsort(turn[:, 0]))
        spacing = first, second, third
    scan = replace(case.scan, image=image, affine=affine, spacing=spacing, header=None)
    return Case(scan, orientations.apply_orientation(case.truth, turn))


def with_spacing(case: Case, pixel_spacing: float = TRAINING_PIXEL_SPACING) -> Case:
    """Say that pixels measure ``pixel_spacing`` mm and slices lie 5 mm apart; not a voxel changes."""
    sizes = [pixel_spacing] * 3
    sizes[_slice_axis(case)] = SLICE_SPACING
    affine = case.scan.affine.copy()
    affine[:3, :3] *= np.asarray(sizes) / np.linalg.norm(affine[:3, :3], axis=0)
    spacing = sizes[0], sizes[1], sizes[2]
    return Case(replace(case.scan, affine=affine, spacing=spacing, header=None), case.truth)


def resampled(case: Case, pixel_spacing: float) -> Case:
    """Resample in plane to pixels of ``pixel_spacing`` mm, as if scanned so: the middle stays in its place.

    Intensities linearly, smoothed first where pixels get larger, as larger pixels average; the truth by nearest
    neighbour.

    Args:
        case: Of known spacing.
        pixel_spacing: In mm.

    Raises:
        ValueError: If the spacing is unknown.
    """
    scan = case.scan
    if scan.spacing is None:
        raise ValueError(f"scan must have a known spacing, got None for {scan.source}")
    steps = np.full(3, pixel_spacing) / scan.spacing  # of the old grid, per voxel of the new one
    steps[_slice_axis(case)] = 1
    old_shape = np.asarray(scan.spatial_shape)
    shape = tuple(int(size) for size in np.round(old_shape / steps))
    offset = (old_shape - 1) / 2 - steps * (np.asarray(shape) - 1) / 2
    sigma = np.sqrt(np.clip(steps**2 - 1, 0, None)) / FULL_WIDTH

    def sample(volume: NDArray[Any], order: int) -> NDArray[Any]:
        result: NDArray[Any] = ndimage.affine_transform(
            volume, np.diag(steps), offset, shape, order=order, mode="nearest"
        )
        return result

    image = np.stack([sample(ndimage.gaussian_filter(channel, sigma), 1) for channel in scan.image])
    to_old = np.diag([*steps, 1.0])
    to_old[:3, 3] = offset
    first, second, third = (float(size) for size in steps * scan.spacing)
    new = replace(scan, image=image, affine=scan.affine @ to_old, spacing=(first, second, third), header=None)
    return Case(new, sample(case.truth.astype(np.uint8), 0) > 0)


def without_lesion(case: Case) -> Case | None:
    """Leave out every slice with lesion; None where each has some."""
    axis = _slice_axis(case)
    empty = np.flatnonzero(~case.truth.any(axis=tuple({0, 1, 2} - {axis})))
    if len(empty) == 0:
        return None
    scan = replace(case.scan, image=case.scan.image.take(empty, axis=axis + 1), header=None)
    return Case(scan, case.truth.take(empty, axis=axis))


def _slice_axis(case: Case) -> int:
    """Return the axis that runs closest to the body's length: 0, 1 or 2."""
    return int(np.flatnonzero(orientations.io_orientation(case.scan.affine)[:, 0] == 2)[0])


# --- changes of intensity -----------------------------------------------------------------------------


def with_gamma(case: Case, gamma: float) -> Case:
    """Raise each channel, rescaled to 0 to 1, to the power ``gamma``, and scale it back; above 1 darkens its middle.

    Air takes part, or an edge would appear where the head ends.
    """

    def change(channel: NDArray[np.float32]) -> NDArray[np.float32]:
        low, high = channel.min(), channel.max()
        changed: NDArray[np.float32] = low + (high - low) * ((channel - low) / max(high - low, 1e-6)) ** gamma
        return changed

    return _with_image(case, map(change, case.scan.image))


def with_bias_field(case: Case, low: float = 0.7, high: float = 1.3) -> Case:
    """Multiply all channels by one smooth field that runs from ``low`` to ``high`` across the head.

    A cubic polynomial with random coefficients, as Van Leemput et al. 1999 model coils ("Automated model-based bias
    field correction of MR images of the brain").
    """
    coefficients = np.random.default_rng(SEED).uniform(-1, 1, (4, 4, 4))
    coefficients[np.add.outer(np.add.outer(range(4), range(4)), range(4)) > 3] = 0
    first, second, third = (np.linspace(-1, 1, size) for size in case.scan.spatial_shape)
    field = np.polynomial.legendre.leggrid3d(first, second, third, coefficients)
    inside = field[find_head(case.scan.flair)]
    field = low + (high - low) * (field - inside.min()) / (inside.max() - inside.min())
    return _with_image(case, case.scan.image * np.clip(field, low, high))


def with_noise(case: Case, share: float = 0.05) -> Case:
    """Add Gaussian noise, its standard deviation ``share`` of each channel's maximum."""
    noise = np.random.default_rng(SEED).standard_normal(case.scan.image.shape, dtype=np.float32)
    return _with_image(case, case.scan.image + share * case.scan.image.max(axis=(1, 2, 3), keepdims=True) * noise)


def flair_alone(case: Case) -> Case:
    """Leave t1 and t1c out."""
    return _with_image(case, case.scan.image[FLAIR_CHANNEL : FLAIR_CHANNEL + 1])


def _with_image(case: Case, channels: Iterable[NDArray[Any]]) -> Case:
    image = np.stack([channel.astype(np.float32) for channel in channels])
    return Case(replace(case.scan, image=image), case.truth)


# --- measuring ----------------------------------------------------------------------------------------


def changes() -> list[Change]:
    """Return all changes, the unchanged case first."""

    def spaced(pixel_spacing: float) -> Callable[[Case], Case]:
        return lambda case: resampled(with_spacing(case), pixel_spacing)

    def turned(codes: str) -> Callable[[Case], Case]:
        return lambda case: reoriented(case, codes)

    return [
        Change("unchanged", lambda case: case, 0.0),
        Change(f"spacing of {TRAINING_PIXEL_SPACING} mm told, nothing resampled", with_spacing, 0.0),
        *(Change(f"re-oriented to {codes}", turned(codes), 0.002) for codes in ORIENTATIONS),
        *(Change(f"resampled to {size} mm in plane", spaced(size), 0.02) for size in (0.7, 1.3)),
        Change("gamma 0.7", lambda case: with_gamma(case, 0.7), 0.03),
        Change("gamma 1.5", lambda case: with_gamma(case, 1.5), 0.03),
        Change("bias field, 0.7 to 1.3", with_bias_field, 0.03),
        Change("Gaussian noise, 5 % of the maximum", with_noise, 0.03),
        Change("FLAIR alone", flair_alone, 0.015),
    ]


def read_cases(data: Path, fold: int, limit: int | None = None) -> Iterator[tuple[str, Case]]:
    """Yield the patients of a fold by name, one after the other."""
    for entry in datalist_entries(data, fold, "validation")[:limit]:
        t1, flair, t1c = map(Path, entry["image"])
        yield entry["subject"], Case(read_scan(flair, t1, t1c), read_mask(Path(entry["label"])).mask)


def measure(predictor: Segments, cases: Iterable[tuple[str, Case]], wanted: Sequence[Change]) -> dict[str, Any]:
    """Segment every case with every change.

    Returns:
        ``changes``: of each its name, mean Dice, what that lost against the first, what it may lose, whether it
        does not lose more, and each patient's Dice. ``lesion_free``: see ``lesion_free_summary``.
    """
    dice: dict[str, dict[str, float]] = {change.name: {} for change in wanted}
    spurious: dict[str, dict[str, float | None]] = {}
    for subject, case in cases:
        for change in wanted:
            changed = change.apply(case)
            dice[change.name][subject] = count_confusion(predictor.predict(changed.scan).mask, changed.truth).dice
        empty = without_lesion(case)
        if empty is not None:
            spurious[subject] = false_positives(predictor.predict(empty.scan).mask, empty)
        print(f"{subject}: Dice {dice[wanted[0].name][subject]:.3f} unchanged", file=sys.stderr, flush=True)
    means = {name: statistics.fmean(values.values()) for name, values in dice.items()}
    rows = []
    for change in wanted:
        lost = means[wanted[0].name] - means[change.name]
        row = {"change": change.name, "mean_dice": means[change.name], "lost": lost, "allowed": change.allowed}
        rows.append({**row, "reached": lost <= change.allowed, "dice": dice[change.name]})
    return {"changes": rows, "lesion_free": lesion_free_summary(spurious)}


def false_positives(mask: NDArray[np.uint8], case: Case) -> dict[str, float | None]:
    """Return the voxels of a mask where there is no lesion at all, and their volume where the spacing is known."""
    voxels = int(np.count_nonzero(mask))
    spacing = case.scan.spacing
    return {"voxels": voxels, "ml": None if spacing is None else voxels * math.prod(spacing) / MM3_PER_ML}


def lesion_free_summary(spurious: dict[str, dict[str, float | None]]) -> dict[str, Any]:
    """Return how many volumes without lesion get a mask without any voxel, and how large the others' are."""
    summary: dict[str, Any] = {"volumes": len(spurious), "patients": spurious}
    summary["without_false_positives"] = sum(found["voxels"] == 0 for found in spurious.values())
    for unit in ("voxels", "ml"):
        sizes = [size for found in spurious.values() if (size := found[unit]) is not None]
        summary[f"median_{unit}"] = statistics.median(sizes) if sizes else None
        summary[f"largest_{unit}"] = max(sizes) if sizes else None
    return summary


# --- results ------------------------------------------------------------------------------------------


def markdown_table(result: dict[str, Any]) -> str:
    """Return what was measured as a markdown table, with a line on volumes without lesion."""
    lines = ["| change | mean Dice | lost | allowed | reached |", "|---|---:|---:|---:|---|"]
    for number, row in enumerate(result["changes"]):
        cells = [row["change"], f"{row['mean_dice']:.4f}"]
        kept = "yes" if row["reached"] else "no"
        # Adding 0 makes a rounded -0.0 plain.
        cells += ["", "", ""] if number == 0 else [f"{round(row['lost'], 4) + 0.0:.4f}", f"{row['allowed']:.3f}", kept]
        lines.append(f"| {' | '.join(cells)} |")
    free = result["lesion_free"]
    if not free["volumes"]:
        return "\n".join([*lines, "", "No patient has a slice without lesion."])
    sizes = f"median {free['median_voxels']:g}, largest {free['largest_voxels']:g} voxels"
    if free["median_ml"] is not None:
        sizes += f" ({free['median_ml']:.2f} and {free['largest_ml']:.2f} ml)"
    kept = f"{free['without_false_positives']} of {free['volumes']} volumes"
    return "\n".join([*lines, "", f"Slices without lesion alone: {kept} get no lesion; false positives: {sizes}."])


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw what each change lost beside what it may lose.

    Raises:
        AR2UNetError: If the picture cannot be written.
    """
    from matplotlib.figure import Figure

    rows = result["changes"][1:]
    figure = Figure(figsize=(7, 0.35 * len(rows) + 1), layout="constrained")
    axes = figure.add_subplot()
    colors = ["#2f5d8a" if row["reached"] else "#b3402e" for row in rows]
    axes.barh([row["change"] for row in rows], [row["lost"] for row in rows], color=colors)
    axes.plot([row["allowed"] for row in rows], range(len(rows)), "|", color="black", markersize=14, label="allowed")
    axes.invert_yaxis()
    axes.set_xlabel(f"mean Dice lost against {result['changes'][0]['mean_dice']:.3f}")
    axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise AR2UNetError(f"{path}: cannot be written: {error.strerror or error}") from error


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA", help="as `ar2unet prepare` writes it")
    parser.add_argument("--fold", type=int, required=True, help="whose patients are segmented")
    parser.add_argument("--bundle", type=Path, default=SEGMENTATION_BUNDLE, help="default: the shipped one")
    parser.add_argument("--checkpoint", type=Path, metavar="PT", help="weights in place of the bundle's own")
    parser.add_argument("--network", type=Path, metavar="FILE", help="config on top, with --checkpoint")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N patients, for trying out")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results here, too")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw them here")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and return the exit code."""
    options = parse_arguments(arguments)
    try:
        if options.limit is not None and options.limit < 1:
            raise AR2UNetError(f"--limit must be at least 1, got {options.limit}")
        if options.network is not None and options.checkpoint is None:
            raise AR2UNetError("--network needs the --checkpoint of such a network")
        with tempfile.TemporaryDirectory() as folder:
            bundle = options.bundle
            if options.checkpoint is not None:
                bundle = bundle_with(options.checkpoint, bundle, Path(folder, "bundle"), options.network)
            predictor = Predictor(bundle)
            result = measure(predictor, read_cases(options.data, options.fold, options.limit), changes())
        print(markdown_table(result))
        if options.json is not None:
            weights = {"weights_sha256": predictor.weights_sha256, "bundle_version": predictor.version}
            write_summary(options.json, {"fold": options.fold, **weights, **result})
        if options.plot is not None:
            plot(result, options.plot)
    except AR2UNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
