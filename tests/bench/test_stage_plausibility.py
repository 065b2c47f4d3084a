"""The table of inputs that the staging model does not know: what is made of a slice before it is judged."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from pipeline.staging.frame import COLUMNS, ROWS


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "bench" / "stage_plausibility.py"
    spec = importlib.util.spec_from_file_location("stage_plausibility", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_change_keeps_the_frame_and_changes_something(script):
    slices = np.random.default_rng(0).uniform(20, 200, (5, ROWS, COLUMNS)).astype(np.float32)
    for name, change in script.UNSUITABLE.items():
        changed = change(slices)
        assert changed.shape == slices.shape, name
        assert np.abs(changed - slices).mean() > 1, name


@pytest.mark.parametrize("shape", [(ROWS + 30, COLUMNS - 20), (50, 300)])
def test_an_image_is_cut_and_padded_about_its_middle(shape, script):
    image = np.zeros(shape, np.float32)
    image[shape[0] // 2, shape[1] // 2] = 7
    fitted = script.fit_frame(image)
    assert fitted.shape == (ROWS, COLUMNS)
    assert fitted[ROWS // 2, COLUMNS // 2] == 7


def test_what_is_foreground_fills_the_brains_box(script):
    image = np.zeros((90, 70), np.float32)
    image[20:50, 10:60] = 100
    boxed = script.in_brain_box(image, image > 0)
    rows, columns = np.nonzero(boxed)
    assert (rows.min(), rows.max() + 1) == (script.BRAIN[0].start, script.BRAIN[0].stop)
    assert (columns.min(), columns.max() + 1) == (script.BRAIN[1].start, script.BRAIN[1].stop)


def test_pictures_of_other_things_are_of_the_frame_and_told_apart_by_color(script):
    colors = {}
    for name, image, color in script.other_pictures():
        assert image.shape == (ROWS, COLUMNS), name
        colors.setdefault(name, []).append(color)
    assert min(colors["color photograph"]) > 0
    assert max(colors["grey photograph"]) == 0
