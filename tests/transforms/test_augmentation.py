import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from transforms.augmentation import RandHeadBiasFieldd, RandSequenceDropoutd, RandSlicesd

T1, FLAIR, T1C = 0, 1, 2
H, W, K = 3, 4, 12  # all sizes differ, so a swapped axis cannot pass unseen
LESION_SLICES = (2, 3, 7, 10)


@pytest.fixture
def patient():
    """Make image (3, H, W, K) and label (1, H, W, K) whose lesion lies in the given slices.

    Every voxel of the image is 100 * channel + slice number; the label's lesion is 1 + slice number.
    """

    def make(lesion_slices=LESION_SLICES):
        image = torch.arange(K) + 100.0 * torch.arange(3)[:, None, None, None] + torch.zeros(3, H, W, K)
        label = torch.zeros(1, H, W, K)
        for index in lesion_slices:
            label[0, index % H, index % W, index] = 1 + index
        return {"image": MetaTensor(image), "label": MetaTensor(label)}

    return make


@pytest.fixture
def sequences():
    """Image (3, H, W) whose voxels all differ."""
    return torch.arange(3.0 * H * W).reshape(3, H, W)


@pytest.fixture
def slice_of_head():
    """Normalised image (3, 24, 30): air of another darkness in each channel, and a head of mean 0."""
    generator = torch.Generator().manual_seed(0)
    image = torch.tensor([-2.0, -3.0, -1.5])[:, None, None].repeat(1, 24, 30)
    image[:, 5:20, 6:25] = torch.randn(3, 15, 19, generator=generator).clamp(-1.4, 3)
    return image


def drawn_indices(items):
    return [int(item["image"][0, 0, 0]) for item in items]


# --- RandSlicesd ------------------------------------------------------------------------


def test_image_and_label_of_a_drawn_slice_belong_together(patient):
    items = RandSlicesd(["image", "label"], num_slices=K).set_random_state(0)(patient())
    assert len(items) == K
    for item, index in zip(items, drawn_indices(items), strict=True):
        assert item["image"].shape == (3, H, W)
        assert item["label"].shape == (1, H, W)
        assert (item["image"] == index + 100.0 * torch.arange(3)[:, None, None]).all()
        assert item["label"].max() == (1 + index if index in LESION_SLICES else 0)


@pytest.mark.parametrize("share", [0, 0.25, 0.6, 1])
def test_the_share_of_slices_with_lesion_is_as_asked(patient, share):
    draw = RandSlicesd(["image", "label"], num_slices=3, lesion_share=share).set_random_state(1)
    data = patient()
    with_lesion = [index in LESION_SLICES for _ in range(250) for index in drawn_indices(draw(data))]
    assert len(with_lesion) == 750
    assert np.mean(with_lesion) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 750))


def test_every_slice_is_drawn_sooner_or_later(patient):
    draw = RandSlicesd(["image", "label"], num_slices=3, lesion_share=0.5).set_random_state(2)
    data = patient()
    counts = np.bincount([index for _ in range(200) for index in drawn_indices(draw(data))], minlength=K)
    assert counts[list(LESION_SLICES)].min() > 40  # 75 expected of each
    assert np.delete(counts, LESION_SLICES).min() > 15  # 37.5 expected of each


@pytest.mark.parametrize("share", [0, 1])
def test_no_slice_is_drawn_twice_while_there_are_enough_of_its_kind(patient, share):
    draw = RandSlicesd(["image", "label"], num_slices=4, lesion_share=share).set_random_state(3)
    for _ in range(20):
        assert len(set(drawn_indices(draw(patient())))) == 4


def test_slices_are_repeated_where_there_are_too_few(patient):
    draw = RandSlicesd(["image", "label"], num_slices=9, lesion_share=1).set_random_state(4)
    indices = drawn_indices(draw(patient(lesion_slices=[5, 6])))
    assert len(indices) == 9
    assert set(indices) <= {5, 6}


@pytest.mark.parametrize("lesion_slices", [(), tuple(range(K))], ids=["without lesion", "all lesion"])
def test_a_volume_of_one_kind_of_slices_gives_what_it_has(patient, lesion_slices):
    draw = RandSlicesd(["image", "label"], num_slices=5, lesion_share=0.6).set_random_state(5)
    assert len(set(drawn_indices(draw(patient(lesion_slices))))) == 5


def test_a_drawn_slice_is_a_plain_tensor_of_its_own(patient):
    data = patient()
    (item,) = RandSlicesd(["image", "label"]).set_random_state(6)(data)
    assert type(item["image"]) is type(item["label"]) is torch.Tensor
    before = data["image"].clone()
    item["image"].zero_()
    assert (data["image"] == before).all()


def test_the_label_may_have_another_key(patient):
    data = {"image": patient()["image"], "seg": patient()["label"]}
    draw = RandSlicesd(["image", "seg"], label_key="seg", num_slices=4, lesion_share=1).set_random_state(7)
    assert sorted(drawn_indices(draw(data))) == list(LESION_SLICES)


def test_an_image_brings_its_neighbours_along_and_a_label_comes_alone(patient):
    draw = RandSlicesd(["image", "label"], num_slices=K, context=1).set_random_state(8)
    for item in draw(patient()):
        below, index, above = (int(value) for value in item["image"][::3, 0, 0])
        assert item["image"].shape == (9, H, W)
        assert (below, above) == (max(index - 1, 0), min(index + 1, K - 1))
        assert item["label"].shape == (1, H, W)
        assert item["label"].max() == (1 + index if index in LESION_SLICES else 0)


@pytest.mark.parametrize("num_slices", [0, -2])
def test_drawing_fewer_than_one_slice_is_refused(num_slices):
    with pytest.raises(ValueError, match=f"num_slices must be at least 1, got {num_slices}"):
        RandSlicesd("image", num_slices=num_slices)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_lesion_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=f"lesion_share must be from 0 to 1, got {share}"):
        RandSlicesd("image", lesion_share=share)


# --- RandSequenceDropoutd ---------------------------------------------------------------


@pytest.mark.parametrize(("prob_both", "prob_each"), [(0.25, 0.1), (0, 0.4), (0.7, 0)])
def test_sequences_are_lost_as_often_as_asked(sequences, prob_both, prob_each):
    lose = RandSequenceDropoutd("image", prob_both=prob_both, prob_each=prob_each).set_random_state(0)
    trials = 1000
    results = [lose({"image": sequences})["image"] for _ in range(trials)]
    lost = np.array([[bool((image[c] == image[FLAIR]).all()) for c in (T1, T1C)] for image in results])
    one = prob_both + (1 - prob_both) * prob_each
    both = prob_both + (1 - prob_both) * prob_each**2
    tolerance = 4 * np.sqrt(0.25 / trials)
    assert lost.mean(axis=0) == pytest.approx([one, one], abs=tolerance)
    assert lost.all(axis=1).mean() == pytest.approx(both, abs=tolerance)


def test_a_lost_sequence_is_flair_and_the_others_stay(sequences):
    lose = RandSequenceDropoutd("image", prob_both=0.2, prob_each=0.3).set_random_state(1)
    seen = set()
    for _ in range(60):
        image = lose({"image": sequences})["image"]
        lost = tuple(channel for channel in (T1, T1C) if (image[channel] == sequences[FLAIR]).all())
        expected = sequences.clone()
        for channel in lost:
            expected[channel] = sequences[FLAIR]
        torch.testing.assert_close(image, expected, rtol=0, atol=0)
        seen.add(lost)
    assert seen == {(), (T1,), (T1C,), (T1, T1C)}


def test_all_keys_lose_the_same_sequences(sequences):
    lose = RandSequenceDropoutd(["image", "prior"], prob_both=0, prob_each=0.5).set_random_state(2)
    for _ in range(20):
        result = lose({"image": sequences, "prior": sequences + 1000})
        assert (result["image"] + 1000 == result["prior"]).all()


def test_a_volume_loses_whole_sequences_too(patient):
    image = RandSequenceDropoutd("image", prob_both=1)(patient())["image"]
    assert (image == image[FLAIR]).all()


def test_a_slice_and_its_neighbours_lose_the_same_sequences(sequences):
    lose = RandSequenceDropoutd("image", prob_both=0, prob_each=0.5).set_random_state(3)
    for _ in range(20):
        image = lose({"image": torch.cat([sequences, sequences + 1000, sequences + 2000])})["image"]
        assert (image[3:6] == image[:3] + 1000).all()
        assert (image[6:] == image[:3] + 2000).all()


@pytest.mark.parametrize("name", ["prob_both", "prob_each"])
@pytest.mark.parametrize("value", [-0.5, 1.01])
def test_a_probability_that_is_none_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be from 0 to 1, got {value}"):
        RandSequenceDropoutd("image", **{name: value})


# --- RandHeadBiasFieldd -----------------------------------------------------------------


def test_shading_keeps_air_dark_and_changes_the_head(slice_of_head):
    image = RandHeadBiasFieldd("image", prob=1).set_random_state(0)({"image": slice_of_head})["image"]
    air = slice_of_head == slice_of_head.amin(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(image[air], slice_of_head[air])
    assert (image[~air] - slice_of_head[~air]).abs().mean() > 0.01


def test_shading_is_smooth_positive_and_equal_in_all_channels(slice_of_head):
    image = RandHeadBiasFieldd("image", prob=1).set_random_state(1)({"image": slice_of_head})["image"]
    darkest = slice_of_head.amin(dim=(1, 2), keepdim=True)
    field = ((image - darkest) / (slice_of_head - darkest))[:, 5:20, 6:25]  # the head
    torch.testing.assert_close(field, field[:1].expand(3, -1, -1), rtol=1e-4, atol=1e-4)
    assert field.min() > 0
    assert field.std() > 1e-3
    assert field.diff(dim=1).abs().max() < 0.2
    assert field.diff(dim=2).abs().max() < 0.2


def test_more_strength_shades_more(slice_of_head):
    def change(strength):
        shade = RandHeadBiasFieldd("image", prob=1, strength=strength).set_random_state(2)
        return (shade({"image": slice_of_head})["image"] - slice_of_head).abs().mean()

    assert change(0) == pytest.approx(0, abs=1e-6)
    assert change(0.05) < change(0.3)


@pytest.mark.parametrize("prob", [0, 0.3, 1])
def test_images_are_shaded_as_often_as_asked(slice_of_head, prob):
    shade = RandHeadBiasFieldd("image", prob=prob).set_random_state(3)
    changed = [not torch.equal(shade({"image": slice_of_head})["image"], slice_of_head) for _ in range(80)]
    assert np.mean(changed) == pytest.approx(prob, abs=4 * np.sqrt(prob * (1 - prob) / 80))


def test_the_field_itself_follows_the_seed(slice_of_head):
    def shaded(seed):
        return RandHeadBiasFieldd("image", prob=1).set_random_state(seed)({"image": slice_of_head})["image"]

    assert torch.equal(shaded(4), shaded(4))
    assert not torch.equal(shaded(4), shaded(5))


# --- manners of a random transform ------------------------------------------------------


def make_every_transform():
    return [
        RandSlicesd(["image", "label"], num_slices=3, lesion_share=0.6),
        RandSequenceDropoutd("image", prob_both=0.3, prob_each=0.3),
        RandHeadBiasFieldd("image", prob=0.5),
    ]


def results_of(seed, data, runs=6):
    transform = Compose(make_every_transform()).set_random_state(seed)
    return torch.stack([torch.as_tensor(item["image"]) for _ in range(runs) for item in transform(data)])


def test_one_seed_gives_one_result_and_another_another(patient):
    data = patient()
    assert torch.equal(results_of(8, data), results_of(8, data))
    assert not torch.equal(results_of(8, data), results_of(9, data))


@pytest.mark.parametrize("transform", make_every_transform()[1:], ids=lambda transform: type(transform).__name__)
def test_the_dictionary_and_the_image_given_are_not_modified(slice_of_head, transform):
    data = {"image": slice_of_head, "note": "kept"}
    before = slice_of_head.clone()
    for seed in range(10):
        assert transform.set_random_state(seed)(data)["note"] == "kept"
    assert data["image"] is slice_of_head
    assert torch.equal(slice_of_head, before)
