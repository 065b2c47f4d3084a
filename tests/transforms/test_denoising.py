import numpy as np
import pytest

from transforms.denoising import HIGHEST_TRAINING_NOISE, Noise, estimate_noise, reduce_noise
from transforms.intensity import find_head, normalize_intensity

SHAPE = (70, 84, 9)  # all sizes differ, so a swapped axis cannot pass unseen
AIR = 3.0


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def inside():
    grid = np.stack(np.indices(SHAPE), axis=-1)
    return (((grid - (33, 45, 4)) / (26, 35, 6)) ** 2).sum(axis=-1) <= 1


@pytest.fixture
def clean(inside):
    """A head without noise (H, W, K), its tissue of gentle contrast, with a bright lesion."""
    rows, columns, slices = np.indices(SHAPE)
    tissue = 100 + 30 * np.sin(rows / 5 + slices) * np.cos(columns / 7)
    volume = np.where(inside, tissue, AIR)
    volume[20:32, 40:56, 2:6] = 180
    return volume.astype(np.float32)


@pytest.fixture
def noisy(clean, random):
    """The head with signed noise of deviation 12."""
    return clean + random.normal(0, 12, SHAPE).astype(np.float32)


# --- estimate_noise ---------------------------------------------------------------------


@pytest.mark.parametrize("deviation", [2, 8, 25])
def test_the_deviation_of_white_noise_is_found(clean, random, deviation):
    noise = estimate_noise(clean + random.normal(0, deviation, SHAPE))
    assert noise.deviation == pytest.approx(deviation, rel=0.1)
    assert noise.air == pytest.approx(AIR, abs=deviation / 4)


def test_relative_noise_is_a_share_of_the_spread_of_tissue(clean, inside, noisy):
    assert estimate_noise(noisy).relative == pytest.approx(12 / clean[inside].std(), rel=0.3)


def test_a_head_without_noise_has_next_to_none(clean):
    assert estimate_noise(clean).relative < 0.05


def test_air_without_noise_does_not_hide_the_noise_of_the_tissue(clean, inside, noisy):
    noise = estimate_noise(np.where(inside, noisy, 0))
    assert noise.deviation == pytest.approx(12, rel=0.15)
    assert noise.air == 0


def test_noise_of_the_air_alone_does_not_count(clean, inside, noisy):
    assert estimate_noise(np.where(inside, clean, noisy)).relative < 0.05


@pytest.mark.parametrize(("a", "b"), [(400, -9000), (0.003, 0.5), (1, 5000)])
def test_scale_and_offset_of_the_scanner_do_not_matter_for_the_estimate(noisy, a, b):
    expected, scaled = estimate_noise(noisy), estimate_noise(a * noisy + b)
    assert scaled.relative == pytest.approx(expected.relative, rel=1e-2)
    assert scaled.deviation == pytest.approx(a * expected.deviation, rel=1e-2)
    assert scaled.air == pytest.approx(a * expected.air + b, rel=1e-2)


def test_slices_are_looked_at_all_over_the_volume(clean, random):
    tall = np.tile(clean, (1, 1, 4))
    upper = tall.copy()
    upper[..., 18:] += random.normal(0, 12, upper[..., 18:].shape)
    assert 1 < estimate_noise(upper).deviation < 12


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_voxels_count_as_air(noisy, inside, value):
    noisy[33, 45] = -60  # the smallest value of each slice
    expected = estimate_noise(np.where(inside, noisy, -60))
    assert estimate_noise(np.where(inside, noisy, value)) == expected


@pytest.mark.parametrize("shape", [(2, 9, 5), (9, 2, 5), (1, 1, 1), (4, 5, 0)])
def test_nothing_can_be_told_of_slices_smaller_than_three_pixels(random, shape):
    assert estimate_noise(random.random(shape)) == Noise(0, 0, 0)


@pytest.mark.parametrize("value", [0, 0.1, -3, 65535, np.nan])
def test_a_constant_volume_has_no_noise(value):
    noise = estimate_noise(np.full(SHAPE, value))
    assert noise.deviation == pytest.approx(0, abs=1e-2)
    assert noise.relative == 0


# --- reduce_noise -----------------------------------------------------------------------


def test_a_clean_volume_comes_back_itself(clean):
    volume = np.stack([clean, 2 * clean])
    assert reduce_noise(volume) is volume


def test_only_the_sequences_with_noise_are_changed(clean, noisy):
    volume = np.stack([clean, noisy, clean / 2])
    result = reduce_noise(volume)
    assert result.shape == volume.shape
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result[[0, 2]], volume[[0, 2]])
    assert not np.allclose(result[1], volume[1], atol=1)


def test_a_sequence_comes_closer_to_what_it_was_without_noise(clean, inside, noisy):
    result = reduce_noise(noisy[None])[0]
    # A square of 25 pixels leaves a fifth of the deviation where there is no detail to keep.
    assert (result - clean)[~inside].std() < 12 / 3
    assert (result - clean)[inside].std() < 0.6 * (noisy - clean)[inside].std()


def test_every_voxel_stays_in_its_place(random):
    volume = np.zeros((1, *SHAPE), dtype=np.float32)
    volume[0, 20:50, 30:60] = 100
    volume[0, 31, 44, 5] = 900  # so far from its neighbours that noise cannot explain it
    result = reduce_noise(volume + random.normal(0, 8, volume.shape).astype(np.float32))[0]
    assert np.unravel_index(result.argmax(), SHAPE) == (31, 44, 5)
    assert result[31, 44, 5] > 800


def test_a_voxel_touches_the_25_of_its_neighbourhood_and_no_other_slice(noisy):
    volume = np.stack([noisy, noisy])
    volume[1, 31, 44, 3] = 500  # in a slice that the estimate passes over
    first, second = reduce_noise(volume)
    expected = np.zeros(SHAPE, dtype=bool)
    expected[29:34, 42:47, 3] = True
    np.testing.assert_array_equal(first != second, expected)


def test_edges_stay_sharper_than_a_mean_would_leave_them(clean, noisy):
    result = reduce_noise(noisy[None])[0]
    across = result[30:34, 44:52, 2:6].mean(axis=(1, 2))  # the lesion ends after row 31
    assert across[1] - across[2] > 0.6 * (180 - clean[32, 44:52, 2:6].mean())


def test_nothing_is_darker_than_air(noisy):
    assert noisy.min() < -30
    assert reduce_noise(noisy[None]).min() == pytest.approx(estimate_noise(noisy).air)


def test_the_head_is_found_again_and_normalised_as_without_noise(clean, inside, noisy):
    noisy = noisy.copy()
    noisy[0, 0] = -400  # as where the padding of a volume takes its darkest value
    assert find_head(noisy).mean() > 0.9
    result = reduce_noise(noisy[None])
    found = find_head(result[0])
    assert (found & inside).sum() / (found | inside).sum() > 0.9
    np.testing.assert_allclose(
        normalize_intensity(result)[0][inside].mean(), normalize_intensity(clean[None])[0][inside].mean(), atol=0.1
    )


@pytest.mark.parametrize(("a", "b"), [(400, -9000), (0.003, 0.5), (1, 5000)])
def test_scale_and_offset_of_the_scanner_do_not_matter(noisy, a, b):
    expected = a * reduce_noise(noisy[None]) + b
    np.testing.assert_allclose(reduce_noise((a * noisy + b)[None]), expected, atol=0.3 * a)


def test_the_limit_can_be_moved(clean, noisy):
    volume = noisy[None]
    relative = estimate_noise(noisy).relative
    assert relative > HIGHEST_TRAINING_NOISE
    assert reduce_noise(volume, highest_noise=relative) is volume
    assert reduce_noise(volume, highest_noise=0.99 * relative) is not volume


def test_how_a_volume_lies_in_memory_does_not_matter(noisy):
    by_slice = np.ascontiguousarray(noisy.transpose(2, 0, 1)).transpose(1, 2, 0)
    np.testing.assert_allclose(reduce_noise(by_slice[None]), reduce_noise(noisy[None]), atol=1e-3)


def test_whole_numbers_give_what_floats_give(noisy):
    whole = noisy.round().astype(np.int16)[None]
    np.testing.assert_array_equal(reduce_noise(whole), reduce_noise(whole.astype(np.float64)))


def test_nonfinite_voxels_become_air(noisy, inside):
    result = reduce_noise(np.where(inside, noisy, np.nan)[None])
    assert np.isfinite(result).all()
    assert result[0, 0, 0, 0] == result.min()


def test_the_input_is_not_modified(noisy):
    volume = noisy[None].copy()
    reduce_noise(volume)
    np.testing.assert_array_equal(volume[0], noisy)


@pytest.mark.parametrize("shape", [(1, 1, 13, 7), (1, 11, 1, 7), (1, 11, 13, 1), (2, 1, 1, 1), (1, 3, 4, 50)])
def test_thin_volumes_keep_their_shape_and_stay_finite(random, shape):
    result = reduce_noise(random.random(shape), highest_noise=0)
    assert result.shape == shape
    assert np.isfinite(result).all()


@pytest.mark.parametrize("shape", [(13, 7), (11, 13, 7), (1, 1, 11, 13, 7)])
def test_a_volume_that_is_not_4d_is_refused(shape):
    with pytest.raises(ValueError, match=rf"volume must be \(C, H, W, K\), got shape \({shape[0]}, {shape[1]}"):
        reduce_noise(np.zeros(shape))
