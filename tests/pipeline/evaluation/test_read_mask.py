"""``pipeline.formats.nifti.read_mask``: zeros and ones on their grid, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import ScanError
from pipeline.formats.nifti import read_mask


def test_a_mask_comes_with_its_grid(save_mask, mask_of, make_affine):
    mask = mask_of((1, 2, 3), (10, 12, 6))
    read = read_mask(save_mask("a.nii.gz", mask, orientation="PSR"))
    np.testing.assert_array_equal(read.mask, mask.astype(bool))
    assert read.mask.dtype == bool
    np.testing.assert_allclose(read.affine, make_affine("PSR"), atol=1e-6)
    assert read.spacing == pytest.approx((0.9, 1.1, 4.5))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_any_type_may_hold_a_mask(save_mask, mask_of, dtype):
    assert read_mask(save_mask("a.nii", mask_of((4, 5, 6)).astype(dtype))).mask.sum() == 1


@pytest.mark.parametrize("value", [0, 1])
def test_a_mask_may_be_the_same_everywhere(save_mask, mask_of, value):
    assert set(np.unique(read_mask(save_mask("a.nii", mask_of() + np.uint8(value))).mask)) == {bool(value)}


def test_a_spacing_that_nobody_wrote_is_unknown(save_mask, mask_of):
    path = save_mask("a.nii", mask_of(), affine=np.diag([-1.0, -1, 1, 1]), unit="unknown")
    assert read_mask(path).spacing is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 255], "expected a mask of 0 and 1, got 0, 255"),
        ([0, 1, 2], "got 0, 1, 2"),
        ([0, 0.5], "got 0, 0.5"),
        ([0, -1], "got -1, 0"),
        ([0, 1, 2, 3, 4, 5, 6], r"got 0, 1, 2, 3, 4, \.\.\. \(7 values\)"),
        ([0, np.nan], "finite"),
    ],
)
def test_other_values_are_refused_and_named(save_mask, mask_of, values, words):
    mask = mask_of().astype(np.float32)
    mask.flat[: len(values)] = values
    with pytest.raises(ScanError, match=rf"a\.nii: .*{words}"):
        read_mask(save_mask("a.nii", mask))


def test_a_truncated_mask_is_refused(save_mask, mask_of):
    path = save_mask("a.nii", mask_of())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ScanError, match="truncated"):
        read_mask(path)
