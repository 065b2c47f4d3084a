from __future__ import annotations

import numpy as np
import pytest

from pipeline.measurement.laterality import find_midsagittal_plane, name_side
from transforms.geometry import find_slice_frame


def frame_of(scan):
    return find_slice_frame(scan.image, scan.affine, None, crop_to_head=False)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAS", "PSR", "oblique"])
@pytest.mark.parametrize("spacing", [(0.9, 1.1, 4.5), None])
def test_what_lies_left_of_the_middle_of_the_head_is_left(make_head_scan, orientation, spacing):
    shape = (72, 20, 60) if orientation == "PSR" else (60, 72, 20)
    scan, place = make_head_scan(orientation, spacing, shape)
    voxels = np.argwhere(np.ones(shape, bool))
    left = find_midsagittal_plane(scan.flair, frame_of(scan)).on_left(voxels).reshape(shape)
    # The middle of an upright head runs along the slices, so an oblique scan is off by its own turn.
    sure = np.abs(place[0]) > (9 if orientation == "oblique" else 1.6 if spacing else 2)
    np.testing.assert_array_equal(left[sure], place[0][sure] < 0)


@pytest.mark.parametrize(("turn", "lean"), [(0.12, 0.0), (-0.1, 0.15), (0.0, -0.2)])
def test_the_plane_follows_a_head_that_is_turned_and_leans_with_an_ear_on_one_side(turn, lean, make_affine):
    shape = (90, 100, 24)
    place = np.indices(shape) - np.array([52, 50, 12])[:, None, None, None]
    off = place[0] - turn * place[1] - lean * place[2]
    head = (off / 34) ** 2 + (place[1] / 42) ** 2 + (place[2] / 14) ** 2 < 1
    head[52:96, 44:52, 8:13] |= off[52:96, 44:52, 8:13] < 40  # an ear
    flair = np.where(head, 100, 0) + np.random.default_rng(2).random(shape)
    frame = find_slice_frame(flair[None], make_affine("LPS"), None, crop_to_head=False)
    plane = find_midsagittal_plane(flair, frame)
    voxels = np.argwhere(head)
    distance = (voxels @ plane.normal + plane.offset) - off[head]
    assert np.abs(distance).max() < 1.5


def test_a_volume_that_is_all_head_is_parted_in_its_middle(make_affine):
    flair = np.full((11, 13, 7), 3.0)
    frame = find_slice_frame(flair[None], make_affine("RAS"), None, crop_to_head=False)
    left = find_midsagittal_plane(flair, frame).on_left(np.argwhere(flair > 0)).reshape(flair.shape)
    assert left[:5].all()
    assert not left[6:].any()


def test_a_large_volume_is_thinned_out_without_moving_the_plane(make_affine):
    shape = (360, 300, 90)
    place = np.indices(shape, np.float32) - np.array([170.3, 140, 45], np.float32)[:, None, None, None]
    flair = (np.square(place / np.array([130, 120, 44], np.float32)[:, None, None, None]).sum(axis=0) < 1) * 100.0
    frame = find_slice_frame(flair[None], make_affine("LPS"), None, crop_to_head=False)
    plane = find_midsagittal_plane(flair, frame)
    for voxel in ((0, 40, 20), (0, 200, 60)):
        crossing = -(plane.offset + np.dot(voxel, plane.normal)) / plane.normal[0]
        assert crossing == pytest.approx(170.3, abs=0.8)


@pytest.mark.parametrize(
    ("left", "side"),
    [(1, "left"), (0.9, "left"), (0.89, "both sides"), (0.11, "both sides"), (0.1, "right")],
)
def test_a_side_holds_nine_tenths_of_a_lesion(left, side):
    assert name_side(left).side == side
    assert name_side(left).left_fraction == left
