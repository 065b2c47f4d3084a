"""``networks.atrophy_classifier`` and ``networks.calibrated_ridge``, on small heads with fluid that grows by stage."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch

from networks.atrophy_classifier import CLASSES, AtrophyClassifier, _percentile
from networks.calibrated_ridge import CalibratedRidge, log_odds_of_any, stratified_folds

# Every size is another: 8 slices of 34 x 30, a window of 24 x 16, fluid in 4 slices of 12 x 8.
SMALL = {
    "slices": 8,
    "size": (34, 30),
    "window": ((5, 29), (6, 22)),
    "fluid_slices": 4,
    "fluid_window": ((9, 21), (10, 18)),
}
STAGES = torch.tensor([0] * 20 + [1] * 14 + [2] * 8 + [3] * 2)


def make_images(stages, seed=0):
    """Make heads whose fluid in the middle widens with the stage, uint8, each slice of another brightness pattern."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(34.0), torch.arange(30.0), indexing="ij")
    pattern = torch.rand(8, 34, 30, generator=generator) * 50 + torch.arange(8.0)[:, None, None] * 6
    head = ((rows - 17) / 14) ** 2 + ((columns - 14) / 10) ** 2 < 1
    images = torch.zeros(len(stages), 8, 34, 30)
    for image, stage in zip(images, stages.tolist(), strict=True):
        width = 1.0 + 0.9 * stage + 1.2 * torch.rand(1, generator=generator).item()
        brain = 90 + pattern + 12 * torch.randn(8, 34, 30, generator=generator)
        fluid = ((rows - 14).abs() < 3) & ((columns - 14).abs() < width)
        image[:] = torch.where(fluid, 25.0, brain) * head
    return images.clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def images():
    return make_images(STAGES)


@pytest.fixture(scope="module")
def fitted(images):
    network = AtrophyClassifier(**SMALL)
    network.losses = network.fit(images, STAGES)
    return network


def accuracy_of_any(logits, stages):
    odds = log_odds_of_any(logits)
    return ((odds[:, None] - odds[None])[stages > 0][:, stages == 0] > 0).float().mean().item()


# --- what it computes --------------------------------------------------------------------------------


def test_stages_of_new_subjects_are_told_apart(fitted):
    stages = torch.tensor([0, 1, 2, 3] * 8)
    logits = fitted(make_images(stages, seed=9))
    assert logits.shape == (32, len(CLASSES))
    assert accuracy_of_any(logits, stages) > 0.9


def test_labels_without_a_meaning_are_learned_no_better_than_by_chance(images):
    areas = []
    for seed in range(3):
        order = torch.randperm(len(STAGES), generator=torch.Generator().manual_seed(seed))
        shuffled = STAGES[order]
        fold = stratified_folds(shuffled, 2, torch.Generator().manual_seed(seed))
        odds = torch.zeros(len(STAGES))
        for number in range(2):
            network = AtrophyClassifier(**SMALL)
            network.fit(images[fold != number], shuffled[fold != number])
            odds[fold == number] = log_odds_of_any(network(images[fold == number]))
        areas.append(((odds[shuffled > 0][:, None] > odds[shuffled == 0][None]).float()).mean().item())
    assert sum(areas) / len(areas) == pytest.approx(0.5, abs=0.2)


def test_the_scale_of_the_intensities_does_not_matter(fitted, images):
    torch.testing.assert_close(fitted(images[:3].float() * 7.5), fitted(images[:3]), rtol=1e-4, atol=1e-4)


def test_each_image_of_a_batch_is_answered_for_itself(fitted, images):
    chosen = images[[0, 43, 25]]
    alone = torch.cat([fitted(image[None]) for image in chosen])
    torch.testing.assert_close(fitted(chosen), alone, rtol=1e-4, atol=1e-5)


def test_the_features_are_the_roots_of_the_shares_of_fluid_and_bright_matter_in_blocks(fitted, images):
    crop = images[5, :, 5:29, 6:22].numpy().astype(np.float64)
    mask = (images[:, :, 5:29, 6:22].numpy() > 10).mean(0) > 0.5
    np.testing.assert_array_equal(fitted.mask.numpy(), mask)
    relative = crop / np.percentile(crop[mask], 90)
    fluid = ((relative < 0.45) & mask)[:4, 4:16, 4:12].reshape(1, 4, 3, 4, 2, 4).mean((1, 3, 5))
    bright = (relative > 1.05).reshape(2, 4, 3, 8, 2, 8).mean((1, 3, 5))
    expected = np.sqrt(np.concatenate([fluid.ravel(), bright.ravel()]))
    features = fitted._subject_features(fitted._crop(images[5:6]))[0].numpy()
    np.testing.assert_allclose(features, expected, atol=1e-6)
    assert (expected > 0).sum() > 5


def test_the_features_of_a_slice_are_the_same_in_blocks_of_its_whole_window(fitted, images):
    crop = images[5, 3, 5:29, 6:22].numpy().astype(np.float64)
    mask = fitted.mask[3].numpy()
    relative = crop / np.percentile(crop[mask], 90)
    fluid = ((relative < 0.45) & mask).reshape(6, 4, 4, 4).mean((1, 3))
    bright = (relative > 1.05).reshape(3, 8, 2, 8).mean((1, 3))
    expected = np.sqrt(np.concatenate([fluid.ravel(), bright.ravel()]))
    features = fitted._slice_features(fitted._crop(images[5:6])[:, 3], fitted.mask[3:4])[0].numpy()
    np.testing.assert_allclose(features, expected, atol=1e-6)
    assert ((expected > 0) & (expected < 1)).sum() > 5


def test_what_is_no_brain_is_no_fluid(images):
    network = AtrophyClassifier(**SMALL)
    network.mask[0, 4:8, 4:8] = False  # a quarter of the first block of fluid
    fluid = network._subject_features(network._crop(torch.where(images[:1] > 0, images[:1], 0)) * 0)[0, :6]
    torch.testing.assert_close(fluid, torch.tensor([0.75, 1, 1, 1, 1, 1]).sqrt())


@pytest.mark.parametrize("share", [0.03, 0.4, 1.0])
def test_the_percentile_is_that_of_numpy_inside_of_the_mask(share):
    generator = torch.Generator().manual_seed(4)
    values, mask = torch.rand(3, 517, generator=generator), torch.rand(3, 517, generator=generator) < share
    expected = [np.percentile(row[inside].numpy(), 90) for row, inside in zip(values, mask, strict=True)]
    np.testing.assert_allclose(_percentile(values, mask, 0.9).numpy(), expected, rtol=1e-5)


def test_without_a_fit_every_class_is_as_likely(images):
    assert torch.equal(AtrophyClassifier(**SMALL)(images[:2]), torch.zeros(2, 3))


def test_an_empty_image_gives_finite_logits(fitted):
    assert fitted(torch.zeros(1, 8, 34, 30)).isfinite().all()
    assert fitted.slice_logits(torch.zeros(1, 1, 34, 30)).isfinite().all()


def test_the_full_size_has_the_features_of_the_recipe():
    network = AtrophyClassifier()
    assert network.subject_head.blocks == [1344, 3168]
    assert network.slice_heads.blocks == [1584, 396]
    assert network(torch.rand(1, 32, 208, 176) * 255).shape == (1, 3)


# --- fitting -----------------------------------------------------------------------------------------


def test_a_fit_repeats_itself_and_does_not_care_for_the_number_type(images, fitted):
    again = AtrophyClassifier(**SMALL)
    assert again.fit(images.float(), STAGES.int()) == fitted.losses
    for name, value in fitted.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_templates_are_the_mean_slices_of_subjects_as_bright_as_each_other(images):
    uneven = (images.float() * torch.linspace(0.3, 1, len(images))[:, None, None, None]).round()
    network = AtrophyClassifier(**SMALL)
    network.fit(uneven, STAGES)
    crop, mask = uneven[:, :, 5:29, 6:22].numpy(), network.mask.numpy()
    mean = np.mean([subject / np.percentile(subject[mask], 90) for subject in crop], axis=0)
    small = mean.reshape(8, 6, 4, 4, 4).mean((2, 4)).reshape(8, -1)
    small -= small.mean(1, keepdims=True)
    small /= np.linalg.norm(small, axis=1, keepdims=True)
    np.testing.assert_allclose(network.templates.numpy(), small, atol=1e-5)


def test_mild_and_moderate_are_one_class(images, fitted):
    merged = AtrophyClassifier(**SMALL)
    assert merged.fit(images, STAGES.clamp(max=2)) == fitted.losses
    assert torch.equal(merged(images), fitted(images))


def test_another_generator_changes_the_calibration_but_not_the_ridge(images, fitted):
    other = AtrophyClassifier(**SMALL)
    other.fit(images, STAGES, torch.Generator().manual_seed(7))
    assert torch.equal(other.subject_head.weight, fitted.subject_head.weight)
    assert not torch.equal(other.subject_head.calibration_weight, fitted.subject_head.calibration_weight)


def test_the_state_dict_is_all_there_is(images, fitted):
    file = io.BytesIO()
    torch.save(fitted.state_dict(), file)
    file.seek(0)
    fresh = AtrophyClassifier(**SMALL)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(images), fitted(images))
    slices = images[:, 3:4]
    assert torch.equal(fresh.slice_logits(slices), fitted.slice_logits(slices))
    assert list(fresh.parameters()) == []


def test_a_ridge_is_that_of_the_textbook():
    generator = torch.Generator().manual_seed(0)
    samples, targets = torch.randn(1, 9, 6, generator=generator), torch.randn(9, 2, generator=generator)
    head = CalibratedRidge(1, (4, 2), (1.0, 0.3), 0.7)
    mean, weight, bias = head._ridge(samples, targets)
    centred = (samples[0] - samples[0].mean(0)).double()
    scale = torch.ones(6).double()
    scale[:4] = (1.0 / centred[:, :4].square().sum(1).mean()).sqrt()
    scale[4:] = (0.3 / centred[:, 4:].square().sum(1).mean()).sqrt()
    scaled = centred * scale
    primal = torch.linalg.solve(
        scaled.T @ scaled + 0.7 * torch.eye(6).double(), scaled.T @ (targets - targets.mean(0)).double()
    )
    expected = centred @ (primal * scale[:, None]) + targets.mean(0)
    torch.testing.assert_close(samples[0] @ weight[0].T + bias[0], expected.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mean[0], samples[0].mean(0))


def test_a_score_tells_who_is_above_its_threshold(fitted):
    head, stages = fitted.subject_head, STAGES.clamp(max=2)
    of_the_mean = (head.weight @ head.mean[:, :, None])[0, :, 0] + head.bias[0]
    shares = [(stages > threshold).float().mean() for threshold in (0, 1)]
    torch.testing.assert_close(of_the_mean, torch.stack(shares), rtol=1e-3, atol=1e-3)


def test_calibrated_probabilities_have_the_classes_own_shares(images, fitted):
    # A logistic regression with a free bias meets the shares of its training samples; ridge scores of subjects that the
    # ridge has seen are further apart, so only roughly here.
    shares = torch.bincount(STAGES.clamp(max=2)).float() / len(STAGES)
    torch.testing.assert_close(fitted(images).softmax(1).mean(0), shares, rtol=0, atol=0.08)
    assert 0 < fitted.losses["subjects"] < math.log(3)


def test_folds_hold_every_class_evenly():
    labels = torch.tensor([0] * 11 + [1] * 7 + [2] * 5)[torch.randperm(23, generator=torch.Generator().manual_seed(1))]
    fold = stratified_folds(labels, 5, torch.Generator().manual_seed(2))
    for label in range(3):
        counts = torch.bincount(fold[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert not torch.equal(fold, stratified_folds(labels, 5, torch.Generator().manual_seed(3)))


def test_a_class_of_one_is_refused(images):
    with pytest.raises(ValueError, match=r"needs 2 subjects, got \[20, 14, 1\] of 35 images"):
        AtrophyClassifier(**SMALL).fit(images[:35], STAGES[:35])


# --- single slices -----------------------------------------------------------------------------------


def test_slices_find_their_positions(fitted):
    subject = make_images(torch.tensor([1]), seed=0)[0]
    positions, correlations = fitted.slice_positions(subject[:, None])
    assert positions.tolist() == list(range(8))
    assert (correlations > 0.7).all()


def test_a_slice_is_answered_by_the_head_of_its_position(fitted, images):
    slices, position = images[40, [2, 6]][:, None], torch.tensor([2, 6])
    torch.testing.assert_close(fitted.slice_logits(slices), fitted.slice_logits(slices, position))
    assert not torch.allclose(fitted.slice_logits(slices, position), fitted.slice_logits(slices, position.flip(0)))


def test_the_lower_slices_tell_the_stages_apart_alone(fitted):
    stages = torch.tensor([0, 1, 2, 3] * 8)
    logits = fitted.slice_logits(make_images(stages, seed=4)[:, 2:3])
    assert accuracy_of_any(logits, stages) > 0.8


def test_the_slices_of_a_taller_volume_are_found(fitted, images):
    noise = torch.rand(11, 34, 30, generator=torch.Generator().manual_seed(3)) * 255
    volume = torch.cat([noise[:7], images[1].float() * 3, noise[7:]])
    first, correlation = fitted.find_slices(volume)
    assert first == 7
    assert correlation > 0.7
    assert fitted.find_slices(images[1])[0] == 0
    in_order = torch.cat([images[1, 4:], images[1], images[1, :4]])  # any run has all slices, one has them in order
    assert fitted.find_slices(in_order)[0] == 4


# --- what each place adds ----------------------------------------------------------------------------


def test_the_contributions_of_a_subject_sum_up_to_its_log_odds_above_the_mean(fitted, images):
    chosen, head = images[[0, 30, 43]], fitted.subject_head
    maps = fitted.contributions(chosen)
    assert maps.shape == chosen.shape
    mean = log_odds_of_any(head(head.mean, torch.zeros(1, dtype=torch.long)))
    torch.testing.assert_close(maps.sum((1, 2, 3)), log_odds_of_any(fitted(chosen)) - mean, rtol=1e-3, atol=1e-3)


def test_the_contributions_of_a_slice_sum_up_likewise(fitted, images):
    slices, position, heads = images[[0, 43], 2:3], torch.tensor([2, 2]), fitted.slice_heads
    maps = fitted.slice_contributions(slices)
    assert maps.shape == slices.shape
    mean = log_odds_of_any(heads(heads.mean[position], position))
    expected = log_odds_of_any(fitted.slice_logits(slices)) - mean
    torch.testing.assert_close(maps.sum((1, 2, 3)), expected, rtol=1e-3, atol=1e-3)


def test_what_speaks_for_dementia_lies_where_the_fluid_is(fitted, images):
    gain = fitted.contributions(images[STAGES >= 2]).mean(0) - fitted.contributions(images[STAGES == 0]).mean(0)
    # The fluid lies in rows 12 to 16, columns 11 to 17; its blocks begin at row 9 and column 10.
    inside = gain[:4, 9:21, 10:18].sum()
    assert inside > 0.5 * gain.sum() > 0
    assert gain[:, :5].abs().sum() == gain[:, :, 22:].abs().sum() == 0  # outside of the window


def teach_one_feature(head, number):
    """Let one feature alone decide, whatever the head."""
    head.weight[:, 0, number] = 1
    head.calibration_weight[:, 1, 0] = 1


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (5, (slice(0, 4), slice(17, 21), slice(14, 18))),  # fluid, 3 x 2 blocks from row 9 and column 10: (2, 1)
        (6 + 10, (slice(4, 8), slice(21, 29), slice(6, 14))),  # bright, 2 x 3 x 2 blocks from row 5 and column 6
    ],
)
def test_a_features_share_lies_in_its_own_block(number, place):
    image = torch.rand(1, 8, 34, 30, generator=torch.Generator().manual_seed(1)) * 255
    network = AtrophyClassifier(**SMALL)
    teach_one_feature(network.subject_head, number)
    share = network.contributions(image)[0]
    assert (share[place] > 0).all()
    assert share.count_nonzero() == share[place].numel()


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (4 * 4 + 3, (slice(21, 25), slice(18, 22))),  # fluid, 6 x 4 blocks from row 5 and column 6: (4, 3)
        (24 + 1, (slice(5, 13), slice(14, 22))),  # bright, 3 x 2 blocks: (0, 1)
    ],
)
def test_a_features_share_lies_in_its_own_block_of_a_slice(number, place):
    image = torch.rand(1, 1, 34, 30, generator=torch.Generator().manual_seed(2)) * 255
    network = AtrophyClassifier(**SMALL)
    teach_one_feature(network.slice_heads, number)
    share = network.slice_contributions(image, torch.tensor([3]))[0, 0]
    assert (share[place] > 0).all()
    assert share.count_nonzero() == share[place].numel()


# --- at the door, and out of the house ---------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 34, 30), (1, 7, 34, 30), (1, 8, 30, 34)])
def test_an_image_of_another_shape_is_refused(fitted, shape):
    with pytest.raises(ValueError, match=r"image must be \(B, 8, 34, 30\), got shape"):
        fitted(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"image must be \(B, 1, 34, 30\), got shape"):
        fitted.slice_logits(torch.zeros(shape))


def test_a_volume_that_is_too_short_is_refused(fitted):
    with pytest.raises(ValueError, match=r"volume must be \(N, 34, 30\) with N of at least 8, got shape \[7, 34, 30\]"):
        fitted.find_slices(torch.zeros(7, 34, 30))


@pytest.mark.parametrize(
    "wrong",
    [
        {"slices": 6},
        {"fluid_slices": 12},
        {"fluid_slices": 3},
        {"window": ((5, 30), (6, 22))},
        {"window": ((5, 29), (6, 38))},
        {"fluid_window": ((9, 21), (2, 10))},
    ],
    ids=str,
)
def test_an_argument_that_does_not_fit_is_named(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must"):
        AtrophyClassifier(**{**SMALL, **wrong})


def test_torchscript_gives_the_same_logits(fitted, images):
    scripted = torch.jit.script(fitted)
    assert torch.equal(scripted(images[:2]), fitted(images[:2]))
