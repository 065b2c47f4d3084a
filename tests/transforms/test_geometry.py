import json
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from transforms.geometry import SliceFrame, find_slice_frame, from_slice_frame, known_spacing, to_slice_frame

SHAPE = (11, 13, 7)  # of the anatomy along L, P, S; all sizes differ, so a swapped axis cannot pass unseen
CHANNELS = 3
ALL_CODES = ["".join(codes) for axes in permutations(("LR", "PA", "SI")) for codes in product(*axes)]  # all 48

every_storage = pytest.mark.parametrize("codes", ALL_CODES)
every_tilt = pytest.mark.parametrize("tilt", ["LPS", "oblique"])


@pytest.fixture
def anatomy():
    """(C, L, P, S): what lies where in the patient; all voxels differ."""
    return np.random.default_rng(3).permutation(np.prod(SHAPE) * CHANNELS).astype(np.float32).reshape(CHANNELS, *SHAPE)


@pytest.fixture
def store(make_affine):
    """Store an anatomy (C, L, P, S) along other axes, by nibabel's own tools: the volume and its affine."""

    def store(anatomy, codes, tilt="LPS", **spacing):
        steps = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(codes))
        volume = np.stack([apply_orientation(channel, steps) for channel in anatomy])
        return volume, make_affine(tilt, **spacing) @ inv_ornt_aff(steps, anatomy.shape[1:])

    return store


@pytest.fixture
def blob():
    """Make a smooth blob (1, L, P, S) with its peak, 1, off the middle."""

    def blob(shape, center, width):
        grid = np.stack(np.indices(shape), axis=-1)
        return np.exp(-(((grid - center) / width) ** 2).sum(axis=-1)).astype(np.float32)[None]

    return blob


def whole(volume, affine, spacing=None, **options):
    """The frame of the whole volume, not padded."""
    return find_slice_frame(volume, affine, spacing, crop_to_head=False, **{"divisor": 1, **options})


def center_of_mass(volume):
    """Of (1, I, J, K), in voxels."""
    return np.array([(volume[0] * index).sum() for index in np.indices(volume.shape[1:])]) / volume[0].sum()


def triangles(size, new_size):
    """The matrix of linear interpolation from one number of pixels to another, entry by entry."""
    matrix, scale = np.zeros((new_size, size)), size / new_size
    for row, column in np.ndindex(new_size, size):
        center = min(max((row + 0.5) * scale - 0.5, 0), size - 1)
        matrix[row, column] = max(0, 1 - abs(column - center) / max(1, scale))
    return matrix / matrix.sum(axis=1, keepdims=True)


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


# --- axes -------------------------------------------------------------------------------


@every_tilt
@every_storage
def test_the_same_anatomy_looks_the_same_whatever_its_storage(store, anatomy, codes, tilt):
    volume, affine = store(anatomy, codes, tilt)
    np.testing.assert_array_equal(to_slice_frame(volume, whole(volume, affine)), anatomy)


@every_tilt
@every_storage
def test_every_voxel_comes_back_in_place(store, anatomy, codes, tilt):
    volume, affine = store(anatomy, codes, tilt)
    frame = whole(volume, affine, divisor=16)
    np.testing.assert_array_equal(from_slice_frame(to_slice_frame(volume, frame), frame), volume)


@every_storage
def test_the_axes_are_those_that_nibabel_finds(make_affine, codes):
    angles = np.deg2rad(np.random.default_rng(ALL_CODES.index(codes)).uniform(-20, 20, 3))
    turn = nib.eulerangles.euler2mat(*angles)
    affine = make_affine(codes)
    affine[:3, :3] = turn @ affine[:3, :3]
    steps = ornt_transform(nib.io_orientation(affine), axcodes2ornt("LPS"))
    frame = whole(np.zeros((1, *SHAPE)), affine)
    assert [int(steps[axis, 0]) for axis in frame.order] == [0, 1, 2]
    assert frame.flipped == tuple(bool(steps[axis, 1] < 0) for axis in frame.order)


@every_storage
def test_a_voxel_marked_in_a_corner_comes_back_in_that_corner(store, codes):
    volume, affine = store(np.zeros((8, *SHAPE), dtype=np.float32), codes)
    corners = list(product(*((0, size - 1) for size in volume.shape[1:])))
    for channel, corner in zip(volume, corners, strict=True):
        channel[corner] = 1
    frame = find_slice_frame(volume, affine, known_spacing(affine, 2), pixel_spacing=0.7, crop_to_head=False)
    returned = from_slice_frame(to_slice_frame(volume, frame), frame)
    for channel, corner in zip(returned, corners, strict=True):
        assert np.unravel_index(channel.argmax(), channel.shape) == corner
        assert channel[corner] > 0.5


# --- world coordinates ------------------------------------------------------------------


@every_tilt
@every_storage
def test_frame_voxels_lie_where_the_volumes_affine_says(store, anatomy, make_affine, codes, tilt):
    volume, affine = store(anatomy, codes, tilt)
    np.testing.assert_allclose(whole(volume, affine).crop_affine, make_affine(tilt), atol=1e-9)


@every_tilt
@pytest.mark.parametrize("codes", ["LPS", "RAS", "PSR", "IRA", "SLP"])
@pytest.mark.parametrize("pixel_spacing", [0.31, 0.55, 0.88])
def test_resampled_and_cropped_voxels_lie_where_the_affine_says(make_affine, store, codes, tilt, pixel_spacing):
    # The intensities are the world coordinates themselves, so each voxel tells where it came from.
    shape = (29, 33, 9)
    grid = np.stack([*np.indices(shape), np.ones(shape)])
    world = np.einsum("wv,vijk->wijk", make_affine(tilt), grid)[:3]
    box = np.zeros((1, *shape))
    box[:, 9:17, 11:24, 3:6] = 1
    (volume, affine), (head, _) = store(world, codes, tilt), store(box, codes, tilt)
    frame = find_slice_frame(head, affine, known_spacing(affine, 2), pixel_spacing=pixel_spacing, divisor=1, margin=2)
    assert min(frame.crop_start) > 0
    result = to_slice_frame(volume, frame)
    voxels = np.stack([*np.indices(frame.crop_shape), np.ones(frame.crop_shape)])
    np.testing.assert_allclose(result, np.einsum("wv,vijk->wijk", frame.crop_affine, voxels)[:3], atol=0.02)


def test_padding_moves_the_origin_of_the_affine_along(make_affine, anatomy):
    affine = make_affine("LPS")
    frame = find_slice_frame(anatomy, affine, None, crop_to_head=False, divisor=16)
    assert frame.crop_start == (-2, -1, 0)  # 11 and 13 pixels in 16, the odd one behind
    assert frame.crop_shape == (16, 16, 7)
    np.testing.assert_allclose(frame.crop_affine @ [2, 1, 0, 1], affine @ [0, 0, 0, 1])


# --- resampling -------------------------------------------------------------------------


@every_storage
def test_the_scale_follows_the_spacing_of_each_axis(store, anatomy, codes):
    volume, affine = store(anatomy, codes)  # voxels of 0.9 (L), 1.1 (P) and 4.5 mm (S)
    frame = whole(volume, affine, known_spacing(affine, 2), pixel_spacing=0.5)
    assert frame.scaled_shape == (20, 29, 7)  # 11 * 0.9 / 0.5 = 19.8, 13 * 1.1 / 0.5 = 28.6, slices never


def test_a_volume_of_unknown_spacing_keeps_its_pixels(make_affine, anatomy):
    assert whole(anatomy, make_affine("LPS"), None, pixel_spacing=0.1).scaled_shape == SHAPE


def test_the_scale_never_falls_below_one_pixel(make_affine, anatomy):
    assert whole(anatomy, make_affine("LPS"), (0.9, 1.1, 4.5), pixel_spacing=100).scaled_shape == (1, 1, 7)


@pytest.mark.parametrize("pixel_spacing", [0.2, 0.88, 3.1])
@pytest.mark.parametrize("value", [0, -17, 40000])
def test_a_constant_stays_constant_there_and_back(make_affine, pixel_spacing, value):
    volume = np.full((2, *SHAPE), value)
    frame = find_slice_frame(volume, make_affine("RAS"), (0.9, 1.1, 4.5), pixel_spacing=pixel_spacing)
    there = to_slice_frame(volume, frame)
    np.testing.assert_allclose(there, value, rtol=1e-6)
    np.testing.assert_allclose(from_slice_frame(there, frame, fill=value), value, rtol=1e-6)


@pytest.mark.parametrize("spacing", [(0.4, 0.5, 3), (0.8, 0.61, 3), (1.5, 1.1, 3), (0.7, 1.6, 3)])
def test_a_blob_survives_the_way_there_and_back_without_moving(make_affine, blob, spacing):
    affine = make_affine("oblique", spacing)
    volume = blob((46, 53, 5), (20.3, 25.8, 2), (9, 7, 2))
    frame = whole(volume, affine, spacing)
    assert frame.scaled_shape[:2] != (46, 53)
    there = to_slice_frame(volume, frame)
    back = from_slice_frame(there, frame)
    assert dice(back > 0.5, volume > 0.5) > 0.97
    np.testing.assert_allclose(center_of_mass(back), center_of_mass(volume), atol=0.05)
    in_volume = np.linalg.inv(affine) @ frame.crop_affine @ [*center_of_mass(there), 1]
    np.testing.assert_allclose(in_volume[:3], center_of_mass(volume), atol=0.05)


def test_labels_keep_their_numbers_and_type_and_follow_the_image(make_affine, blob):
    image = blob((46, 53, 5), (20.3, 25.8, 2), (9, 7, 2))
    label = np.digitize(image, [0.3, 0.7]).astype(np.uint8) * 5
    for pixel_spacing in (0.4, 0.9, 1.7):
        frame = whole(image, make_affine("LPS"), (0.9, 1.1, 4.5), pixel_spacing=pixel_spacing)
        result = to_slice_frame(label, frame, interpolation="nearest")
        assert result.dtype == np.uint8
        assert set(np.unique(result)) == {0, 5, 10}
        assert dice(result > 0, to_slice_frame(image, frame) > 0.3) > 0.95


def test_shrinking_averages_instead_of_dropping_pixels(make_affine):
    stripes = np.zeros((1, 25, 20, 2))
    stripes[:, ::2] = 1
    frame = whole(stripes, make_affine("LPS"), (1, 1, 4), pixel_spacing=5)  # every fifth pixel is a stripe or none
    np.testing.assert_allclose(to_slice_frame(stripes, frame), 0.5, atol=0.1)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PLS", "SRA", "IAR", "ASL"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("pixel_spacing", [0.37, 0.95, 1.9])
def test_linear_interpolation_is_two_products_with_a_matrix_of_triangles(store, codes, order, pixel_spacing):
    # More rows and slices than are taken at once; whatever the order of axes and voxels, as the plain formula says.
    anatomy = np.random.default_rng(5).uniform(-50, 200, (2, 41, 37, 19)).astype(np.float32)
    volume, affine = store(anatomy, codes)
    volume = np.asarray(volume, order=order)
    frame = find_slice_frame(volume, affine, known_spacing(affine, 2), pixel_spacing=pixel_spacing, crop_to_head=False)
    rows, columns = (triangles(size, new) for size, new in zip((41, 37), frame.scaled_shape, strict=False))
    scaled = np.einsum("hi,wj,cijk->chwk", rows, columns, anatomy, optimize=True)
    expected = np.empty((2, *frame.crop_shape))
    expected[...] = scaled.min(axis=(1, 2, 3), keepdims=True)
    inner = tuple(slice(-start, size - start) for start, size in zip(frame.crop_start, frame.scaled_shape, strict=True))
    expected[:, *inner] = scaled
    np.testing.assert_allclose(to_slice_frame(volume, frame), expected, atol=1e-4)

    there = np.random.default_rng(6).random((2, *frame.crop_shape))
    rows, columns = (triangles(size, new) for size, new in zip(frame.scaled_shape, (41, 37), strict=False))
    back = np.einsum("hi,wj,cijk->chwk", rows, columns, there[:, *inner], optimize=True)
    returned = from_slice_frame(there, frame)
    np.testing.assert_allclose(returned, store(back, codes)[0], atol=1e-6)


def test_padding_is_the_smallest_value_even_if_it_lies_outside_of_the_crop(make_affine, make_head):
    head, _ = make_head((42, 52, 13), (18.0, 27.0, 6.0))
    head[0, 0, 0] = -40
    frame = find_slice_frame(head[None], make_affine("LPS"), (0.9, 1.1, 4.5), divisor=64)
    assert frame.crop_start[0] < 0 < frame.crop_start[2]  # padded, and without the lowest slice
    result = to_slice_frame(head[None], frame)
    uncropped = to_slice_frame(head[None], whole(head[None], make_affine("LPS"), (0.9, 1.1, 4.5)))
    assert result[0, 0, 0, 0] == uncropped.min() < -30


def test_slices_lie_one_behind_the_other_in_memory_and_results_as_in_a_nifti_file(make_affine, anatomy):
    frame = find_slice_frame(anatomy, make_affine("RAS"), (0.9, 1.1, 4.5))
    there = to_slice_frame(anatomy, frame)
    assert there.transpose(0, 3, 1, 2).flags.c_contiguous
    assert all(channel.flags.f_contiguous for channel in from_slice_frame(there, frame))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_nonfinite_voxel_counts_as_air_and_does_not_spread(make_affine, anatomy, value):
    frame = whole(anatomy, make_affine("LPS"), (0.9, 1.1, 4.5), pixel_spacing=0.5)
    clean = anatomy.copy()
    clean[1, 4, 5, 2] = anatomy[1].min()
    damaged = anatomy.copy()
    damaged[1, 4, 5, 2] = value
    np.testing.assert_array_equal(to_slice_frame(damaged, frame), to_slice_frame(clean, frame))


def test_the_volume_is_not_modified(make_affine, anatomy):
    anatomy[0, 1, 2, 3] = np.nan
    before = anatomy.copy()
    to_slice_frame(anatomy, find_slice_frame(anatomy, make_affine("RAS"), (0.9, 1.1, 4.5)))
    np.testing.assert_array_equal(anatomy, before)


# --- cropping and padding ---------------------------------------------------------------


@pytest.mark.parametrize("codes", ["LPS", "RAS", "ASL"])
@pytest.mark.parametrize("pixel_spacing", [0.6, 0.9, 1.4])
@pytest.mark.parametrize("margin", [0, 3, 6])
def test_the_crop_holds_the_head_with_its_margin_and_little_else(make_head, store, codes, pixel_spacing, margin):
    head, inside = make_head()
    volume, affine = store(head[None], codes)
    frame = find_slice_frame(
        volume, affine, known_spacing(affine, 2), pixel_spacing=pixel_spacing, divisor=1, margin=margin
    )
    for axis in range(3):
        where = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
        scale = frame.scaled_shape[axis] / head.shape[axis]
        kept = margin if axis < 2 else 1
        low, high = where[0] * scale - kept, (where[-1] + 1) * scale + kept
        start, stop = frame.crop_start[axis], frame.crop_start[axis] + frame.crop_shape[axis]
        assert low - 1 - 2 * scale <= start <= max(low, 0)
        assert min(high, frame.scaled_shape[axis]) <= stop <= high + 1 + 2 * scale


def test_the_crop_follows_flair_of_three_sequences_and_the_only_one(make_head, make_affine):
    flair, _ = make_head(center=(16.0, 22.0, 4.0))
    others, _ = make_head(center=(25.0, 33.0, 5.0))
    affine = make_affine("LPS")
    alone = find_slice_frame(flair[None], affine, None)
    assert find_slice_frame(np.stack([others, flair, others]), affine, None) == alone
    assert find_slice_frame(others[None], affine, None) != alone


def test_outside_of_the_crop_the_fill_value_comes_back(make_head, make_affine):
    head, inside = make_head((42, 52, 13), (18.0, 27.0, 6.0))
    frame = find_slice_frame(head[None], make_affine("RAI"), None, divisor=1, margin=1)
    assert 0 < frame.crop_start[2] < frame.scaled_shape[2] - frame.crop_shape[2]  # slices left out at either end
    back = from_slice_frame(to_slice_frame(head[None], frame), frame, fill=-7)[0]
    assert back[0, 0, 0] == -7
    np.testing.assert_array_equal(back[back != -7], head[back != -7])
    assert (back != -7)[inside].all()


def test_what_pads_a_channel_is_its_smallest_value(make_affine, anatomy):
    anatomy[1] -= 3000
    result = to_slice_frame(anatomy, find_slice_frame(anatomy, make_affine("LPS"), None, crop_to_head=False))
    np.testing.assert_array_equal(result[:, 0, 0, 0], anatomy.min(axis=(1, 2, 3)))
    np.testing.assert_array_equal(result[:, 2:13, 1:14], anatomy)


@pytest.mark.parametrize("crop_to_head", [False, True])
@pytest.mark.parametrize("divisor", [1, 8, 16, 64])
def test_height_and_width_are_multiples_of_the_divisor(make_head, make_affine, divisor, crop_to_head):
    head, _ = make_head()  # 42 x 52: smaller than the largest divisor
    frame = find_slice_frame(head[None], make_affine("LPS"), None, divisor=divisor, crop_to_head=crop_to_head)
    height, width, _ = frame.crop_shape
    assert height % divisor == width % divisor == 0
    assert to_slice_frame(head[None], frame).shape == (1, *frame.crop_shape)


@pytest.mark.parametrize("codes", ["LPS", "SRA"])
@pytest.mark.parametrize("shape", [(21, 18, 2), (3, 4, 400), (1, 13, 7), (11, 1, 7), (11, 13, 1), (1, 1, 1)])
def test_volumes_of_few_or_many_slices_and_few_pixels_come_back(store, shape, codes):
    numbered = np.random.default_rng(4).permutation(np.prod(shape)).astype(np.float32).reshape(1, *shape)
    volume, affine = store(numbered, codes)
    frame = whole(volume, affine, divisor=16)
    assert frame.crop_shape[2] == shape[2]
    np.testing.assert_array_equal(from_slice_frame(to_slice_frame(volume, frame), frame), volume)
    cropped = find_slice_frame(volume, affine, known_spacing(affine, 2))
    assert from_slice_frame(to_slice_frame(volume, cropped), cropped).shape == volume.shape


def test_a_volume_of_air_only_is_kept_whole(make_affine):
    frame = find_slice_frame(np.zeros((1, *SHAPE)), make_affine("LPS"), None, divisor=1)
    assert frame.crop_shape == SHAPE


# --- known_spacing ----------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "millimetres"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_spacing_is_given_in_mm_in_the_order_of_the_axes(make_affine, unit, millimetres):
    spacing = known_spacing(make_affine("oblique"), unit)
    assert spacing == pytest.approx((0.9 * millimetres, 1.1 * millimetres, 4.5 * millimetres))


@pytest.mark.parametrize("orientation", ["LPS", "PSR", "oblique"])
def test_voxels_of_size_1_without_unit_have_no_known_spacing(make_affine, orientation):
    affine = make_affine(orientation, (1, 1, 1))
    assert known_spacing(affine, 0) is None
    assert known_spacing(affine, 2) == pytest.approx((1, 1, 1))
    assert known_spacing(make_affine(orientation, (1, 1, 1.01)), 0) is not None


# --- JSON -------------------------------------------------------------------------------


@every_tilt
def test_a_frame_survives_json_unchanged(store, anatomy, tilt):
    volume, affine = store(anatomy, "SRA", tilt)
    frame = find_slice_frame(volume, affine, known_spacing(affine, 2))
    text = frame.to_json()
    assert SliceFrame.from_json(text) == frame
    assert SliceFrame.from_json(json.dumps(json.loads(text))) == frame
    np.testing.assert_array_equal(SliceFrame.from_json(text).crop_affine, frame.crop_affine)


# --- what is refused --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, *SHAPE)])
def test_an_image_that_is_not_4d_is_refused(make_affine, shape):
    with pytest.raises(ValueError, match=rf"image must be \(C, I, J, K\), got shape \({', '.join(map(str, shape))}\)"):
        find_slice_frame(np.zeros(shape), make_affine("LPS"), None)


@pytest.mark.parametrize(
    ("affine", "received"),
    [
        (np.eye(3), r"\[\[1\.0, 0\.0, 0\.0\], \[0\.0"),
        (np.diag([1.0, 0, 2.5, 1]), r"2\.5"),
        (np.diag([1.0, 1, np.nan, 1]), "nan"),
        (np.diag([1.0, np.inf, 1, 1]), "inf"),
    ],
    ids=["3x3", "singular", "nan", "infinite"],
)
def test_an_affine_that_cannot_be_inverted_is_refused(affine, received):
    with pytest.raises(ValueError, match=rf"affine must be an invertible \(4, 4\) matrix, got .*{received}"):
        find_slice_frame(np.zeros((1, *SHAPE)), affine, None)


@pytest.mark.parametrize("shape", [SHAPE, (1, 13, 11, 7)])
@pytest.mark.parametrize("convert", [to_slice_frame, from_slice_frame])
def test_a_volume_on_another_grid_is_refused(make_affine, convert, shape):
    frame = whole(np.zeros((1, *SHAPE)), make_affine("LPS"))
    received = ", ".join(map(str, shape))
    with pytest.raises(ValueError, match=rf"volume must be \(C, \*\(11, 13, 7\)\), got shape \({received}\)"):
        convert(np.zeros(shape), frame)


def test_an_unknown_interpolation_is_refused(make_affine, anatomy):
    with pytest.raises(ValueError, match="interpolation must be 'linear' or 'nearest', got 'cubic'"):
        to_slice_frame(anatomy, whole(anatomy, make_affine("LPS")), interpolation="cubic")
