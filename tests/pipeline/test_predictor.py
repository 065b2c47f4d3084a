from __future__ import annotations

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.confidence.assessment import Assessment
from pipeline.errors import BundleError
from pipeline.formats.nifti import read_scan
from pipeline.formats.scan import Scan
from pipeline.predictor import SEGMENTATION_BUNDLE, Predictor

ORIENTATIONS = ("RAS", "LPS", "LAS", "PSR", "SAL", "oblique")
ISOTROPIC, ANISOTROPIC = (0.88, 0.88, 0.88), (0.9, 1.15, 4.5)


def store(volume, affine):
    """Return a volume with axes to R, A, S as a file of the given affine would hold it."""
    from_ras = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.io_orientation(affine)
    )
    return nib.orientations.apply_orientation(volume, from_ras)


def spacing_along(orientation, ras_spacing):
    """Return the voxel sizes along the storage axes of an orientation."""
    world = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    codes = "LPS" if orientation == "oblique" else orientation
    return tuple(ras_spacing[world[code]] for code in codes)


def tissue(shape):
    """Return a head that fills the whole box, corners too, around an air-filled hole."""
    volume = np.random.default_rng(0).normal(100, 5, shape)
    volume[7:11, 8:12] = 0
    return volume


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


@pytest.mark.parametrize("ras_spacing", [ISOTROPIC, ANISOTROPIC], ids=["isotropic", "anisotropic"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_same_anatomy_gives_the_same_mask_however_it_is_stored(
    orientation, ras_spacing, anatomy, make_nifti, make_affine, make_predictor
):
    volume, lesion = anatomy
    predictor = make_predictor()
    stored, truths = {}, {}
    for name in ("RAS", orientation):
        affine = make_affine(name, spacing_along(name, ras_spacing))
        scan = read_scan(make_nifti(f"{name}.nii.gz", affine=affine, volume=store(volume, affine)))
        stored[name] = predictor.predict(scan).mask
        truths[name] = store(lesion, affine)
        assert stored[name].shape == scan.spatial_shape
        assert stored[name].dtype == np.uint8
    np.testing.assert_array_equal(stored[orientation], store(stored["RAS"], affine))
    assert dice(stored[orientation] == 1, truths[orientation]) > 0.85


def test_without_resampling_every_voxel_is_right(anatomy, make_nifti, make_predictor):
    volume, lesion = anatomy
    scan = read_scan(make_nifti(orientation="RAS", volume=volume, spacing=(1.0, 1.0, 1.0), unit="unknown"))
    assert scan.spacing is None
    np.testing.assert_array_equal(make_predictor().predict(scan).mask, lesion)


@pytest.mark.parametrize("corner", [(0, 0, 0), (-1, 0, -1), (0, -1, 0), (-1, -1, -1)])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_lesion_in_a_corner_comes_back_in_that_corner(corner, orientation, make_affine, make_predictor):
    shape = (20, 23, 6)
    lesion = np.zeros(shape, dtype=bool)
    lesion[tuple(slice(0, 3) if index == 0 else slice(-3, None) for index in corner)] = True
    volume = tissue(shape)
    volume[lesion] = 200
    affine = make_affine(orientation, (1.0, 1.0, 1.0))
    scan = Scan(image=volume[None].astype(np.float32), affine=affine, spacing=None, source="corner")
    np.testing.assert_array_equal(make_predictor().predict(scan).mask, lesion)


@pytest.mark.parametrize("slices", [2, 400])
def test_few_and_many_slices_come_back_in_order(slices, make_predictor):
    volume = tissue((17, 19, slices))
    lesion = np.zeros(volume.shape, dtype=bool)
    for k in range(slices):  # each slice's lesion is somewhere else
        lesion[k % 4 : k % 4 + 3, k % 5 : k % 5 + 3, k] = True
    volume[lesion] = 200
    scan = Scan(image=volume[None].astype(np.float32), affine=np.eye(4), spacing=None, source="stack")
    np.testing.assert_array_equal(make_predictor().predict(scan).mask, lesion)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_channels_stay_apart(channel, make_predictor):
    volumes = np.stack([tissue((18, 21, 4))] * 3)
    lesion = np.zeros(volumes.shape, dtype=bool)
    for index in range(3):
        lesion[index, 2 + index : 5 + index, 3:7, 1:3] = True
    volumes[lesion] = 200
    scan = Scan(image=volumes.astype(np.float32), affine=np.eye(4), spacing=None, source="sequences")
    np.testing.assert_array_equal(make_predictor(channel).predict(scan).mask, lesion[channel])


def test_probabilities_agree_with_the_mask_and_progress_reaches_the_end(anatomy, make_nifti, make_predictor):
    scan = read_scan(make_nifti(volume=anatomy[0]))
    calls = []
    prediction = make_predictor().predict(scan, on_progress=lambda done, total: calls.append((done, total)))
    assert prediction.probabilities.shape == scan.spatial_shape
    assert prediction.probabilities.dtype == np.float32
    np.testing.assert_array_equal(prediction.mask == 1, prediction.probabilities > 0.5)
    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert set(prediction.seconds) == {"preprocess", "network", "postprocess"}


@pytest.mark.parametrize("deviation", [0, 120])
def test_a_scan_that_had_to_be_smoothed_is_said_to_be_and_is_for_review(deviation, anatomy, make_nifti, make_predictor):
    volume = anatomy[0] + np.random.default_rng(5).normal(0, deviation, anatomy[0].shape).astype(np.int16)
    predictor = make_predictor()
    predictor.assessor = SimpleNamespace(assess=lambda *scan_and_mask: Assessment(0.9, review=False, warnings=()))
    prediction = predictor.predict(read_scan(make_nifti(volume=volume)))
    assert prediction.assessment.review == (deviation > 0)
    assert [("noisier" in warning) for warning in prediction.warnings] == [True] * (deviation > 0)


def test_the_bundles_own_network_and_weights_are_used(bundle, anatomy, make_nifti):
    scan = read_scan(make_nifti(volume=anatomy[0]))
    first = Predictor(bundle, device="cpu").predict(scan).probabilities
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    state["head.bias"][1] += 3
    torch.save(state, bundle / "models" / "model.pt")
    second = Predictor(bundle, device="cpu").predict(scan).probabilities
    assert (second >= first).all()
    assert second.mean() > first.mean()


def test_a_predictor_cannot_be_given_other_weights_that_its_engine_would_not_run(bundle):
    predictor = Predictor(bundle, engine="torch")
    with pytest.raises(AttributeError):
        predictor.weights = bundle / "other.pt"


def test_a_folder_without_weights_is_refused(bundle):
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(BundleError, match=r"model\.pt"):
        Predictor(bundle)


def test_weights_of_another_network_are_refused_in_one_line(bundle, anatomy, make_nifti):
    torch.save({"head.weight": torch.zeros(1)}, bundle / "models" / "model.pt")
    with pytest.raises(BundleError, match=r"model\.pt must hold the weights of the bundle's network") as caught:
        Predictor(bundle).predict(read_scan(make_nifti(volume=anatomy[0])))
    assert "\n" not in str(caught.value)


def test_a_damaged_weights_file_is_refused_in_one_line(bundle, anatomy, make_nifti):
    (bundle / "models" / "model.pt").write_bytes(b"not a state dict")
    with pytest.raises(BundleError, match=r"model\.pt must hold the weights") as caught:
        Predictor(bundle).predict(read_scan(make_nifti(volume=anatomy[0])))
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_finite_numbers_are_refused(bundle, anatomy, make_nifti):
    path = bundle / "models" / "model.pt"
    weights = torch.load(path, weights_only=True)
    name = list(weights)[-2]
    weights[name].view(-1)[0] = float("nan")
    torch.save(weights, path)
    with pytest.raises(BundleError, match=rf"model\.pt must hold .*: {name} has values that are no finite numbers$"):
        Predictor(bundle, engine="torch").predict(read_scan(make_nifti(volume=anatomy[0])))


def test_weights_that_would_run_code_are_refused_without_advice_to_run_it(bundle, anatomy, make_nifti):
    torch.save({"weights": SimpleNamespace()}, bundle / "models" / "model.pt")
    with pytest.raises(BundleError, match=r"^[^\n]*, tensors and nothing else$"):
        Predictor(bundle, engine="torch").predict(read_scan(make_nifti(volume=anatomy[0])))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", r"must be a config that MONAI can read|must describe the bundle"),
        ("- a\n- b\n", r"must be a config that MONAI can read|must describe the bundle"),
        ("a: [1, 2", r"must be a config that MONAI can read"),
        (
            "volume_transforms:\n- _target_: NoSuchTransform\n",
            r"must describe the bundle, but 'volume_transforms' fails",
        ),
    ],
)
def test_a_config_that_is_none_is_refused_in_one_line(config, message, bundle, anatomy, make_nifti):
    (bundle / "configs" / "inference.yaml").write_text(config)
    with pytest.raises(BundleError, match=rf"^\S*inference\.yaml ({message})[^\n]*$"):
        Predictor(bundle, engine="torch").predict(read_scan(make_nifti(volume=anatomy[0])))


@pytest.mark.parametrize("device", ["tpu9", "", "meta"])
def test_a_device_that_is_none_is_refused_in_one_line(device, bundle, anatomy, make_nifti):
    with pytest.raises(BundleError, match=rf"^device must be cpu, cuda [^\n]*, got '{device}': [^\n]+$"):
        Predictor(bundle, device=device, engine="torch").predict(read_scan(make_nifti(volume=anatomy[0])))


def test_the_shipped_weights_load_and_fit_into_40_megabytes():
    weights = SEGMENTATION_BUNDLE / "models" / "model.pt"
    assert weights.stat().st_size <= 40e6
    assert sum(p.numel() for p in Predictor(engine="torch").road.network.parameters()) == 2_977_595
