"""The diameters against a search through all lines, by another way of telling what is inside."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import ndimage

from pipeline.measurement.diameters import _find_perpendicular, find_diameters
from pipeline.measurement.outlines import trace_outlines
from transforms.geometry import find_slice_frame


def frame_of(shape, affine):
    return find_slice_frame(np.broadcast_to(np.float32(0), (1, *shape)), affine, None, crop_to_head=False)


def inside(lesion, points):
    """Whether points (n, 2) lie in the lesion (R, C), whose outline cuts off corners half-way between pixels."""
    padded = np.pad(lesion, 2).astype(bool)
    low = np.floor(points).astype(int)
    u, v = (points - low).T
    a, b, c, d = (padded[low[:, 0] + i + 2, low[:, 1] + j + 2] for i, j in ((0, 0), (0, 1), (1, 1), (1, 0)))
    apart = np.stack([u + v, u + 1 - v, 2 - u - v, 1 - u + v], axis=1)  # from each corner
    held = np.stack([a, b, c, d], axis=1)
    count = held.sum(axis=1)
    near_held = (held & (apart <= 0.5 + 1e-9)).any(axis=1)
    near_missing = (~held & (apart < 0.5 - 1e-9)).any(axis=1)
    # Of two neighbours, the half of the square that is theirs.
    low_side, high_side = 0.5 + 1e-9, 0.5 - 1e-9
    halves = [u < low_side, v > high_side, u > high_side, v < low_side]
    half = np.select([a & b, b & c, c & d, d & a], halves, False)
    diagonal = (a & c & ~b & ~d) | (b & d & ~a & ~c)
    return np.select([count == 0, count == 1, (count == 2) & ~diagonal], [False, near_held, half], ~near_missing)


def border_points(lesion):
    padded = np.pad(lesion, 1).astype(int)
    down, across = np.argwhere(np.diff(padded, axis=0)), np.argwhere(np.diff(padded, axis=1))
    return np.concatenate([down - np.array([0.5, 1]), across - np.array([1, 0.5])])


def stays_inside(lesion, start, end):
    shares = np.linspace(0, 1, 4 * 60 + 1)[:, None]
    return inside(lesion, start + (end - start) * shares).all()


def filled(lesion):
    return ndimage.binary_fill_holes(lesion)


def search_longest(lesion, metric):
    """Length of the longest line between two points of the border that stays inside."""
    points = border_points(filled(lesion))
    ways = points[:, None] - points[None]
    lengths = np.sqrt(np.einsum("ijk,kl,ijl->ij", ways, metric, ways))
    for flat in np.argsort(-lengths, axis=None):
        one, other = np.unravel_index(flat, lengths.shape)
        if stays_inside(filled(lesion), points[one], points[other]):
            return lengths[one, other]
    raise AssertionError("no line is inside")


def search_perpendicular(lesion, ends, to_mm):
    """Length of the longest line perpendicular to that between two points, from very many of them."""
    labels, _ = ndimage.label(filled(lesion), structure=np.ones((3, 3)))
    near_end = np.rint(ends[0] * 0.999 + ends[1] * 0.001).astype(int)
    last = np.array(lesion.shape) - 1
    part = labels == labels[tuple(near_end.clip(0, last))]
    way = to_mm @ (ends[1] - ends[0])
    across = np.linalg.solve(to_mm, np.array([-way[1], way[0]]) / np.linalg.norm(way))  # pixels a mm
    step = 0.04
    reach = np.arange(-34, 34, step)
    longest = 0.0
    for share in np.arange(-0.3, 1.3, 0.01):
        line = ends[0] + share * (ends[1] - ends[0]) + reach[:, None] * across
        runs, count = ndimage.label(inside(part, line.clip(-1.4, last + 1.4)))
        if count:
            longest = max(longest, np.bincount(runs)[1:].max() * step)
    return longest


def blob(seed, shape=(17, 23), sigma=1.6):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    labels, _ = ndimage.label(noise > np.quantile(noise, 0.6), structure=np.ones((3, 3)))
    return labels == np.bincount(labels.ravel())[1:].argmax() + 1


CRESCENT = np.hypot(*(np.indices((21, 26)) - np.array([10, 12])[:, None, None])) < 9.6
CRESCENT &= np.hypot(*(np.indices((21, 26)) - np.array([10, 17])[:, None, None])) > 7.2
STAIRS = np.kron(np.eye(5, dtype=bool), np.ones((2, 3), bool))  # parts that touch by corners
RING = np.pad(np.pad(np.zeros((5, 6), bool), 2, constant_values=True), 1)
SHAPES = {"crescent": CRESCENT, "stairs": STAIRS, "ring": RING, "pixel": np.ones((1, 1), bool)}
SHAPES |= {
    "row": np.ones((1, 7), bool),
    "angle": np.tri(9, 12, dtype=bool) & ~np.pad(np.ones((5, 5), bool), ((0, 4), (0, 7))),
}
SHAPES |= {f"blob {seed}": blob(seed) for seed in range(8)}
SHAPES |= {f"ragged {seed}": blob(seed, sigma=0.7) for seed in range(3)}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("shear", [0.0, 0.35])
def test_both_diameters_are_the_longest_inside_the_outline(name, shear):
    lesion, affine = SHAPES[name], np.diag([0.8, 1.3, 4.0, 1.0])
    affine[0, 1] = shear
    found = find_diameters(lesion[..., None], frame_of((*lesion.shape, 1), affine), (0, 0, 0))
    to_mm = affine[:2, :2]
    assert found.longest_mm == pytest.approx(search_longest(lesion, to_mm.T @ to_mm), abs=1e-9)
    ends, others = (np.array(pair)[:, :2] for pair in (found.longest_ends, found.perpendicular_ends))
    assert stays_inside(filled(lesion), *ends)
    assert stays_inside(filled(lesion), *others)
    assert np.linalg.norm(to_mm @ (ends[1] - ends[0])) == pytest.approx(found.longest_mm)
    assert np.linalg.norm(to_mm @ (others[1] - others[0])) == pytest.approx(found.perpendicular_mm)
    assert (to_mm @ (ends[1] - ends[0])) @ (to_mm @ (others[1] - others[0])) == pytest.approx(0, abs=1e-6)
    assert found.perpendicular_mm == pytest.approx(search_perpendicular(lesion, ends, to_mm), abs=0.12)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LPI", "PSR", "oblique"])
def test_the_slice_is_the_one_with_the_longest_diameter_numbered_from_the_lowest(make_affine, orientation):
    lesion = np.zeros((12, 15, 7), bool)  # slices last
    lesion[3, 4:9, 1] = lesion[3, 4:12, 2] = lesion[2:6, 4:9, 3] = True
    volume = np.moveaxis(lesion, 2, 1) if orientation == "PSR" else lesion
    affine = make_affine(orientation)
    box = tuple(slice(low.min(), low.max() + 1) for low in np.nonzero(volume))
    found = find_diameters(volume[box], frame_of(volume.shape, affine), tuple(int(part.start) for part in box))
    assert found.slice == (5 if orientation == "LPI" else 3)
    axis = 1 if orientation == "PSR" else 2
    for pair, length in (
        (found.longest_ends, found.longest_mm),
        (found.perpendicular_ends, found.perpendicular_mm),
    ):
        assert np.linalg.norm(affine[:3, :3] @ np.subtract(*pair)) == pytest.approx(length)
        assert pair[0][axis] == pair[1][axis] == 2
        assert volume[tuple(np.rint(np.mean(pair, axis=0)).astype(int))]
    assert found.product_mm2 == pytest.approx(found.longest_mm * found.perpendicular_mm)


def test_which_slice_is_searched_first_does_not_matter():
    rng = np.random.default_rng(7)
    lesion = ndimage.gaussian_filter(rng.normal(size=(30, 34, 9)), (2, 2, 0.5)) > 0.02
    frame = frame_of(lesion.shape, np.diag([0.7, 1.2, 3.0, 1.0]))
    single = [find_diameters(lesion[..., [k]], frame_of((30, 34, 1), np.diag([0.7, 1.2, 3.0, 1.0]))) for k in range(9)]
    found = find_diameters(lesion, frame)
    assert found.longest_mm == max(each.longest_mm for each in single)
    assert found.longest_mm == pytest.approx(single[found.slice - 1].longest_mm)


def test_oblique_pixels_are_measured_in_space(make_affine):
    affine = make_affine("oblique")
    affine[:3, 1] += 0.5 * affine[:3, 0]  # sheared in plane
    lesion = blob(3)
    found = find_diameters(lesion[..., None], frame_of((*lesion.shape, 1), affine))
    metric = affine[:3, :2].T @ affine[:3, :2]
    assert found.longest_mm == pytest.approx(search_longest(lesion, metric))
    ways = [affine[:3, :3] @ np.subtract(*ends) for ends in (found.longest_ends, found.perpendicular_ends)]
    assert ways[0] @ ways[1] == pytest.approx(0, abs=1e-6)


def test_a_large_lesion_is_measured_in_a_fraction_of_a_second():
    grid = np.ogrid[-1:1:230j, -1:1:200j, -1:1:150j]
    lesion = grid[0] ** 2 + grid[1] ** 2 + grid[2] ** 2 < 1
    lesion &= np.random.default_rng(0).random(lesion.shape, dtype=np.float32) < 0.97
    started = time.process_time()
    found = find_diameters(lesion, frame_of((512, 512, 400), np.diag([0.5, 0.5, 0.5, 1.0])))
    assert time.process_time() - started < 1.5
    assert found.longest_mm == pytest.approx(115, abs=1)
    assert found.perpendicular_mm == pytest.approx(100, abs=1)


@pytest.mark.parametrize("lesion", [np.zeros((3, 4, 5), bool), np.ones((3, 4), bool)])
def test_what_is_no_lesion_is_refused(lesion):
    with pytest.raises(ValueError, match=r"lesion must be \(I, J, K\) with at least one voxel"):
        find_diameters(lesion, frame_of((3, 4, 5), np.eye(4)))


def test_a_slice_of_wide_extent_does_not_hide_a_longer_diameter_on_another():
    lesion = np.zeros((36, 36, 2), bool)
    lesion[0, :33, 0] = lesion[:33, 0, 0] = True  # an angle: wide, but no line inside leads from end to end
    lesion[5, :35, 1] = True
    found = find_diameters(lesion, frame_of(lesion.shape, np.diag([1.0, 1.0, 3.0, 1.0])))
    assert (found.slice, found.longest_mm) == (2, 35)


def test_the_half_pixels_beyond_the_outermost_voxels_count_in_the_choice_of_the_slice():
    lesion = np.zeros((20, 21, 2), bool)
    lesion[:2, :9, 0] = lesion[:9, :2, 0] = True  # wide, though its longest line is 9.2: more than from voxel to voxel
    lesion[15, :10, 1] = True
    found = find_diameters(lesion, frame_of(lesion.shape, np.diag([1.0, 1.0, 3.0, 1.0])))
    assert (found.slice, found.longest_mm) == (2, 10)


@pytest.mark.parametrize("notches", [(4, 9), (9, 4)])
def test_a_line_between_two_notches_that_end_at_it_is_not_parted(notches):
    lesion = np.ones((12, 15), bool)
    lesion[:4, notches[0]] = lesion[4:, notches[1]] = False
    (outline,) = trace_outlines(lesion)
    length, ends = _find_perpendicular(outline, np.eye(2), np.array([[-0.5, 2.0], [11.5, 2.0]]))
    assert length == pytest.approx(15)
    np.testing.assert_allclose(sorted(map(tuple, ends)), [(3.5, -0.5), (3.5, 14.5)], atol=1e-9)
