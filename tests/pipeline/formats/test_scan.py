from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from pipeline.formats.scan import CHANNELS, Scan
from transforms.geometry import FLAIR_CHANNEL


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"image": np.zeros((2, 5, 6, 7), np.float32)}, r"got shape \(2, 5, 6, 7\)"),
        ({"image": np.zeros((1, 5, 6, 7))}, "got float64"),
        ({"affine": np.eye(3)}, "affine must be"),
        ({"spacing": (1, 0, 1)}, r"got \(1, 0, 1\)"),
    ],
)
def test_a_scan_that_makes_no_sense_cannot_be_built(fields, expected):
    sane = {"image": np.zeros((1, 5, 6, 7), np.float32), "affine": np.eye(4), "spacing": None, "source": "x"}
    with pytest.raises(ValueError, match=expected):
        Scan(**{**sane, **fields})


def test_flair_lies_where_the_transforms_look_for_it():
    assert CHANNELS[FLAIR_CHANNEL] == "flair"
    image = np.arange(630, dtype=np.float32).reshape(3, 5, 6, 7)
    np.testing.assert_array_equal(Scan(image, np.eye(4), None, "three sequences").flair, image[1])
    np.testing.assert_array_equal(Scan(image[2:], np.eye(4), None, "FLAIR alone").flair, image[2])


def test_refusing_a_scan_imports_nothing_slow():
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipeline.errors import ScanError\n"
        "from pipeline.formats.nifti import read_scan\n"
        "try:\n"
        "    read_scan(Path('nowhere.nii.gz'))\n"
        "except ScanError:\n"
        "    print([name for name in ('scipy.ndimage', 'torch', 'monai', 'matplotlib') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
