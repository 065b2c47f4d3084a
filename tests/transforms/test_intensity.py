import numpy as np
import pytest
from scipy import ndimage

from transforms.intensity import find_head, find_head_box, normalize_intensity, otsu_threshold, replace_nonfinite

SHAPE = (3, 11, 13, 7)  # all sizes differ, so a swapped axis cannot pass unseen


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def head(make_head):
    """Image (1, I, J, K) of a head in noisy air, and where the head is (I, J, K)."""
    volume, inside = make_head()
    return volume[None], inside


# --- replace_nonfinite ------------------------------------------------------------------


def test_nonfinite_voxels_become_the_smallest_finite_value():
    volume = np.array([np.nan, -5, np.inf, 3, -np.inf])
    np.testing.assert_array_equal(replace_nonfinite(volume), np.float32([-5, -5, -5, 3, -5]))


def test_a_volume_without_any_finite_voxel_becomes_zeros():
    np.testing.assert_array_equal(replace_nonfinite(np.full((2, 3), np.nan)), np.zeros((2, 3)))


def test_a_finite_volume_stays_as_it_is_in_float32():
    result = replace_nonfinite(np.array([[0, 65535], [-32768, 7]]))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, [[0, 65535], [-32768, 7]])


# --- otsu_threshold ---------------------------------------------------------------------


def test_otsu_cuts_a_gap_in_its_middle():
    assert otsu_threshold(np.array([4.0, 4, 4, 10, 10])) == pytest.approx(7)


def test_otsu_agrees_with_a_case_worked_by_hand():
    # Of 0 0 2 2 10 10, {0 0 2 2 | 10 10} has variance 4 * 2 * (1 - 10)^2 = 648 between its classes and
    # {0 0 | 2 2 10 10} only 2 * 4 * (0 - 6)^2 = 288. Bins are 10 / 128 wide: 2 lies in bin 25 and 10 in
    # bin 127, so the gap runs from edge 26 to edge 127 and its middle is (26 + 127) / 2 bins from 0.
    assert otsu_threshold(np.array([0.0, 2, 10, 0, 10, 2])) == pytest.approx((26 + 127) / 2 * 10 / 128)


def test_otsu_moves_and_grows_with_the_values(random):
    values = np.concatenate([random.normal(0, 1, 500), random.normal(8, 2, 300)])
    threshold = otsu_threshold(values)
    assert 2 < threshold < 6
    assert otsu_threshold(16 * values - 1000) == pytest.approx(16 * threshold - 1000)


# --- find_head --------------------------------------------------------------------------


@pytest.mark.parametrize("enlarged", [1, 2], ids=["every pixel", "every second pixel"])
def test_the_head_is_found_in_noisy_air(make_head, enlarged):
    volume, inside = make_head(
        (42 * enlarged - 1, 52 * enlarged - 1, 9),  # odd, so that the last pixel pair is half outside
        (18.0 * enlarged, 27.0 * enlarged, 4.0),
        (12.0 * enlarged, 16.0 * enlarged, 3.4),
    )
    found = find_head(volume)
    assert found.shape == volume.shape
    pixel = np.ones((3, 3, 1))
    core = inside if enlarged == 1 else ndimage.binary_erosion(inside, pixel)
    assert found[core].all()
    assert not found[~ndimage.binary_dilation(inside, pixel, iterations=2 * enlarged - 1)].any()


@pytest.mark.parametrize("brightness", [200, 60000])
def test_a_bright_speck_outside_is_not_the_head(head, brightness):
    volume, inside = head[0][0].copy(), head[1]
    volume[38, 3, 1] = brightness
    found = find_head(volume)
    assert found[inside].all()
    assert not found[36:41, 1:6].any()


def test_a_head_too_small_for_percentiles_is_found():
    volume = np.zeros((30, 32, 6), dtype=np.float32)
    volume[11:13, 20:23, 4] = 50  # 0.1 % of all voxels: the 99.5th percentile is air
    found = find_head(volume)
    assert found[11:13, 20:23, 4].all()
    assert found.sum() == 4 * 5  # the box and the one pixel around it that smoothing adds


@pytest.mark.parametrize(
    ("shape", "center"),
    [((42, 52, 9), (18, 27, 4)), ((83, 51, 9), (40, 27, 4)), ((65, 97, 7), (60, 90, 6)), ((64, 65, 3), (63, 64, 2))],
)
def test_the_heads_box_is_the_extent_of_its_mask(make_head, shape, center):
    volume, _ = make_head(shape, center)
    found = find_head(volume)
    extent = []
    for axis in range(3):
        places = np.unique(found.nonzero()[axis])
        extent.append(slice(places[0], places[-1] + 1))
    assert find_head_box(volume) == tuple(extent)


def test_the_box_of_a_constant_volume_is_all_of_it():
    assert find_head_box(np.full((65, 70, 3), 7.0)) == (slice(0, 65), slice(0, 70), slice(0, 3))


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1)])
def test_how_a_volume_lies_in_memory_does_not_matter(make_head, axes):
    volume, _ = make_head((83, 51, 9), (40.0, 27.0, 4.0))
    stored = volume.transpose(axes).copy().transpose(np.argsort(axes))
    np.testing.assert_array_equal(find_head(stored), find_head(volume))
    flipped = volume[::-1, :, ::-1].copy()[::-1, :, ::-1]
    np.testing.assert_array_equal(normalize_intensity(flipped[None]), normalize_intensity(volume[None]))
    np.testing.assert_array_equal(normalize_intensity(stored[None]), normalize_intensity(volume[None]))


def test_a_constant_volume_is_head_everywhere():
    assert find_head(np.full((4, 5, 3), 7.0)).all()


# --- normalize_intensity ----------------------------------------------------------------


def test_the_head_gets_mean_0_and_variance_1_and_air_stays_darkest(head):
    volume, inside = head
    result = normalize_intensity(volume)
    assert result.dtype == np.float32
    found = find_head(volume[0])
    assert result[0][found].mean() == pytest.approx(0, abs=1e-4)
    assert result[0][found].std() == pytest.approx(1, abs=1e-4)
    assert result[0][~found].max() < result[0][inside].min()


def test_how_much_air_surrounds_the_head_does_not_matter(head, random):
    volume, _ = head
    surrounded = random.uniform(0, 20, (1, 61, 63, 9)).astype(np.float32)
    within = (0, slice(16, 58), slice(4, 56))
    surrounded[within] = volume[0]
    np.testing.assert_allclose(normalize_intensity(surrounded)[within], normalize_intensity(volume)[0], atol=0.1)


@pytest.mark.parametrize(("a", "b"), [(2, 0), (1, -70), (0.003, 0.5), (400, -9000), (1e-12, 0), (1e12, 1e12)])
def test_scale_and_offset_of_the_scanner_do_not_matter(head, a, b):
    volume, _ = head
    np.testing.assert_allclose(normalize_intensity(a * volume + b), normalize_intensity(volume), atol=2e-3)


def test_inverting_the_contrast_does_matter(head):
    volume, _ = head
    assert not np.allclose(normalize_intensity(-volume), normalize_intensity(volume), atol=0.1)


def test_each_channel_is_normalised_alone(random):
    volume = random.random(SHAPE)
    together = normalize_intensity(volume * np.array([1, 500, 3])[:, None, None, None])
    for channel in range(3):
        np.testing.assert_allclose(together[channel], normalize_intensity(volume[channel : channel + 1])[0], atol=1e-4)


def test_outliers_are_clipped_to_the_percentiles(random):
    volume = random.permutation(np.arange(1000.0)).reshape(1, 10, 20, 5)
    volume[volume == 999] = 1e6
    result = normalize_intensity(volume, lower_percentile=10, upper_percentile=90)
    inside = find_head(volume[0])
    low, high = np.percentile(volume[0][inside], [10, 90])
    clipped = np.clip(volume, low, high)
    expected = (clipped - clipped[0][inside].mean()) / clipped[0][inside].std()
    np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize("value", [0, 0.1, -3, 65535, 1e30])
def test_a_constant_channel_becomes_zeros(random, value):
    volume = random.random(SHAPE)
    volume[1] = value
    result = normalize_intensity(volume)
    assert not result[1].any()
    assert result[0].std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("steps", [1, 2, 60, 150, 10_000])
def test_a_channel_constant_up_to_rounding_is_never_an_error(steps):
    volume = np.full((1, 9, 10, 5), 1000, dtype=np.float32)
    volume[0, 3:6, 3:6, 1:3] += steps * np.spacing(np.float32(1000))
    result = normalize_intensity(volume)
    assert np.isfinite(result).all()
    assert result.any() == (steps > 60)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_voxels_count_as_air(head, value):
    volume = head[0].copy()
    volume[:, :4], volume[0, 20, 25, 3] = 0, 0
    expected = normalize_intensity(volume)
    volume[volume == 0] = value
    np.testing.assert_array_equal(normalize_intensity(volume), expected)


def test_nothing_but_nan_becomes_zeros():
    assert not normalize_intensity(np.full(SHAPE, np.nan)).any()


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.int16, -32768, 32767), (np.uint16, 0, 65535), (np.uint8, 0, 255), (np.int32, -(2**20), 2**20)],
)
def test_whole_numbers_of_any_range_give_what_floats_give(random, dtype, low, high):
    volume = random.integers(low, high, SHAPE, endpoint=True).astype(dtype)
    volume[0, 0, 0, :2] = low, high
    result = normalize_intensity(volume)
    np.testing.assert_array_equal(result, normalize_intensity(volume.astype(np.float64)))
    assert 0.9 < result.std() < 1.1


def test_a_negative_volume_is_normalised_like_any_other(head):
    volume, _ = head
    np.testing.assert_allclose(normalize_intensity(volume - 500), normalize_intensity(volume), atol=1e-3)


@pytest.mark.parametrize(
    "shape", [(1, 1, 13, 7), (1, 11, 1, 7), (1, 11, 13, 1), (1, 11, 13, 2), (2, 1, 1, 1), (1, 3, 2, 400), (1, 65, 1, 2)]
)
def test_thin_volumes_keep_their_shape_and_stay_finite(random, shape):
    result = normalize_intensity(random.random(shape))
    assert result.shape == shape
    assert np.isfinite(result).all()


def test_the_input_is_not_modified(head):
    volume = head[0].copy()
    volume[0, 0, 0, 0] = np.nan
    before = volume.copy()
    normalize_intensity(volume)
    np.testing.assert_array_equal(volume, before)


@pytest.mark.parametrize("shape", [(13, 7), (11, 13, 7), (1, 1, 11, 13, 7)])
def test_a_volume_that_is_not_4d_is_refused(shape):
    with pytest.raises(ValueError, match=rf"volume must be \(C, I, J, K\), got shape \({shape[0]}, {shape[1]}"):
        normalize_intensity(np.zeros(shape))


@pytest.mark.parametrize(("lower", "upper"), [(60, 40), (50, 50), (-1, 99), (1, 100.5)])
def test_percentiles_out_of_order_are_refused(lower, upper):
    with pytest.raises(ValueError, match=rf"0 <= lower < upper <= 100, got {lower} and {upper}"):
        normalize_intensity(np.zeros(SHAPE), lower_percentile=lower, upper_percentile=upper)
