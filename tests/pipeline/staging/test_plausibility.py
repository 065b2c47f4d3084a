from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.errors import BundleError
from pipeline.staging.plausibility import (
    FEATURES,
    correlate,
    describe_slices,
    estimate_positions,
    pool,
    scale_intensities,
)
from pipeline.staging.plausibility_model import (
    MILD,
    fit_plausibility,
    fit_template,
    main,
    read_plausibility,
    write_plausibility,
)
from pipeline.staging.stager import STAGING_BUNDLE

SHIPPED = STAGING_BUNDLE / "models" / "plausibility.json"


@pytest.fixture(scope="session")
def model(bundle):
    return read_plausibility(bundle / "models" / "plausibility.json")


@pytest.fixture
def unseen(brain):
    return brain.astype(np.float32)


@pytest.mark.parametrize("change", MILD)
@pytest.mark.parametrize("height", [0, 13, 31, None])
def test_suitable_slices_and_volumes_raise_no_warning(model, unseen, change, height):
    changed = MILD[change](unseen)
    assert model.check(changed if height is None else changed[height : height + 1]) == []


@pytest.mark.parametrize("factor", [0.001, 40])
def test_the_unit_of_the_intensities_does_not_matter(model, unseen, factor):
    assert model.check(unseen[9:10] * np.float32(factor)) == []


def noise(brain):
    return np.random.default_rng(0).uniform(0, 255, brain.shape).astype(np.float32)


def text(brain):
    page = Image.new("L", (176, 208), 255)
    ImageDraw.Draw(page).text((5, 5), "\n".join(["The brain is not shown here"] * 12), 0)
    return np.asarray(page, dtype=np.float32)[None].repeat(len(brain), axis=0)


UNSUITABLE = {
    "upside down": (lambda brain: brain[:, ::-1], "upside down"),
    "mirrored": (lambda brain: brain[:, :, ::-1], "Left and right may be exchanged"),
    "half a turn": (lambda brain: brain[:, ::-1, ::-1], "half a circle"),
    "moved": (lambda brain: np.roll(brain, 9, axis=1), "pattern inside the brain"),
    "inverted in the brain": (lambda brain: np.where(brain > 8, 263 - brain, 0), "dark and bright exchanged"),
    "negative": (lambda brain: 255 - brain, "outline"),
    "with a skull": (lambda brain: np.where((brain == 0) & (np.arange(208)[:, None] < 190), 200, brain), "outline"),
    "noise": (noise, "pattern inside the brain"),
    "text": (text, "outline"),
}


@pytest.mark.parametrize("kind", UNSUITABLE)
@pytest.mark.parametrize("height", [4, 20, None])
def test_unsuitable_slices_and_volumes_are_warned_of_with_the_reason(model, unseen, kind, height):
    change, reason = UNSUITABLE[kind]
    changed = np.asarray(change(unseen), dtype=np.float32)
    (warning,) = model.check(changed if height is None else changed[height : height + 1])
    assert reason in warning
    assert warning.startswith("This does not look like the brain-extracted T1 slices")
    assert warning.endswith("Do not use the stage.")


@pytest.mark.parametrize("height", [4, 20, None])
def test_more_than_usual_is_warned_of_as_well_as_less(model, unseen, height):
    hazy = np.where(unseen == 0, 14, unseen)  # too dark to be tissue
    grainy = unseen + (unseen > 0) * np.random.default_rng(1).normal(0, 40, unseen.shape).astype(np.float32)
    for changed, reason in ((hazy, "brightness around the brain: 0.0"), (grainy, "difference between neighbouring")):
        slices = changed if height is None else changed[height : height + 1]
        found = [sentence for sentence in model.find_unusual(slices) if sentence.startswith(reason)]
        assert len(found) == 1
        assert ", usual up to " in found[0]


def test_slices_in_reverse_order_are_warned_of(model, unseen):
    assert "reverse order" in model.check(unseen[::-1])[0]


def test_color_is_warned_of_but_not_what_jpeg_adds(model, unseen):
    assert "color: red" in model.check(unseen[8:9], 12.0)[0]
    assert model.check(unseen[8:9], 1.5) == []


def test_black_slices_are_described_by_finite_numbers(model):
    black = np.zeros((1, 208, 176), np.float32)
    assert np.isfinite(describe_slices(scale_intensities(black), model.template)).all()
    assert model.check(black)


def test_each_height_is_recognised(model, unseen):
    found = estimate_positions(scale_intensities(unseen), model.template)
    assert np.abs(found - np.arange(32)).max() <= 1


def test_pooling_averages_squares_of_eight_pixels():
    image = np.arange(208 * 176, dtype=np.float32).reshape(1, 208, 176)
    pooled = pool(image)
    assert pooled.shape == (1, 26, 22)
    assert pooled[0, 3, 5] == image[0, 24:32, 40:48].mean()


def test_correlation_is_pearsons_and_nothing_with_a_constant():
    first, second = np.random.default_rng(3).random((2, 30)).astype(np.float32)
    assert correlate(first, second) == pytest.approx(np.corrcoef(first, second)[0, 1], abs=1e-5)
    assert correlate(first, np.ones_like(first)) == 0


def test_a_template_is_the_mean_of_the_scaled_subjects(subjects):
    images = [image.astype(np.float32) for image in subjects[0][:3]]
    template = fit_template(images)
    expected = np.mean([pool(scale_intensities(image)) for image in images], axis=0)
    np.testing.assert_allclose(template.mean, expected, atol=0.004)  # it is kept in 8 bits
    assert template.coverage.max() == pytest.approx(1, abs=0.004)


def test_limits_are_open_where_nothing_can_be_unusual(model):
    for limits in (model.slice_limits, model.volume_limits):
        for (low, high), feature in zip(limits, FEATURES, strict=True):
            assert np.isfinite(low) == feature.has_low
            assert np.isfinite(high) == feature.has_high
            assert low < high


def test_a_model_survives_its_file(model, tmp_path):
    write_plausibility(model, tmp_path / "m.json")
    again = read_plausibility(tmp_path / "m.json")
    assert np.array_equal(again.template.mean, model.template.mean)
    assert np.array_equal(again.template.coverage, model.template.coverage)
    np.testing.assert_allclose(again.slice_limits, model.slice_limits)
    np.testing.assert_allclose(again.volume_limits, model.volume_limits)


def _without_limits(content):
    del content["limits"]["slice"]["outline"]


def _short_template(content):
    content["template"]["mean"] = content["template"]["mean"][:400]


def _other_format(content):
    content["format"] = 99


@pytest.mark.parametrize("damage", [_without_limits, _short_template, _other_format])
def test_a_damaged_file_is_refused(bundle, tmp_path, damage):
    content = json.loads((bundle / "models" / "plausibility.json").read_text())
    damage(content)
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"m\.json must be a plausibility model"):
        read_plausibility(tmp_path / "m.json")


def test_one_subject_is_too_few(unseen):
    with pytest.raises(ValueError, match="at least 2, got 1"):
        fit_plausibility([unseen])


def test_the_command_fits_a_prepared_data_set(tmp_path, save_volume, subjects, capsys):
    entries = []
    for number, image in enumerate(subjects[0][:3]):
        save_volume(image, name=f"{number}.nii.gz")
        entries.append({"subject": str(number), "image": f"{number}.nii.gz"})
    (tmp_path / "datalist.json").write_text(json.dumps({"training": entries}))
    assert main([str(tmp_path), str(tmp_path / "m.json")]) == 0
    assert read_plausibility(tmp_path / "m.json").template.mean.shape == (32, 26, 22)
    assert main([str(tmp_path / "none"), str(tmp_path / "m.json")]) == 2
    assert "ar2unet prepare dementia" in capsys.readouterr().err


def test_few_published_slices_are_warned_of(published):
    from pipeline.staging.reading import read_slices

    model = read_plausibility(SHIPPED)
    volumes = [read_slices(path).slices for _, path in published[::10]]
    assert sum(bool(model.check(volume)) for volume in volumes) <= 2
    singles = [volume[k : k + 1] for volume in volumes for k in range(2, 32, 5)]
    assert sum(bool(model.check(single)) for single in singles) <= 0.06 * len(singles)
    assert sum(not model.check(single[:, ::-1]) for single in singles) <= 0.02 * len(singles)
