"""The examples of docs/api.md run as they stand, and find the same lesion."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.datasets.phantom import load_sample

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
EXAMPLES = re.findall(
    r"^## (.+?)\n.*?^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


@pytest.mark.slow
@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_an_example_finds_the_lesion_of_the_sample(title, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = nib.load(load_sample().flair)
    nib.save(image, "flair.nii.gz")
    shutil.copy(load_sample().truth, "truth.nii.gz")
    names = {}
    exec(compile(code, f"docs/api.md: {title}", "exec"), names)
    if "result" in names:
        mask = np.asarray(nib.load(names["result"].mask).dataobj)
    elif "prediction" in names:
        mask = names["prediction"].mask
    else:
        mask = names["data"]["pred"][0].numpy()
    truth = np.asarray(nib.load("truth.nii.gz").dataobj)
    assert mask.shape == truth.shape
    assert 2 * (mask * truth).sum() / (mask.sum() + truth.sum()) > 0.6
    assert capsys.readouterr().out.count("\n") >= 1


def test_there_are_three_examples():
    assert len(EXAMPLES) == 3
