"""What is done to a scan before its Dice is measured again, and what is said about the result."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from pipeline.formats.scan import Scan
from pipeline.predictor import SEGMENTATION_BUNDLE, Predictor

SHAPE = (24, 28, 6)  # all sizes differ, so a swapped axis cannot pass unseen
SPACING = (0.88, 0.88, 5.0)
BRIGHT = 2.0  # standard deviations above the head's mean: between tissue and lesion


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("robustness")


@pytest.fixture
def case(script):
    """Noise in which no two voxels are equal, axes to L, P, S and slightly oblique, with a small box as truth."""
    rng = np.random.default_rng(4)
    turn = np.deg2rad(9)
    oblique = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = oblique @ np.diag([-1.0, -1.0, 1.0]) @ np.diag(SPACING)
    affine[:3, 3] = (13.0, 31.5, -7.25)
    truth = np.zeros(SHAPE, dtype=bool)
    truth[8:13, 15:22, 2:4] = True
    image = rng.permutation(3 * truth.size).reshape(3, *SHAPE).astype(np.float32)
    return script.Case(Scan(image, affine, SPACING, "made by a test"), truth)


def world(affine, voxels):
    """Return the world points ``(N, 3)`` of voxels ``(N, 3)``."""
    return voxels @ affine[:3, :3].T + affine[:3, 3]


def center(case, values):
    """Return the world point of the centre of mass of ``(I, J, K)``."""
    voxels = np.argwhere(np.ones(values.shape))
    return world(case.scan.affine, voxels[None].reshape(-1, 3)).T @ values.ravel() / values.sum()


def column_sizes(affine):
    return np.linalg.norm(affine[:3, :3], axis=0)


# --- changes of the grid -----------------------------------------------------------------------------


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LAS", "LPI", "PIR", "ASL", "LSA"])
def test_a_reoriented_scan_has_the_same_value_at_the_same_point_of_the_world(script, case, codes):
    turned = script.reoriented(case, codes)
    assert "".join(nib.aff2axcodes(turned.scan.affine)) == codes
    voxels = np.argwhere(np.ones(turned.truth.shape))
    there = world(np.linalg.inv(case.scan.affine), world(turned.scan.affine, voxels))
    old = there.round().astype(int)
    np.testing.assert_allclose(there, old, atol=1e-9)
    np.testing.assert_array_equal(turned.scan.image[:, *voxels.T], case.scan.image[:, *old.T])
    np.testing.assert_array_equal(turned.truth[*voxels.T], case.truth[*old.T])
    np.testing.assert_allclose(turned.scan.spacing, column_sizes(turned.scan.affine))


def test_telling_the_spacing_changes_no_voxel_and_no_direction(script, case):
    told = script.with_spacing(replace(case, scan=replace(case.scan, spacing=None)), 0.7)
    assert told.scan.image is case.scan.image
    assert told.scan.spacing == (0.7, 0.7, 5.0)
    np.testing.assert_allclose(column_sizes(told.scan.affine), told.scan.spacing)
    directions = [affine[:3, :3] / column_sizes(affine) for affine in (told.scan.affine, case.scan.affine)]
    np.testing.assert_allclose(*directions, atol=1e-12)


@pytest.mark.parametrize("codes", ["LPS", "SLP"])  # slices along the last axis and along the first
@pytest.mark.parametrize("size", [0.7, 1.3])
def test_resampling_keeps_a_blob_in_its_place_of_the_world_and_the_slices_as_they_are(script, case, codes, size):
    grid = np.indices(SHAPE)
    middle = np.array([9.6, 17.3, 2.8])[:, None, None, None]
    blob = np.exp(-(((grid - middle) / np.array([2.5, 3.0, 1.0])[:, None, None, None]) ** 2).sum(axis=0))
    blobs = np.stack([blob, 2 * blob, 3 * blob]).astype(np.float32)
    case = script.reoriented(script.Case(replace(case.scan, image=blobs), blob > 0.3), codes)
    new = script.resampled(case, size)

    slices = codes.index("S")
    expected = [round(length * 0.88 / size) for length in case.truth.shape]
    expected[slices] = 6
    assert new.truth.shape == new.scan.spatial_shape == tuple(expected)
    sizes = [size] * 3
    sizes[slices] = 5.0
    np.testing.assert_allclose(new.scan.spacing, sizes)
    np.testing.assert_allclose(column_sizes(new.scan.affine), sizes)

    middles = [(np.asarray(shape) - 1) / 2 for shape in (case.truth.shape, expected)]
    grids = (case.scan.affine, new.scan.affine)
    np.testing.assert_allclose(*(world(grid, middle) for grid, middle in zip(grids, middles, strict=True)))
    for channel in range(3):
        moved = center(new, new.scan.image[channel]) - center(case, case.scan.image[channel])
        assert np.linalg.norm(moved) < 0.1  # mm
        total = new.scan.image[channel].sum() * size**2
        assert total == pytest.approx(case.scan.image[channel].sum() * 0.88**2, rel=0.02)
    assert np.linalg.norm(center(new, new.truth) - center(case, case.truth)) < size / 2
    assert new.truth.dtype == bool
    assert new.truth.sum() * size**2 == pytest.approx(case.truth.sum() * 0.88**2, rel=0.1)


def test_resampling_to_the_same_size_changes_nothing(script, case):
    same = script.resampled(case, 0.88)
    np.testing.assert_allclose(same.scan.image, case.scan.image, rtol=1e-5, atol=0.05)
    np.testing.assert_array_equal(same.truth, case.truth)
    np.testing.assert_allclose(same.scan.affine, case.scan.affine)


def test_a_scan_of_unknown_spacing_cannot_be_resampled(script, case):
    with pytest.raises(ValueError, match="scan must have a known spacing, got None for made by a test"):
        script.resampled(replace(case, scan=replace(case.scan, spacing=None)), 0.7)


@pytest.mark.parametrize("codes", ["LPS", "SLP"])
def test_leaving_out_the_lesion_leaves_the_other_slices_in_their_order(script, case, codes):
    kept = script.reoriented(script.without_lesion(script.reoriented(case, codes)), "LPS")
    np.testing.assert_array_equal(kept.scan.image, case.scan.image[..., [0, 1, 4, 5]])
    assert not kept.truth.any()
    assert kept.truth.shape == (24, 28, 4)


def test_a_volume_with_lesion_in_every_slice_has_nothing_left(script, case):
    assert script.without_lesion(replace(case, truth=np.ones(SHAPE, dtype=bool))) is None


# --- changes of intensity ----------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "direction"), [(0.7, 1), (1.5, -1)])
def test_gamma_keeps_the_ends_and_the_order_of_each_channel_and_moves_its_middle(script, case, gamma, direction):
    for before, after in zip(case.scan.image, script.with_gamma(case, gamma).scan.image, strict=True):
        assert (after.min(), after.max()) == (before.min(), before.max())
        assert (np.diff(after.ravel()[before.argsort(axis=None)]) >= 0).all()
        share = (np.median(before) - before.min()) / (before.max() - before.min())
        expected = before.min() + share**gamma * (before.max() - before.min())
        assert np.median(after) == pytest.approx(expected, rel=1e-4)
        assert np.sign(np.median(after) - np.median(before)) == direction


def test_the_bias_field_is_smooth_runs_from_end_to_end_and_is_one_for_all_channels(script, case):
    head = np.zeros(SHAPE, dtype=bool)
    head[5:19, 4:22] = True
    image = np.where(head, case.scan.image + 1e5, 10).astype(np.float32)
    field = script.with_bias_field(replace(case, scan=replace(case.scan, image=image))).scan.image / image
    for place in (head, ~head):
        assert 0.699 < field[1, place].min() < field[1, place].max() < 1.301
    assert field[1, head].max() - field[1, head].min() > 0.55
    np.testing.assert_allclose(field[0], field[2], rtol=1e-5)
    # In plane; six slices are few.
    assert max(np.abs(np.diff(field, axis=axis)).max() for axis in (1, 2)) < 0.1


def test_noise_is_five_per_cent_of_each_channels_own_maximum(script, case):
    image = case.scan.image * np.array([1, 10, 0.1], dtype=np.float32)[:, None, None, None]
    noisy = script.with_noise(replace(case, scan=replace(case.scan, image=image)))
    noise = noisy.scan.image - image
    np.testing.assert_allclose(noise.std(axis=(1, 2, 3)) / image.max(axis=(1, 2, 3)), 0.05, rtol=0.05)
    np.testing.assert_allclose(noise.mean(axis=(1, 2, 3)) / image.max(axis=(1, 2, 3)), 0, atol=0.005)


def test_flair_alone_is_the_second_channel(script, case):
    np.testing.assert_array_equal(script.flair_alone(case).scan.image, case.scan.image[1:2])


def test_no_change_touches_the_case_it_is_given(script, case):
    image, truth, affine = case.scan.image.copy(), case.truth.copy(), case.scan.affine.copy()
    for change in script.changes():
        changed = change.apply(case)
        assert changed.truth.dtype == bool
        assert changed.scan.spatial_shape == changed.truth.shape
    np.testing.assert_array_equal(case.scan.image, image)
    np.testing.assert_array_equal(case.truth, truth)
    np.testing.assert_array_equal(case.scan.affine, affine)


# --- measuring ---------------------------------------------------------------------------------------


def test_a_loss_is_held_against_what_is_allowed(script, case):
    """A stand-in that finds the box, less well the darker the image is."""

    class Shrinking:
        def predict(self, scan):
            mask = case.truth.astype(np.uint8)
            if scan.spatial_shape != SHAPE:
                mask = np.pad(mask[:1, :1, :1] + 1, [(0, size - 1) for size in scan.spatial_shape])
            elif scan.image[0, 0, 0, 0] < 0:
                mask[8:11] = 0  # 2 of 5 rows are left: Dice 4 / 7
            return SimpleNamespace(mask=mask)

    def darken(case):
        return replace(case, scan=replace(case.scan, image=case.scan.image - 1e6))

    wanted = [script.Change("unchanged", lambda case: case, 0.0)]
    wanted += [script.Change(str(allowed), darken, allowed) for allowed in (0.5, 0.4)]
    result = script.measure(Shrinking(), [("a", case), ("b", case)], wanted)
    assert [row["mean_dice"] for row in result["changes"]] == pytest.approx([1, 4 / 7, 4 / 7])
    assert [row["lost"] for row in result["changes"]] == pytest.approx([0, 3 / 7, 3 / 7])
    assert [row["reached"] for row in result["changes"]] == [True, True, False]
    assert result["changes"][1]["dice"] == pytest.approx({"a": 4 / 7, "b": 4 / 7})
    free = result["lesion_free"]
    assert (free["volumes"], free["without_false_positives"], free["largest_voxels"]) == (2, 0, 1)
    assert free["median_ml"] == pytest.approx(0.88 * 0.88 * 5 / 1000)


def test_volumes_without_lesion_are_counted_and_their_false_positives_sized(script):
    found = {"a": {"voxels": 0, "ml": None}, "b": {"voxels": 7, "ml": None}, "c": {"voxels": 3, "ml": None}}
    summary = script.lesion_free_summary(found)
    assert (summary["volumes"], summary["without_false_positives"]) == (3, 1)
    assert (summary["median_voxels"], summary["largest_voxels"]) == (3, 7)
    assert summary["median_ml"] is None
    rows = [
        {"change": "unchanged", "mean_dice": 0.8, "lost": 0.0, "allowed": 0.0, "reached": True},
        {"change": "darker", "mean_dice": 0.75, "lost": 0.05, "allowed": 0.03, "reached": False},
    ]
    lines = script.markdown_table({"changes": rows, "lesion_free": summary}).splitlines()
    assert lines[2] == "| unchanged | 0.8000 |  |  |  |"
    assert lines[3] == "| darker | 0.7500 | 0.0500 | 0.030 | no |"
    assert lines[-1].endswith("1 of 3 volumes get no lesion; false positives: median 3, largest 7 voxels.")


@pytest.fixture
def bright_predictor(tmp_path):
    """The product's own road with a network that finds what is bright in the FLAIR of the slice itself."""
    import torch

    class Brightness(torch.nn.Module):
        def forward(self, slices):
            logits = 40 * (slices[:, slices.shape[1] // 2] - BRIGHT)  # neighbours on either side, FLAIR in the middle
            return torch.stack([-logits, logits], dim=1)

    folder = tmp_path / "bundle"
    shutil.copytree(SEGMENTATION_BUNDLE / "configs", folder / "configs")
    (folder / "models").mkdir()
    (folder / "models" / "model.pt").write_bytes(b"never read")
    predictor = Predictor(folder, device="cpu")
    predictor.road.network = Brightness()
    return predictor


def test_the_whole_script_writes_table_json_and_plot_and_turning_costs_nothing(
    script, prepared_dataset, bright_predictor, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(script, "Predictor", lambda _bundle: bright_predictor)
    written, picture = tmp_path / "out.json", tmp_path / "out.png"
    files = ["--json", str(written), "--plot", str(picture)]
    assert script.main([str(prepared_dataset), "--fold", "1", "--limit", "1", *files]) == 0
    result = json.loads(written.read_text())
    rows = {row["change"]: row for row in result["changes"]}
    assert rows["unchanged"]["mean_dice"] > 0.9
    assert list(rows["unchanged"]["dice"]) == ["sub-1"]
    exact = [name for name in rows if name.startswith(("re-oriented", "spacing"))]
    assert len(exact) == 7
    assert {rows[name]["lost"] for name in exact} == {0.0}
    assert 0 < rows["resampled to 1.3 mm in plane"]["lost"] < 0.2
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("\n| ") == len(rows)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--limit", "0"], "--limit must be at least 1, got 0"),
        (["--bundle", "nowhere"], "nowhere must be a bundle"),
        (["--checkpoint", "gone.pt"], "gone.pt must be the weights of a training"),
        (["--network", "network.yaml"], "--network needs the --checkpoint of such a network"),
    ],
)
def test_bad_options_end_in_one_line_and_exit_code_2(script, prepared_dataset, capsys, change, reason):
    assert script.main([str(prepared_dataset), "--fold", "0", *change]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {reason}")
    assert printed.err.count("\n") == 1
