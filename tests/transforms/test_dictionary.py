import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, CopyItemsd, LoadImaged

from transforms.denoising import reduce_noise
from transforms.dictionary import (
    FillSequencesd,
    FromSliceFramed,
    LabelToSliceFramed,
    NormalizeHeadIntensityd,
    ReduceNoised,
    SliceMajord,
    ToSliceFramed,
)
from transforms.geometry import find_slice_frame, known_spacing, to_slice_frame
from transforms.intensity import normalize_intensity

SHAPE = (11, 13, 7)  # all sizes differ, so a swapped axis cannot pass unseen


@pytest.fixture
def make_volume(make_affine):
    """Make a MetaTensor (C, I, J, K) as LoadImaged does."""

    def make(array, orientation="oblique", spacing=(0.9, 1.1, 4.5), **meta):
        return MetaTensor(torch.as_tensor(array), affine=torch.as_tensor(make_affine(orientation, spacing)), meta=meta)

    return make


@pytest.fixture
def numbered():
    """Three channels in which all voxels differ."""
    return np.random.default_rng(5).permutation(3 * np.prod(SHAPE)).astype(np.float32).reshape(3, *SHAPE)


def resemblance(first, second):
    """Correlation of two volumes: interpolation smooths pure noise to about 0.9, any wrong order leaves about 0."""
    return np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]


# --- there and back ---------------------------------------------------------------------


def test_a_file_of_any_orientation_comes_back_on_its_own_voxels(oriented_nifti, numbered_volume):
    there_and_back = Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            ToSliceFramed("image", pixel_spacing=0.2, crop_to_head=False),
            CopyItemsd("image", names="pred"),
            FromSliceFramed("pred"),
        ]
    )
    pred = there_and_back({"image": oriented_nifti})["pred"]
    assert pred.shape == (1, *SHAPE)
    np.testing.assert_array_equal(pred.affine, nib.load(oriented_nifti).affine)
    assert resemblance(pred[0], numbered_volume) > 0.85


def test_without_resampling_every_voxel_comes_back(make_volume, numbered):
    transform = Compose(
        [
            ToSliceFramed("image", pixel_spacing=1.1, crop_to_head=False),
            CopyItemsd("image", names="pred"),
            FromSliceFramed("pred"),
        ]
    )
    result = transform({"image": make_volume(numbered, "PSR", (1.1, 4.5, 1.1))})
    np.testing.assert_array_equal(result["pred"], numbered)
    assert result["image"].shape == (3, 16, 16, 13)  # 7 to the right, 11 to posterior, 13 to superior


def test_the_frame_survives_batching_by_the_data_loader(make_nifti, numbered_volume):
    files = [
        {
            "image": make_nifti(f"{orientation}.nii.gz", orientation=orientation),
            "label": make_nifti(f"{orientation}_label.nii.gz", orientation=orientation),
        }
        for orientation in ("RAS", "PSR", "oblique")
    ]
    prepare = Compose(
        [
            LoadImaged(["image", "label"], ensure_channel_first=True),
            ToSliceFramed("image", pixel_spacing=0.2, margin=9),
            LabelToSliceFramed("label"),
            NormalizeHeadIntensityd("image"),
            FillSequencesd("image"),
        ]
    )
    loader = DataLoader(Dataset(files, prepare), batch_size=1, num_workers=0)
    for file, batch in zip(files, loader, strict=True):
        assert batch["image"].shape[:2] == (1, 3)
        batch["pred"] = batch["label"]
        (item,) = decollate_batch(batch)
        pred = FromSliceFramed("pred")(item)["pred"]
        assert pred.shape == (1, *SHAPE)
        np.testing.assert_allclose(pred.affine, nib.load(file["image"]).affine)
        assert resemblance(pred[0], numbered_volume) > 0.85


def test_the_result_is_what_the_pure_functions_give(make_volume, make_head):
    head, _ = make_head()
    volume = make_volume(head[None], "PSR", (0.9, 4.5, 1.2), xyzt_units=2)
    options = {"pixel_spacing": 1.3, "divisor": 4, "crop_to_head": True, "margin": 2}
    framed = ToSliceFramed("image", **options)({"image": volume})["image"]
    affine = volume.affine.numpy()
    frame = find_slice_frame(head[None], affine, known_spacing(affine, 2), **options)
    np.testing.assert_array_equal(framed, to_slice_frame(head[None], frame))
    np.testing.assert_array_equal(framed.affine, frame.crop_affine)
    assert framed.dtype == torch.float32


@pytest.mark.parametrize("crop_to_head", [True, False])
def test_cropping_to_the_head_can_be_left_out(make_volume, make_head, crop_to_head):
    head, _ = make_head()
    transform = ToSliceFramed("image", divisor=1, margin=1, crop_to_head=crop_to_head)
    framed = transform({"image": make_volume(head[None], spacing=(0.88, 0.88, 5))})["image"]
    assert (framed.shape[1:] == head.shape) != crop_to_head


def test_results_outside_of_the_crop_are_zero(make_volume, make_head):
    head, inside = make_head()
    item = ToSliceFramed("image", margin=0, divisor=1)({"image": make_volume(head[None], spacing=(0.88, 0.88, 5))})
    item["pred"] = torch.ones_like(item["image"]).as_tensor()
    pred = FromSliceFramed("pred")(item)["pred"][0].numpy()
    assert set(np.unique(pred)) == {0, 1}
    assert pred[inside].all()
    assert not pred[0].any()


# --- what is known of the spacing -------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "spacing", "shape"),
    [
        ("unknown", (1, 1, 1), (11, 13, 7)),
        ("mm", (1, 1, 1), (22, 26, 7)),
        ("micron", (1000, 1500, 4500), (22, 39, 7)),
        ("meter", (0.001, 0.0015, 0.0045), (22, 39, 7)),
        ("unknown", (1, 1.5, 4.5), (22, 39, 7)),
    ],
)
def test_a_file_is_resampled_where_its_spacing_is_known(make_nifti, unit, spacing, shape):
    path = make_nifti(orientation="LPS", spacing=spacing, unit=unit)
    transform = Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            ToSliceFramed("image", pixel_spacing=0.5, divisor=1, crop_to_head=False),
        ]
    )
    assert transform({"image": path})["image"].shape == (1, *shape)


def test_a_time_unit_is_not_taken_for_one_of_space(make_volume, numbered):
    seconds = 8
    volume = make_volume(numbered, "LPS", (1, 1, 1), xyzt_units=np.array(seconds, dtype=np.uint8))
    transform = ToSliceFramed("image", pixel_spacing=0.5, divisor=1, crop_to_head=False)
    assert transform({"image": volume})["image"].shape == (3, *SHAPE)


def test_a_reader_that_names_no_unit_means_millimetres(make_volume, numbered):
    transform = ToSliceFramed("image", pixel_spacing=0.5, divisor=1, crop_to_head=False)
    assert transform({"image": make_volume(numbered, "LPS", (1, 1, 1))})["image"].shape == (3, 22, 26, 7)


# --- labels -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_labels_keep_their_type_and_numbers_and_lie_on_the_image(make_volume, make_head, dtype):
    head, inside = make_head()
    data = {
        "image": make_volume(head[None], "RAI"),
        "label": make_volume(5 * inside[None].astype(int), "RAI").to(dtype),
    }
    transform = Compose([ToSliceFramed("image", pixel_spacing=0.7, margin=3), LabelToSliceFramed("label")])
    result = transform(data)
    image, label = result["image"], result["label"]
    assert label.dtype == dtype
    assert set(np.unique(label)) == {0, 5}
    assert label.shape == image.shape
    np.testing.assert_array_equal(label.affine, image.affine)
    bright = image.numpy() > 50  # between air and head
    assert 2 * (bright & (label.numpy() > 0)).sum() / (bright.sum() + (label.numpy() > 0).sum()) > 0.97


def test_a_label_follows_the_image_it_is_told_to(make_volume, numbered):
    data = {"scan": make_volume(numbered, "PSR"), "seg": make_volume(numbered.astype(np.int32), "PSR")}
    transform = Compose(
        [
            ToSliceFramed("scan", pixel_spacing=100, crop_to_head=False),
            LabelToSliceFramed("seg", image_key="scan"),
            CopyItemsd("scan", names="pred"),
            FromSliceFramed("pred", image_key="scan"),
        ]
    )
    result = transform(data)
    assert result["seg"].shape == result["scan"].shape
    assert result["pred"].shape == (3, *SHAPE)


def test_a_label_of_another_size_is_refused(make_volume, numbered):
    data = {"image": make_volume(numbered), "label": make_volume(numbered.transpose(0, 2, 1, 3).copy())}
    with pytest.raises(ValueError, match=r"volume must be \(C, \*\(11, 13, 7\)\), got shape \(3, 13, 11, 7\)"):
        LabelToSliceFramed("label")(ToSliceFramed("image")(data))


# --- intensities and sequences ----------------------------------------------------------


def test_normalising_is_what_the_pure_function_does_and_keeps_the_grid(make_volume, numbered):
    volume = make_volume(numbered, note="kept")
    transform = NormalizeHeadIntensityd("image", lower_percentile=10, upper_percentile=80)
    result = transform({"image": volume})["image"]
    expected = normalize_intensity(numbered, lower_percentile=10, upper_percentile=80)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(result.affine, volume.affine)
    assert result.meta["note"] == "kept"


@pytest.mark.parametrize("highest_noise", [0.0, 0.15, 1e9])
def test_reducing_noise_is_what_the_pure_function_does_and_keeps_the_grid(make_volume, highest_noise):
    noisy = np.random.default_rng(4).normal(100, 30, (2, 40, 44, 6)).astype(np.float32)
    volume = make_volume(noisy, note="kept")
    result = ReduceNoised("image", highest_noise=highest_noise)({"image": volume})["image"]
    np.testing.assert_array_equal(result, reduce_noise(noisy, highest_noise=highest_noise))
    assert np.array_equal(result, noisy) == (highest_noise > 1)
    np.testing.assert_array_equal(result.affine, volume.affine)
    assert result.meta["note"] == "kept"


def test_flair_alone_stands_in_for_all_three_sequences(make_volume, numbered):
    volume = make_volume(numbered[1:2], note="kept")
    result = FillSequencesd("image")({"image": volume})["image"]
    np.testing.assert_array_equal(result, numbered[[1, 1, 1]])
    np.testing.assert_array_equal(result.affine, volume.affine)
    assert result.meta["note"] == "kept"


def test_three_sequences_are_left_as_they_are(make_volume, numbered):
    np.testing.assert_array_equal(FillSequencesd("image")({"image": make_volume(numbered)})["image"], numbered)


@pytest.mark.parametrize("channels", [2, 4])
def test_another_number_of_sequences_is_refused(make_volume, channels):
    volume = make_volume(np.zeros((channels, *SHAPE)))
    with pytest.raises(
        ValueError, match=rf"image must have 1 channel \(FLAIR\) or 3 \(t1, flair, t1c\), got {channels}"
    ):
        FillSequencesd("image")({"image": volume})


def test_a_slice_becomes_one_piece_of_memory_and_nothing_else_changes(make_volume, numbered):
    volume = make_volume(numbered)
    assert not volume[..., 3].is_contiguous()
    result = SliceMajord("image")({"image": volume})["image"]
    assert result[..., 3].is_contiguous()
    assert result.shape == volume.shape
    np.testing.assert_array_equal(result, volume)
    np.testing.assert_array_equal(result.affine, volume.affine)


# --- manners of a dictionary transform --------------------------------------------------

EVERY_TRANSFORM = [ToSliceFramed, LabelToSliceFramed, FromSliceFramed, NormalizeHeadIntensityd, FillSequencesd]
EVERY_TRANSFORM += [ReduceNoised, SliceMajord]


@pytest.mark.parametrize("transform", EVERY_TRANSFORM)
def test_a_missing_key_is_an_error_unless_allowed(make_volume, numbered, transform):
    data = ToSliceFramed("image")({"image": make_volume(numbered)})
    with pytest.raises(KeyError, match="absent"):
        transform("absent")(data)
    assert transform("absent", allow_missing_keys=True)(data).keys() == data.keys()


@pytest.mark.parametrize("transform", EVERY_TRANSFORM)
def test_the_dictionary_and_the_volumes_given_are_not_modified(make_volume, make_head, transform):
    head, _ = make_head()
    framed = ToSliceFramed("image", divisor=1, crop_to_head=False, pixel_spacing=1.1)
    data = framed({"image": make_volume(head[None], "LPS", (1.1, 1.1, 4.5))})  # frame and grid are of one shape
    volume, before, meta = data["image"], data["image"].clone(), dict(data["image"].meta)
    transform("image")(data)
    assert data["image"] is volume
    np.testing.assert_array_equal(volume, before)
    assert volume.meta.keys() == meta.keys()
    assert volume.meta["slice_frame"] == meta["slice_frame"]
    np.testing.assert_array_equal(volume.affine, before.affine)
