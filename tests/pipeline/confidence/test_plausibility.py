from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.confidence.plausibility import FEATURES, describe, fit_model, read_model, write_model
from pipeline.errors import BundleError
from pipeline.formats.nifti import read_scan
from pipeline.predictor import SEGMENTATION_BUNDLE
from transforms.geometry import find_slice_frame, to_slice_frame
from transforms.intensity import normalize_intensity

ROOT = Path(__file__).parents[3]
SHIPPED = SEGMENTATION_BUNDLE / "models" / "plausibility.json"
SAMPLE = ROOT / "pipeline" / "sample"


def feature(volume, name):
    return describe(volume)[FEATURES.index(name)]


def with_a_sinus(head):
    """Air inside of the head, low and in front."""
    hollow = head.copy()
    hollow[25:55, 20:45, :6] = head.min()
    return hollow


def with_a_narrow_front(head):
    sides = (np.abs(np.arange(80) - 39.5) > 11)[:, None, None] & (np.arange(96) < 40)[:, None]
    return np.where(sides, head.min(), head)


def with_ventricles(gray):
    """A cylinder of brain, brightness 0, with dark CSF in its middle and gray matter around that."""
    left, posterior = np.ogrid[-40:40, -48:48]
    distance = np.hypot(left, posterior)[..., None].repeat(7, axis=2)
    noise = np.random.default_rng(3).normal(0, 0.02, distance.shape)
    return np.select([distance < 5, distance < 9, distance < 36], [-1.5, gray, 0.0], -3.0) + noise


def seen_by_the_network(image, affine, spacing):
    frame = find_slice_frame(image, affine, spacing)
    return normalize_intensity(to_slice_frame(image, frame))[0]


@pytest.fixture
def head():
    """Half an ellipsoid in air: wide at the bottom, small at the top, longer than wide, with a bright scalp."""
    left, posterior, superior = np.ogrid[-1:1:80j, -1:1:96j, 0:1:20j]
    radius = np.sqrt((left / 0.8) ** 2 + (posterior / 0.85) ** 2 + (superior / 0.97) ** 2)
    anatomy = np.sin(23 * np.abs(left)) * np.sin(17 * posterior) + 0.3 * posterior + 0 * superior
    brain = 100 + 15 * anatomy + np.random.default_rng(4).normal(0, 1, radius.shape)
    volume = np.select([radius < 0.85, radius < 1], [brain, 200], 0.0)
    return normalize_intensity(volume[None].astype(np.float32))[0]


@pytest.fixture
def descriptions():
    """Of 90 patients in two versions each: numbers that differ in their size and hang together."""
    rng = np.random.default_rng(6)
    mixing = rng.normal(0, 1, (len(FEATURES), len(FEATURES))) * np.geomspace(0.01, 100, len(FEATURES))
    patients = rng.normal(0, 1, (90, 1, len(FEATURES))) @ mixing
    return list(patients + 0.3 * rng.normal(0, 1, (90, 2, len(FEATURES))) @ mixing + 5)


@pytest.fixture(scope="module")
def sample():
    scan = read_scan(SAMPLE / "sub-phantom_FLAIR.nii.gz")
    return scan.image, scan.affine, scan.spacing


def test_a_description_is_about_a_head_and_not_about_its_sampling(head):
    finer = head.repeat(2, axis=0).repeat(2, axis=1).repeat(3, axis=2)
    np.testing.assert_allclose(describe(finer), describe(head), atol=0.2)
    assert np.abs(describe(head)).max() > 0.5


@pytest.mark.parametrize(
    ("name", "change", "sign"),
    [
        ("size of the upper slices", lambda head: head[..., :12], 1),
        ("size of the upper slices", lambda head: head[..., ::-1], 1),
        ("size of the bottom slice", lambda head: head[..., ::-1], -1),
        ("height of the widest part", lambda head: head[..., ::-1], 1),
        ("length to width", lambda head: head.transpose(1, 0, 2), -1),
        ("cut on the left or right", lambda head: head[30:], 1),
        ("cut on the left or right", lambda head: head[:50], 1),
        ("cut in front or behind", lambda head: head[:, 36:], 1),
        ("cut in front or behind", lambda head: head[:, :60], 1),
        ("left-right symmetry", lambda head: head[30:], -1),
        ("front-back symmetry", lambda head: head + np.linspace(-3, 3, 96)[:, None], -1),
        ("outline of front and back", lambda head: with_a_narrow_front(head), 1),
        ("brightness of front and back", lambda head: head[:, ::-1], -1),
        ("brightness of the skull", lambda head: np.minimum(head, 0.2), -1),
        ("skewness", lambda head: np.where(head > 0, 3 * head, head), 1),
        ("share of dark voxels", lambda head: with_a_sinus(head), 1),
        ("dark voxels above and below", lambda head: with_a_sinus(head), 1),
        ("dark voxels in front and behind", lambda head: with_a_sinus(head), 1),
        ("dark and bright lines", lambda head: np.where(np.arange(96)[:, None] % 12 < 2, -1, head), 1),
        ("contrast", lambda head: np.clip(head, -0.1, 0.1), -1),
        ("noise in the slices", lambda head: head + np.random.default_rng(1).normal(0, 0.5, head.shape), 1),
        ("likeness of neighbouring slices", lambda head: np.random.default_rng(1).normal(0, 1, head.shape), -1),
    ],
)
def test_a_feature_moves_with_what_it_is_there_for(head, name, change, sign):
    difference = feature(change(head), name) - feature(head, name)
    assert sign * difference > 0.05


def test_gray_matter_darker_than_white_is_told_from_gray_matter_brighter():
    dark, bright = (feature(with_ventricles(gray), "brightness around the CSF") for gray in (-0.4, 0.4))
    assert dark < -0.1
    assert bright > 0.1


@pytest.mark.parametrize("cut", [np.s_[30:], np.s_[:, 36:]])
def test_a_head_cut_on_one_axis_is_not_said_to_be_cut_on_the_other(head, cut):
    sides, ends = (feature(head[cut], name) for name in ("cut on the left or right", "cut in front or behind"))
    assert (sides > ends + 0.3) == (cut == np.s_[30:])
    assert (ends > sides + 0.3) == (cut != np.s_[30:])


@pytest.mark.parametrize("shape", [(16, 32, 3), (16, 16, 1), (1, 1, 1), (336, 368, 2), (500, 16, 7)])
def test_any_volume_can_be_described(shape):
    noise = np.random.default_rng(2).normal(0, 1, shape).astype(np.float32)
    for volume in (noise, np.zeros(shape, np.float32)):
        assert describe(volume).shape == (len(FEATURES),)
        assert np.isfinite(describe(volume)).all()


def test_what_is_no_volume_is_refused():
    with pytest.raises(ValueError, match=r"flair must be \(H, W, K\), got shape \(1, 5, 6, 7\)"):
        describe(np.zeros((1, 5, 6, 7)))


def test_false_alarms_are_as_rare_as_asked_for(descriptions):
    model = fit_model(descriptions[:60], false_alarm=0.1)
    new = [model.distance(row) > model.threshold for rows in descriptions[60:] for row in rows]
    assert 0.01 < np.mean(new) < 0.25
    fitted = [model.distance(row) > model.threshold for rows in descriptions[:60] for row in rows]
    assert np.mean(fitted) < 0.1
    assert fit_model(descriptions[:60], false_alarm=0.01).threshold > model.threshold


def test_two_usual_numbers_that_do_not_go_together_are_far(descriptions):
    model = fit_model(descriptions)
    rows = np.concatenate(descriptions)
    direction = np.linalg.eigh(np.corrcoef(rows.T))[1][:, 0]  # in which suitable scans differ least
    odd = rows.mean(axis=0) + 1.5 * direction * rows.std(axis=0)
    usual = rows.mean(axis=0) + 1.5 * np.eye(len(FEATURES))[0] * rows.std(axis=0)
    assert model.distance(odd) > 2 * model.distance(usual)


def test_a_known_failure_is_named_though_it_is_not_far():
    rng = np.random.default_rng(8)
    suitable = list(rng.normal(0, 1, (80, 2, len(FEATURES))))
    shift = 4 * np.eye(len(FEATURES))
    failures = {
        "a T1 scan": rng.normal(shift[3], 1, (40, len(FEATURES))),
        "a CT": rng.normal(shift[5], 1, (40, len(FEATURES))),
    }
    model = fit_model(suitable, failures)
    assert fit_model(suitable).judge(shift[3]) == []
    (warning,) = model.judge(shift[3])
    assert warning.startswith("This looks more like a T1 scan than like the FLAIR scans the network was trained on (")
    assert "a CT" in model.judge(shift[5])[0]
    assert model.judge(-shift[3]) == []
    new = rng.normal(0, 1, (500, len(FEATURES)))
    assert np.mean([bool(model.judge(row)) for row in new]) < 0.1
    assert "does not look like" in model.judge(5 * shift[3])[0]


@pytest.mark.parametrize("shape", [(len(FEATURES),), (2, len(FEATURES) + 1)])
def test_descriptions_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=rf"got shape \({shape[0]},"):
        fit_model([np.zeros(shape), np.ones(shape)])


def test_one_patient_is_not_enough(descriptions):
    with pytest.raises(ValueError, match="at least 2 patients, got 1"):
        fit_model(descriptions[:1])


def test_a_model_comes_back_from_its_file_as_it_was(descriptions, tmp_path):
    model = fit_model(descriptions, {"a T1 scan": descriptions[0] + 1, "a CT": descriptions[1] - 2})
    write_model(model, tmp_path / "model.json")
    assert read_model(tmp_path / "model.json") == model


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-40], "must be a plausibility model, got JSONDecodeError"),
        (lambda text: "[1, 2]", "must be a plausibility model, got TypeError"),
        (lambda text: text.replace('"scale"', '"size"'), "must be a plausibility model, got KeyError"),
        (lambda text: text.replace('"directions": []', '"directions": [[1, 2]]'), "directions must be"),
        (lambda text: text.replace("skewness", "mood"), "must describe the features of this version"),
        (lambda text: json.dumps({**json.loads(text), "mean": [1, 2]}), r"mean must be .* got shape \(2,\)"),
        (lambda text: json.dumps({**json.loads(text), "mean": [float("nan")] * len(FEATURES)}), "mean must be"),
        (lambda text: json.dumps({**json.loads(text), "scale": [0] * len(FEATURES)}), "must be above 0, got 0"),
        (lambda text: json.dumps({**json.loads(text), "threshold": -1}), "must be above 0"),
    ],
)
def test_a_damaged_model_is_refused_in_one_line(descriptions, tmp_path, damage, message):
    path = tmp_path / "model.json"
    write_model(fit_model(descriptions), path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(BundleError, match=message) as error:
        read_model(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"nowhere\.json must be a plausibility model"):
        read_model(tmp_path / "nowhere.json")


def test_the_shipped_model_knows_the_sample(sample):
    image, affine, spacing = sample
    assert read_model(SHIPPED).check(seen_by_the_network(image, affine, spacing)) == []
    assert read_model(SHIPPED).check(seen_by_the_network(image[..., ::2], affine @ np.diag([1, 1, 2, 1]), None)) == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda image: image[:, 90:], id="right cut off"),
        pytest.param(lambda image: image[..., ::-1], id="slices in reverse order"),
        pytest.param(lambda image: image.max() - image, id="negative"),
        pytest.param(lambda image: image.repeat(4, axis=3).transpose(0, 2, 3, 1)[..., ::6], id="sagittal"),
        pytest.param(lambda image: np.random.default_rng(0).random(image.shape, np.float32), id="noise"),
    ],
)
def test_the_shipped_model_warns_of_an_unsuitable_input(sample, change):
    image, affine, _ = sample
    warnings = read_model(SHIPPED).check(seen_by_the_network(change(image), affine, None))
    assert len(warnings) == 1
    assert warnings[0].startswith("This does not look like the FLAIR scans the network was trained on (distance ")
    assert "\n" not in warnings[0]


def test_the_shipped_model_tells_a_t1_from_flair():
    scan = read_scan(SAMPLE / "sub-phantom_T1w.nii.gz")
    (warning,) = read_model(SHIPPED).check(seen_by_the_network(scan.image, scan.affine, scan.spacing))
    assert warning.startswith("This looks more like a T1 scan")


def test_a_warning_names_what_is_most_unusual(sample):
    image, affine, _ = sample
    (warning,) = read_model(SHIPPED).check(seen_by_the_network(image[:, 90:], affine, None))
    assert "left" in warning.split("most unusual: ")[1].split(".")[0]
