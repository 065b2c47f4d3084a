"""Measure how well the plausibility check tells unsuitable inputs from FLAIR scans, and fit it.

    python bench/plausibility.py DATA --fold 0            # a prepared data set (ar2unet prepare)
    python bench/plausibility.py DATA --fold 0 1 2 3 4 --json plausibility.json
    python bench/plausibility.py DATA --write bundles/flair_abnormality_segmentation/models/plausibility.json

The model is fitted on the patients outside of a fold: on their scans as they are and mildly changed, and on the few
corruptions that hide among those. The fold's patients then say how often it raises a false alarm, and how many
corrupted inputs it finds. A mirror image is not among them: nothing in a head tells left from right.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.confidence.plausibility import PlausibilityModel, describe, fit_model, write_model
from pipeline.formats.nifti import read_scan
from transforms.geometry import FLAIR_CHANNEL, find_slice_frame, to_slice_frame
from transforms.intensity import find_head, normalize_intensity

Volume = NDArray[np.float32]
# From the raw sequences (t1, flair, t1c; I, J, K; axes to left, posterior, superior) to one raw volume.
Change = Callable[[Volume, np.random.Generator], Volume]

Description = NDArray[np.float64]

PIXELS_AVERAGED = 2  # in either direction, before anything else
HEAD_HEIGHT = 160 // PIXELS_AVERAGED  # pixels
SLICE_STEP = 6 // PIXELS_AVERAGED  # pixels between the slices of a scan in another plane
FALSE_ALARM = 0.03  # of suitable scans, unchanged or mildly changed
NAME_OF_SEQUENCE = {"t1": "T1 given as FLAIR", "t1c": "T1 with contrast given as FLAIR"}


class Score(NamedTuple):
    """Of how many patients' scans how many raised a warning, and how far they lay from the training scans."""

    patients: int
    warned: int
    distance: float


def as_the_network_sees(volume: Volume) -> Volume:
    """Bring a raw volume ``(I, J, K)`` of unknown spacing, axes to L, P, S, into the slice frame, normalised."""
    image = volume[None]
    frame = find_slice_frame(image, np.diag([-1.0, -1.0, 1.0, 1.0]), None)
    seen: Volume = normalize_intensity(to_slice_frame(image, frame).astype(np.float32))[0]
    return seen


def unchanged(scan: Volume, rng: np.random.Generator) -> Volume:
    """Return FLAIR as it is."""
    return np.asarray(scan[FLAIR_CHANNEL])


# What a scan may well be like.


def gamma(exponent: float) -> Change:
    """Return a change of the intensity scale."""

    def change(scan: Volume, rng: np.random.Generator) -> Volume:
        flair = scan[FLAIR_CHANNEL]
        return np.asarray((flair / flair.max()) ** exponent, dtype=np.float32)

    return change


def shaded(scan: Volume, rng: np.random.Generator) -> Volume:
    """Multiply by a smooth field, as an uneven coil does: from about two thirds to one and a half."""
    axes = np.ogrid[tuple(slice(-1, 1, complex(size)) for size in scan.shape[1:])]
    linear, square = rng.uniform(-1, 1, (2, 3))
    field = sum(a * axis + b * axis**2 for a, b, axis in zip(linear, square, axes, strict=True))
    field = field - field.mean()
    return np.asarray(scan[FLAIR_CHANNEL] * np.exp(0.4 * field / np.abs(field).max()), dtype=np.float32)


def noisy(scan: Volume, rng: np.random.Generator) -> Volume:
    """Add Rician noise of 5 % of the brightest tissue, less what the averaging of pixels takes away."""
    flair = scan[FLAIR_CHANNEL]
    sigma = 0.05 * np.percentile(flair, 99.5) / PIXELS_AVERAGED
    real, imaginary = flair + rng.normal(0, sigma, flair.shape), rng.normal(0, sigma, flair.shape)
    return np.asarray(np.hypot(real, imaginary), dtype=np.float32)


def coarser(scan: Volume, rng: np.random.Generator) -> Volume:
    """Take pixels a third larger and every other slice."""
    return np.asarray(ndimage.zoom(scan[FLAIR_CHANNEL, ..., ::2], (0.75, 0.75, 1), order=1), dtype=np.float32)


def finer(scan: Volume, rng: np.random.Generator) -> Volume:
    """Take pixels and slices of two thirds of their size."""
    return np.asarray(ndimage.zoom(scan[FLAIR_CHANNEL], (1.5, 1.5, 1.5), order=1), dtype=np.float32)


def smaller_view(scan: Volume, rng: np.random.Generator) -> Volume:
    """Leave out the lowest 15 % of the slices, and all that lies above the head."""
    flair = scan[FLAIR_CHANNEL]
    height = np.flatnonzero(find_head(flair).any(axis=(0, 1)))
    return np.asarray(flair[..., height[0] + round(0.15 * len(height)) : height[-1] + 1], dtype=np.float32)


def fat_suppressed(scalp: float, neck: float) -> Change:
    """Return the change that darkens the scalp, and the fat of face and neck in the lowest fifth of the slices."""

    def change(scan: Volume, rng: np.random.Generator) -> Volume:
        flair = scan[FLAIR_CHANNEL]
        head = find_head(flair)
        height = np.flatnonzero(head.any(axis=(0, 1)))
        brightness = np.where(_depth(head) < 0.15, scalp, 1.0)
        brightness[..., : height[0] + len(height) // 5] *= neck
        return np.asarray(flair * brightness, dtype=np.float32)

    return change


def skull_stripped(scan: Volume, rng: np.random.Generator) -> Volume:
    """Leave about the brain: the head without its outer sixth and the lowest fourth of its slices."""
    flair = scan[FLAIR_CHANNEL]
    brain = _depth(find_head(flair)) > 0.17
    height = np.flatnonzero(brain.any(axis=(0, 1)))
    brain[..., : height[0] + len(height) // 4] = False
    return np.where(brain, flair, 0).astype(np.float32)


# What the network does not know.


def sequence(channel: int) -> Change:
    """Return the change that takes another sequence for FLAIR."""

    def change(scan: Volume, rng: np.random.Generator) -> Volume:
        return np.asarray(scan[channel])

    return change


def inverted(scan: Volume, rng: np.random.Generator) -> Volume:
    """Exchange dark and bright inside of the head; air stays dark."""
    flair = scan[FLAIR_CHANNEL]
    high = np.percentile(flair, 99.5)
    return np.where(_filled(find_head(flair)), np.clip(high - flair, 0, high), 0).astype(np.float32)


def negative(scan: Volume, rng: np.random.Generator) -> Volume:
    """Exchange dark and bright everywhere."""
    return np.asarray(scan[FLAIR_CHANNEL].max() - scan[FLAIR_CHANNEL], dtype=np.float32)


def computed_tomography(scan: Volume, rng: np.random.Generator) -> Volume:
    """Give the head Hounsfield-like values: scalp -50, skull 900, brain 35 with little contrast, air -1000."""
    flair = scan[FLAIR_CHANNEL]
    depth = _depth(find_head(flair))
    brain = 35 + 8 * np.clip(flair / np.median(flair[depth > 0.17]) - 1, -2, 1)
    values = np.select([depth == 0, depth < 0.07, depth < 0.16], [-1000, -50, 900], brain)
    return np.asarray(values + rng.normal(0, 6, flair.shape), dtype=np.float32)


def windowed_tomography(scan: Volume, rng: np.random.Generator) -> Volume:
    """Clip the CT to a brain window, 0 to 80."""
    return np.clip(computed_tomography(scan, rng), 0, 80)


def white_noise(scan: Volume, rng: np.random.Generator) -> Volume:
    """Return a volume of nothing but noise."""
    return rng.uniform(0, 255, scan.shape[1:]).astype(np.float32)


def noise_sphere(scan: Volume, rng: np.random.Generator) -> Volume:
    """Return a ball full of smooth noise."""
    shape = scan.shape[1:]
    noise = ndimage.gaussian_filter(rng.normal(0, 1, shape), (4, 4, 1))
    return np.where(_radius(shape) < 0.8, 100 + 30 * noise / noise.std(), 0).astype(np.float32)


def bottle(scan: Volume, rng: np.random.Generator) -> Volume:
    """Return a bottle of water: an even cylinder with 2 % noise."""
    shape = scan.shape[1:]
    inside = _radius((*shape[:2], 1)) < 0.7
    return np.hypot(np.where(inside, 200, 0) + rng.normal(0, 4, shape), rng.normal(0, 4, shape)).astype(np.float32)


def sagittal(scan: Volume, rng: np.random.Generator) -> Volume:
    """Name slices across left and right axial: rows to posterior, columns to inferior."""
    return _tall(scan[FLAIR_CHANNEL, ::SLICE_STEP]).transpose(1, 2, 0)[:, ::-1]


def coronal(scan: Volume, rng: np.random.Generator) -> Volume:
    """Name slices across front and back axial: rows to left, columns to inferior."""
    return _tall(scan[FLAIR_CHANNEL, :, ::SLICE_STEP]).transpose(0, 2, 1)[:, ::-1]


def cut(axis: int, side: int) -> Change:
    """Return the change that leaves a third of the head, along an axis, outside of the field of view."""

    def change(scan: Volume, rng: np.random.Generator) -> Volume:
        flair = scan[FLAIR_CHANNEL]
        extent = np.flatnonzero(find_head(flair).any(axis=tuple({0, 1, 2} - {axis})))
        third = len(extent) // 3
        kept = slice(extent[0] + third, None) if side == 0 else slice(None, extent[-1] + 1 - third)
        return np.asarray(flair[(*[slice(None)] * axis, kept)])

    return change


def flipped(axis: int) -> Change:
    """Return the change that runs an axis backwards under the same affine."""

    def change(scan: Volume, rng: np.random.Generator) -> Volume:
        return np.flip(scan[FLAIR_CHANNEL], axis)

    return change


MILD: Mapping[str, Change] = {
    "unchanged": unchanged,
    "gamma 0.7": gamma(0.7),
    "gamma 1.5": gamma(1.5),
    "bias field": shaded,
    "5 % noise": noisy,
    "coarser pixels, half the slices": coarser,
    "finer pixels and slices": finer,
    "smaller field of view": smaller_view,
    "fat suppressed": fat_suppressed(scalp=0.25, neck=1.0),
    "fat strongly suppressed": fat_suppressed(scalp=0.12, neck=0.35),
    "skull-stripped": skull_stripped,
}
CORRUPTIONS: Mapping[str, Change] = {
    "T1 given as FLAIR": sequence(0),
    "T1 with contrast given as FLAIR": sequence(2),
    "CT": computed_tomography,
    "CT in a brain window": windowed_tomography,
    "dark and bright exchanged in the head": inverted,
    "negative": negative,
    "white noise": white_noise,
    "ball of smooth noise": noise_sphere,
    "bottle": bottle,
    "sagittal slices named axial": sagittal,
    "coronal slices named axial": coronal,
    "a third cut off, left": cut(0, 1),
    "a third cut off, front": cut(1, 0),
    "a third cut off, back": cut(1, 1),
    "a third cut off, top": cut(2, 1),
    "front and back exchanged": flipped(1),
    "slices in reverse order": flipped(2),
}
# Failures so much like a suitable scan that the model has to be shown them: only for these does the table say how
# well it knows what it was fitted to. To all the others it was blind.
HIDDEN: Mapping[str, str] = {
    "T1 given as FLAIR": "a T1 scan",
    "T1 with contrast given as FLAIR": "a T1 scan with contrast",
    "dark and bright exchanged in the head": "a scan whose dark and bright are exchanged",
    "a third cut off, top": "a head whose top is cut off",
    "front and back exchanged": "a scan whose front and back are exchanged",
}


def _filled(head: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.stack([ndimage.binary_fill_holes(head[..., k]) for k in range(head.shape[2])], axis=-1)


def _depth(head: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return how far each pixel of a slice lies from the head's outline: 0 outside, 1 deepest in the head."""
    filled = _filled(head)
    depth = np.stack([ndimage.distance_transform_edt(filled[..., k]) for k in range(head.shape[2])], axis=-1)
    return np.asarray(depth / max(1.0, depth.max()))


def _radius(shape: Sequence[int]) -> NDArray[np.float64]:
    """Return the distance from the volume's center; 1 is the middle of a face."""
    axes = [np.linspace(-1, 1, size) if size > 1 else np.zeros(1) for size in shape]
    return np.asarray(np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True))))


def _tall(flair: Volume) -> Volume:
    """Resample through the slices until a voxel is about as high as it is wide."""
    return np.asarray(ndimage.zoom(flair, (1, 1, HEAD_HEIGHT / flair.shape[2]), order=1), dtype=np.float32)


def read_sequences(data: Path, entry: Mapping[str, Any]) -> Volume:
    """Read t1, flair, t1c ``(3, I, J, K)`` of a patient, pixels averaged for speed: a description does so anyway."""
    t1, flair, t1c = (data / image for image in entry["image"])
    image = read_scan(flair, t1, t1c).image
    step = PIXELS_AVERAGED
    channels, height, width = len(image), image.shape[1] // step, image.shape[2] // step
    kept = np.ascontiguousarray(image[:, : height * step, : width * step])
    return np.asarray(kept.reshape(channels, height, step, width, step, -1).mean(axis=(2, 4)), dtype=np.float32)


def describe_changes(data: Path, entry: Mapping[str, Any], changes: Mapping[str, Change]) -> dict[str, Description]:
    """Describe a patient's scan after each of the changes, without a T1 that is a mere copy of FLAIR."""
    scan = read_sequences(data, entry)
    missing = {NAME_OF_SEQUENCE[name] for name in entry.get("filled", ())}
    seed = zlib.crc32(entry["subject"].encode())
    return {
        name: describe(as_the_network_sees(change(scan, np.random.default_rng(seed))))
        for name, change in changes.items()
        if name not in missing
    }


def fit(patients: Sequence[Mapping[str, Description]]) -> PlausibilityModel:
    """Fit the model to patients' scans, unchanged and mildly changed, and to the failures that hide among them."""
    suitable = [np.stack([found[name] for name in MILD]) for found in patients]
    failures = {
        sentence: np.stack([found[name] for found in patients if name in found]) for name, sentence in HIDDEN.items()
    }
    return fit_model(suitable, failures, false_alarm=FALSE_ALARM)


def measure(model: PlausibilityModel, patients: Sequence[Mapping[str, Description]]) -> dict[str, Score]:
    """Measure how often each change raises a warning."""
    scores = {}
    for name in (*MILD, *CORRUPTIONS):
        distances = [model.distance(found[name]) for found in patients if name in found]
        warned = sum(bool(model.judge(found[name])) for found in patients if name in found)
        scores[name] = Score(len(distances), warned, float(np.median(distances)))
    return scores


def add(first: Mapping[str, Score], second: Mapping[str, Score]) -> dict[str, Score]:
    """Put the scores of two folds together; the distance is their mean, weighted by patients."""
    result = {}
    for name, score in first.items():
        other = second[name]
        patients = score.patients + other.patients
        distance = (score.patients * score.distance + other.patients * other.distance) / max(1, patients)
        result[name] = Score(patients, score.warned + other.warned, distance)
    return result


def markdown(scores: Mapping[str, Score]) -> str:
    """Lay the scores out as a table."""
    lines = ["| input | should warn | fitted to | warned | median distance |", "|---|---|---|---|---|"]
    for name, score in scores.items():
        wanted = "yes" if name in CORRUPTIONS else "no"
        shown = "yes" if name in MILD or name in HIDDEN else "no"
        warned = f"{score.warned} of {score.patients} ({100 * score.warned / max(1, score.patients):.0f} %)"
        lines.append(f"| {name} | {wanted} | {shown} | {warned} | {score.distance:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the measurement as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a prepared data set, the folder of datalist.json")
    parser.add_argument("--fold", type=int, nargs="*", default=[0], help="folds to measure on, each left out in turn")
    parser.add_argument("--write", type=Path, help="fit on all patients and write the model here")
    parser.add_argument("--json", type=Path, help="write the scores here")
    arguments = parser.parse_args()
    entries = json.loads((arguments.data / "datalist.json").read_text())["training"]
    found = {}
    for number, entry in enumerate(entries, 1):
        print(f"{number}/{len(entries)} {entry['subject']}", file=sys.stderr, flush=True)
        names = [*MILD, *(CORRUPTIONS if entry["fold"] in arguments.fold else HIDDEN)]
        changes = {name: {**MILD, **CORRUPTIONS}[name] for name in names}
        found[entry["subject"]] = describe_changes(arguments.data, entry, changes)
    total: dict[str, Score] = {}
    for fold in arguments.fold:
        outside = [found[entry["subject"]] for entry in entries if entry["fold"] != fold]
        inside = [found[entry["subject"]] for entry in entries if entry["fold"] == fold]
        scores = measure(fit(outside), inside)
        total = add(total, scores) if total else scores
    print(markdown(total))
    if arguments.json:
        report = {"folds": arguments.fold, "scores": {name: score._asdict() for name, score in total.items()}}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.write:
        write_model(fit(list(found.values())), arguments.write)


if __name__ == "__main__":
    main()
