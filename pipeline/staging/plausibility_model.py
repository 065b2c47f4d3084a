"""The plausibility model's file, and the fit to the training subjects that makes it.

    python -m pipeline.staging.plausibility_model DATA models/plausibility.json

DATA is what ``ar2unet prepare dementia`` wrote.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import AR2UNetError, BundleError, DatasetError
from pipeline.formats.atomic import atomic_write
from pipeline.staging.frame import SLICES
from pipeline.staging.plausibility import (
    FEATURES,
    FOREGROUND,
    POOLED,
    Floats,
    PlausibilityModel,
    Template,
    describe_slices,
    pool,
    scale_intensities,
)

__all__ = ["MILD", "fit_plausibility", "fit_template", "read_plausibility", "write_plausibility"]

FALSE_ALARM = 0.02  # share of suitable inputs that may be warned of, divided evenly among the features' limits
PARTS = 5  # of the subjects, each left out in turn to set the limits
EVERY = 4  # slices of a subject, one counts as a single slice: neighbours are much alike
FORMAT = 1
# A template is stored as 8-bit numbers: 0 to this, which no mean slice reaches.
TEMPLATE_MAXIMUM = 1.5


def _noisy(slices: Floats) -> Floats:
    noise = np.random.default_rng(0).normal(0, 0.02 * slices.max(), slices.shape)
    return np.asarray(slices + (slices > 0) * noise, dtype=np.float32)


# What slices may have gone through and still be suitable.
MILD: Mapping[str, Callable[[Floats], Floats]] = {
    "unchanged": lambda slices: slices,
    "gamma 0.85": lambda slices: np.asarray(slices.max() * (slices / slices.max()).clip(0) ** 0.85),
    "gamma 1.2": lambda slices: np.asarray(slices.max() * (slices / slices.max()).clip(0) ** 1.2),
    "moved by one pixel": lambda slices: np.roll(slices, (1, -1), axis=(-2, -1)),
    "2 % noise": _noisy,
}


def fit_template(subjects: Sequence[Floats]) -> Template:
    """Average subjects ``(32, rows, columns)`` of raw intensities at each height."""
    return _average([_pooled(slices) for slices in subjects])


def fit_plausibility(subjects: Sequence[Floats], *, false_alarm: float = FALSE_ALARM) -> PlausibilityModel:
    """Fit the template to subjects, and the limits to left-out subjects, unchanged and mildly changed.

    Limits are quantiles over subjects that the template does not know: it always resembles its own. Each subject
    counts as it is and with one of the changes, in turn.

    Args:
        subjects: Raw intensities ``(32, rows, columns)`` each.
        false_alarm: Share of left-out single slices, and of left-out subjects, that may lie beyond a limit.

    Raises:
        ValueError: If there are fewer than two subjects.
    """
    if len(subjects) < 2:
        raise ValueError(f"subjects must be at least 2, got {len(subjects)}")
    unchanged, *changes = MILD.values()
    pooled = [_pooled(slices) for slices in subjects]
    single: list[NDArray[np.float64]] = []
    whole: list[NDArray[np.float64]] = []
    for part in range(min(PARTS, len(subjects))):
        template = _average([images for number, images in enumerate(pooled) if number % PARTS != part])
        for number, slices in enumerate(subjects[part::PARTS]):
            for change in (unchanged, changes[number % len(changes)]):
                scaled = scale_intensities(change(slices))
                whole.append(describe_slices(scaled, template).mean(axis=0))
                some = range(number % EVERY, SLICES, EVERY)
                single.extend(describe_slices(scaled[k : k + 1], template)[0] for k in some)
    return PlausibilityModel(_average(pooled), _limits(single, false_alarm), _limits(whole, false_alarm))


def _pooled(slices: Floats) -> Floats:
    """Return what a template is averaged from, ``(2, 32, *POOLED)``: intensities and foreground."""
    scaled = scale_intensities(slices)
    return np.stack([pool(scaled), pool((scaled > FOREGROUND).astype(np.float32))])


def _average(pooled: Sequence[Floats]) -> Template:
    mean, coverage = np.mean(pooled, axis=0)
    return _rounded(Template(mean, coverage))


def _limits(descriptions: Sequence[NDArray[np.float64]], false_alarm: float) -> NDArray[np.float64]:
    share = false_alarm / sum(feature.has_low + feature.has_high for feature in FEATURES)
    lows, highs = np.quantile(np.array(descriptions), (share, 1 - share), axis=0)
    limits = [
        (low if feature.has_low else -np.inf, high if feature.has_high else np.inf)
        for feature, low, high in zip(FEATURES, lows, highs, strict=True)
    ]
    return np.array(limits)


def write_plausibility(model: PlausibilityModel, path: Path) -> None:
    """Write a model as JSON.

    Raises:
        AR2UNetError: If the file cannot be written.
    """
    limits = {
        name: {
            feature.name: [None if np.isinf(bound) else round(float(bound), 5) for bound in row]
            for feature, row in zip(FEATURES, rows, strict=True)
        }
        for name, rows in (("slice", model.slice_limits), ("volume", model.volume_limits))
    }
    template = {
        name: base64.b64encode(_to_bytes(values)).decode()
        for name, values in (("mean", model.template.mean), ("coverage", model.template.coverage))
    }
    content = {
        "format": FORMAT,
        "about": "usual ranges of simple properties of the training subjects' slices, low and high; mean slices as "
        f"base64 of uint8 {(SLICES, *POOLED)}, 255 being {TEMPLATE_MAXIMUM}",
        "limits": limits,
        "template": template,
    }
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def read_plausibility(path: Path) -> PlausibilityModel:
    """Read a model that ``write_plausibility`` wrote.

    Raises:
        BundleError: If the file is missing, damaged, or of other features than these.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        rows = {name: [content["limits"][name][feature.name] for feature in FEATURES] for name in ("slice", "volume")}
        limits = {name: _read_limits(found) for name, found in rows.items()}
        template = Template(*(_from_text(content["template"][name]) for name in ("mean", "coverage")))
        known = content["format"] == FORMAT
    except (OSError, ValueError, TypeError, KeyError, binascii.Error) as error:
        raise BundleError(f"{path} must be a plausibility model, got {type(error).__name__}: {error}") from error
    if not known:
        raise BundleError(f"{path} must be a plausibility model of format {FORMAT}, got {content['format']!r}")
    return PlausibilityModel(template, limits["slice"], limits["volume"])


def _read_limits(rows: Sequence[Sequence[float | None]]) -> NDArray[np.float64]:
    limits = [(-np.inf if low is None else float(low), np.inf if high is None else float(high)) for low, high in rows]
    if np.isnan(limits).any():
        raise ValueError("a limit is not a number")
    return np.array(limits)


def _rounded(template: Template) -> Template:
    """Return a template as its file will give it back."""
    return Template(*(_from_text(base64.b64encode(_to_bytes(part))) for part in (template.mean, template.coverage)))


def _to_bytes(values: Floats) -> bytes:
    return (values * (255 / TEMPLATE_MAXIMUM)).round().clip(0, 255).astype(np.uint8).tobytes()


def _from_text(text: str | bytes) -> Floats:
    stored = np.frombuffer(base64.b64decode(text, validate=True), np.uint8).reshape(SLICES, *POOLED)
    return np.asarray(stored * (TEMPLATE_MAXIMUM / 255), dtype=np.float32)


def read_subjects(data: Path) -> Iterator[tuple[dict[str, Any], Floats]]:
    """Yield each entry of a prepared data set's list with its raw slices ``(32, rows, columns)``.

    Raises:
        DatasetError: If there is no such list.
        ScanError: If a volume cannot be read.
    """
    from pipeline.staging.reading import read_slices

    try:
        entries = json.loads((data / "datalist.json").read_bytes())["training"]
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"{data} must be what ar2unet prepare dementia wrote, got {error}") from error
    for entry in entries:
        yield entry, read_slices(data / entry["image"]).slices


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit the model to a prepared data set and write it; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="what ar2unet prepare dementia wrote")
    parser.add_argument("output", type=Path, help="JSON to write")
    options = parser.parse_args(arguments)
    try:
        write_plausibility(fit_plausibility([slices for _, slices in read_subjects(options.data)]), options.output)
    except AR2UNetError as error:
        sys.stderr.write(f"plausibility_model: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
