"""Distances between surfaces, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.surfaces import surface_distances


def test_two_voxels_are_as_far_apart_as_their_centres(mask_of):
    distances = surface_distances(mask_of((2, 3, 4)), mask_of((5, 7, 4)))
    assert (distances.hd95, distances.mean) == (5, 5)  # 3, 4, 0


def test_in_millimetres_each_axis_has_its_own_step(mask_of):
    distances = surface_distances(mask_of((2, 3, 4)), mask_of((5, 7, 6)), np.diag([0.9, 1.1, 4.5]))
    expected = np.sqrt((3 * 0.9) ** 2 + (4 * 1.1) ** 2 + (2 * 4.5) ** 2)
    assert (distances.hd95, distances.mean) == pytest.approx((expected, expected))


def test_a_sheared_step_leads_where_the_affine_does(mask_of):
    steps = np.array([[1.0, 0, 0], [0, 1.0, 0.5], [0, 0, 2.0]])  # one step along K also moves 0.5 mm along J
    distances = surface_distances(mask_of((4, 4, 1)), mask_of((4, 4, 3)), steps)
    assert distances.hd95 == pytest.approx(np.hypot(1.0, 4.0))


def test_hd95_is_the_larger_directed_percentile_and_the_mean_is_over_both_directions(mask_of):
    line = mask_of(*((1, 2, k) for k in range(21)), shape=(3, 4, 21))
    end = mask_of((1, 2, 0), shape=(3, 4, 21))
    for distances in (surface_distances(line, end), surface_distances(end, line)):
        # From the line 0, 1, ... 20, whose 95th percentile is 19; from its end 0.
        assert distances.hd95 == pytest.approx(19)
        assert distances.mean == pytest.approx(210 / 22)


def test_only_surfaces_count_and_a_percentile_is_interpolated():
    cube = np.zeros((9, 8, 7), dtype=bool)
    cube[2:7, 2:7, 1:6] = True
    hollow = cube.copy()
    hollow[4, 4, 3] = False
    distances = surface_distances(hollow, cube)
    # 98 voxels of surface each; around the hole 6 more, 1 voxel below the cube's. Of 104 distances
    # the 95th percentile lies at place 97.85, between the last 0 and the first 1.
    assert distances.hd95 == pytest.approx(0.85)
    assert distances.mean == pytest.approx(6 / 202)


def test_beyond_the_edge_of_the_volume_is_outside():
    everywhere, center = np.ones((3, 3, 3), dtype=bool), np.zeros((3, 3, 3), dtype=bool)
    center[1, 1, 1] = True
    distances = surface_distances(everywhere, center)
    # 26 surface voxels: 6 by a face, 12 by an edge, 8 by a corner; and 1 from the center to them.
    assert distances.mean == pytest.approx((6 + 12 * 2**0.5 + 8 * 3**0.5 + 1) / 27)


def test_a_voxel_below_a_missing_corner_is_no_surface():
    cube = np.zeros((9, 8, 7), dtype=bool)
    cube[1:6, 1:6, 1:6] = True
    cut = cube.copy()
    cut[1, 1, 1] = False  # (2, 2, 2) now touches the outside by its corner, but by none of its faces
    distances = surface_distances(cut, cube)
    # Surfaces of 97 and 98 voxels; only the cut corner is 1 away from the other's.
    assert distances.mean == pytest.approx(1 / 195)
    assert distances.hd95 == 0


def test_an_empty_mask_has_no_surface(mask_of):
    some, none = mask_of((1, 2, 3)), mask_of()
    assert surface_distances(some, none) is None
    assert surface_distances(none, some) is None
    assert surface_distances(none, none) is None


def test_the_same_masks_are_nowhere_apart(mask_of):
    mask = mask_of((1, 2, 3), (1, 2, 4), (9, 9, 1))
    assert surface_distances(mask, mask).hd95 == 0


def test_masks_of_another_shape_or_not_3d_are_refused(mask_of):
    with pytest.raises(ValueError, match=r"got \(11, 13, 7\) and \(11, 13, 8\)"):
        surface_distances(mask_of(), mask_of(shape=(11, 13, 8)))
    with pytest.raises(ValueError, match=r"must be \(I, J, K\)"):
        surface_distances(np.ones((1, 3, 4, 5)), np.ones((1, 3, 4, 5)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own call
def test_monai_measures_the_same(make_head):
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    (_, prediction), (_, truth) = make_head(), make_head(center=(21.0, 24.0, 4.0), radii=(9.0, 18.0, 2.4))
    distances = surface_distances(prediction, truth, np.diag([0.9, 1.1, 4.5]))
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]
    spacing = {"spacing": (0.9, 1.1, 4.5), "include_background": True}
    assert distances.hd95 == pytest.approx(float(compute_hausdorff_distance(*pair, percentile=95, **spacing)), rel=1e-5)
    mean = float(compute_average_surface_distance(*pair, symmetric=True, **spacing))
    assert distances.mean == pytest.approx(mean, rel=1e-5)
