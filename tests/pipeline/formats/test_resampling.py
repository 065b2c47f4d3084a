from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import ScanError
from pipeline.formats.resampling import combine_sequences, covered_share, resample_onto
from pipeline.formats.scan import Scan

SHAPE, SPACING = (11, 13, 7), (0.9, 1.1, 4.5)
SHEAR = np.array([[1, 0.2, 0, 0], [0, 1, 0.1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def value_at(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """A picture that linear interpolation cannot spoil: brightness grows with scanner millimetres ``(..., 3)``."""
    return 500 + places @ np.array([1.0, -2.0, 3.0])


def places_of(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    voxels = np.stack(np.indices(shape), axis=-1)
    return voxels @ affine[:3, :3].T + affine[:3, 3]


def make_scan(affine: NDArray[np.float64], shape: tuple[int, int, int] = SHAPE, source: str = "t1.nii") -> Scan:
    image = value_at(places_of(affine, shape)).astype(np.float32)[None]
    first, second, third = (float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0))
    return Scan(image, affine, (first, second, third), source)


def around(scan: Scan, affine: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """The affine, moved so that its grid lies around the same middle as a scan."""
    moved = affine.copy()
    middles = [grid[:3, :3] @ ((np.array(size) - 1) / 2) for grid, size in ((scan.affine, SHAPE), (affine, shape))]
    moved[:3, 3] = scan.affine[:3, 3] + middles[0] - middles[1]
    return moved


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PSR", "oblique"])
@pytest.mark.parametrize("grid_orientation", ["LAS", "PSR", "oblique"])
def test_every_voxel_takes_the_value_of_its_place_in_the_scanner(
    orientation: str, grid_orientation: str, make_affine: Callable[..., NDArray[np.float64]]
) -> None:
    grid = make_scan(make_affine(grid_orientation))
    shape = (41, 43, 47)
    scan = make_scan(around(grid, make_affine(orientation, (1.0, 1.2, 1.4)), shape), shape)
    expected = value_at(places_of(grid.affine, SHAPE))
    np.testing.assert_allclose(resample_onto(scan, grid), expected, atol=1e-2)


def test_a_sheared_grid_is_resampled_as_it_is(make_affine) -> None:
    grid = make_scan(make_affine("LPS") @ SHEAR)
    shape = (41, 43, 47)
    scan = make_scan(around(grid, make_affine("RAS", (1.0, 1.2, 1.4)) @ SHEAR.T, shape), shape)
    np.testing.assert_allclose(resample_onto(scan, grid), value_at(places_of(grid.affine, SHAPE)), atol=1e-2)


def test_on_the_same_grid_no_voxel_is_touched(make_affine) -> None:
    grid, scan = make_scan(make_affine("oblique")), make_scan(make_affine("oblique"))
    scan.affine[:3, 3] += 0.03
    assert resample_onto(scan, grid) is scan.image[0] or np.shares_memory(resample_onto(scan, grid), scan.image)


def test_outside_of_the_scan_its_smallest_intensity_stands(make_affine) -> None:
    grid = make_scan(make_affine("LPS"))
    shorter = Scan(grid.image[:, :, :, :5] + 1000, grid.affine, SPACING, "t1.nii")
    resampled = resample_onto(shorter, grid)
    np.testing.assert_allclose(resampled[:, :, :5], shorter.image[0], atol=1e-3)
    assert (resampled[:, :, 5:] == shorter.image.min()).all()


@pytest.mark.parametrize(("shift", "share"), [(0, 1.0), (4.5, 6 / 7), (13.5, 4 / 7), (18, 3 / 7), (450, 0)])
def test_the_covered_share_is_that_of_the_voxels_inside(shift: float, share: float, make_affine) -> None:
    grid, moved = make_scan(make_affine("LPS")), make_affine("LPS")
    moved[2, 3] += shift
    scan = make_scan(moved)
    assert covered_share(scan, grid) == pytest.approx(share)
    if share < 0.5:
        with pytest.raises(ScanError, match=rf"^t1.nii: expected at least 50% of .* got {share:.0%}; the two"):
            resample_onto(scan, grid)
    else:
        assert resample_onto(scan, grid).shape == SHAPE


def test_three_channels_come_in_their_order_and_flair_stands_for_what_is_missing(make_affine) -> None:
    flair = make_scan(make_affine("LPS"), source="flair")
    t1 = Scan(flair.image + 1000, flair.affine, SPACING, "t1")
    t1c = Scan(flair.image + 2000, flair.affine, SPACING, "t1c")
    both = combine_sequences(flair, t1, t1c)
    np.testing.assert_array_equal(both.image, np.concatenate([t1.image, flair.image, t1c.image]))
    assert (both.affine == flair.affine).all()
    assert (both.spacing, both.source) == (flair.spacing, "flair")
    one = combine_sequences(flair, None, t1c)
    np.testing.assert_array_equal(one.image, np.concatenate([flair.image, flair.image, t1c.image]))
    assert combine_sequences(flair, None, None) is flair


def test_a_scan_of_several_channels_is_refused(make_affine) -> None:
    scan = make_scan(make_affine("LPS"))
    several = Scan(np.repeat(scan.image, 3, axis=0), scan.affine, SPACING, "x")
    with pytest.raises(ValueError, match="one channel"):
        resample_onto(several, scan)
