"""The benchmark of inference: growth, its options, and a whole run on a network of a few channels."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipeline.engines.artefact import hash_file, read_artefact, write_manifest


@pytest.fixture
def script(load_script):
    return load_script("inference")


def test_a_stand_in_head_is_found_and_fills_the_same_share_of_every_size(script):
    from transforms.geometry import find_slice_frame

    for size, slices in ((64, 3), (128, 5)):
        scan = script.make_scan(size, slices)
        frame = find_slice_frame(scan.image, scan.affine, scan.spacing, margin=0, divisor=1)
        height, width, kept = frame.crop_shape
        assert (height / size, width / size) == pytest.approx((0.72, 0.88), abs=0.04)
        assert kept == slices


def test_growth_is_measured_against_slices_and_against_the_plane(script, monkeypatch):
    def fake(call, *, runs):
        return SimpleNamespace(best=call() * runs)

    def seconds(scan):  # a tenth, and a millionth a voxel
        return 0.1 + 1e-6 * scan.image.size

    monkeypatch.setattr(script, "time_calls", fake)
    monkeypatch.setattr(script, "SIZE", 32)
    predictor = SimpleNamespace(predict=seconds)
    by_slices, by_plane = script.measure_growth(predictor, (2, 3, 7), (16, 48), 5, runs=2)
    assert by_slices.sizes == (2, 3, 7)
    assert by_slices.line.slope == pytest.approx(2 * 1e-6 * 32 * 32)
    assert by_slices.line.intercept == pytest.approx(0.2)
    assert by_plane.sizes == pytest.approx((16 * 16 / 1e6, 48 * 48 / 1e6))
    assert by_plane.line.slope == pytest.approx(2 * 5)
    assert by_plane.line.intercept == pytest.approx(0.2)
    lines = script.growth_table([by_slices, by_plane]).splitlines()
    assert lines[2] == "| slices of 32 x 32 | 2 | 7 | 0.00205 | 0.200 | 1.0000 |"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--runs", "0"], "--runs must be at least 1, got 0"),
        (["--batches", "4", "0"], "--batches must be at least 1, got 0"),
        (["--channels", "16"], "--channels must be at least two whole numbers"),
        (["--channels", "2,4", "--dataset_dir", "x"], "--dataset_dir must go with the shipped network"),
        (["--patients", "-1"], "--patients must be at least 1, got -1"),
    ],
)
def test_bad_options_end_in_one_line_and_exit_code_2(script, capsys, options, reason):
    assert script.main(options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {reason}")
    assert printed.err.count("\n") == 1


@pytest.fixture(scope="module")
def tiny_bundle(load_script, tmp_path_factory):
    """An exported bundle whose network is tiny."""
    return load_script("agreement").write_variant(tmp_path_factory.mktemp("tiny") / "bundle", channels=(2, 4))


@pytest.fixture
def tiny(script, tiny_bundle, monkeypatch):
    """The tiny bundle in place of the shipped one, sizes of a run of seconds, and a floor that takes no time."""
    from floor import Floor

    def export_again(folder):  # another config, the same network
        found = read_artefact(tiny_bundle, hash_file(tiny_bundle / "models" / "model.pt"))
        shutil.copytree(found.network.parent, folder / "models" / "exported")
        frame = {**found.manifest.frame, "crop_to_head": False}
        config = hash_file(folder / "configs" / "inference.yaml")
        write_manifest(folder, replace(found.manifest, frame=frame, config_sha256=config))

    for module in (script, script.agreement):
        monkeypatch.setattr(module, "SEGMENTATION_BUNDLE", tiny_bundle)
    monkeypatch.setattr(script.agreement, "export_bundle", export_again)
    monkeypatch.setattr(script, "SIZE", 32)
    monkeypatch.setattr(script, "GROWTH_SLICES", (2, 4))
    monkeypatch.setattr(script, "GROWTH_SIZES", (32, 48))
    monkeypatch.setattr(script, "measure_floor", lambda precision: Floor(precision, 1e12, "nothing"))


def test_a_whole_run_measures_every_engine_and_writes_table_json_and_plot(
    script, tiny, prepared_dataset, tmp_path, capsys
):
    written, drawn = tmp_path / "inference.json", tmp_path / "inference.png"
    options = ["--slices", "3", "--runs", "1", "--batches", "1", "2", "--json", str(written), "--plot", str(drawn)]
    assert script.main([*options, "--dataset_dir", str(prepared_dataset), "--fold", "1", "--patients", "1"]) == 0
    result = json.loads(written.read_text())

    ways = {(way["network"], way["engine"], way["precision"]) for way in result["forward"]}
    expected = {("AR2-UNet", "plain MONAI", "f32"), ("AttentionUnet", "plain MONAI", "f32")}
    expected |= {("AR2-UNet", "torch, channels last", "bf16")}
    engines = script.installed_engines()
    expected |= {("AR2-UNet", "onnx", "f32")} if "onnx" in engines else set()
    expected |= {("AR2-UNet", "openvino", p) for p in ("f32", "bf16", "f16")} if "openvino" in engines else set()
    assert {way for way in ways if "alone" not in way[1]} == expected
    assert all(way["seconds"] > 0 and way["flops"] > 0 for way in result["forward"])
    assert [growth["sizes"] for growth in result["growth"]] == [[2, 4], [32 * 32 / 1e6, 48 * 48 / 1e6]]

    found = result["agreement"]
    for name in ("openvino bf16 against torch f32", "onnx f32 against torch f32"):
        assert (list(found["dice"].get(name, [])) == ["sub-1"]) == (name.split()[0] in engines)
    assert found["work"]["voxels"]["all"] == 48 * 48 * 6  # of 34 x 40 x 6
    assert found["work"]["slices"] == {"head": 6, "all": 6}

    table = capsys.readouterr().out
    assert table.splitlines()[0].startswith("| network | engine | precision | slice by slice | batch 1 | batch 2 |")
    assert "| slices of 32 x 32 | 2 | 4 |" in table
    assert "the head against all | 1 |" in table
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_other_channels_are_measured_on_a_variant_of_the_bundle(script, tiny, tiny_bundle, monkeypatch, capsys):
    wanted = []

    def variant(folder, *, channels):
        wanted.append(channels)
        return tiny_bundle

    monkeypatch.setattr(script, "SEGMENTATION_BUNDLE", None)
    monkeypatch.setattr(script, "write_variant", variant)
    assert script.main(["--channels", "2,4", "--no_growth", "--slices", "2", "--runs", "1", "--batches", "1"]) == 0
    assert wanted == [(2, 4)]
    assert "time of a scan" not in capsys.readouterr().out


def test_each_precision_is_the_one_that_multiplies(script, tiny, tiny_bundle):
    pytest.importorskip("openvino")
    found = {predictor.engine for predictor in script.agreement.engines_of(script.Predictor(tiny_bundle))}
    assert {"openvino f32", "openvino bf16", "openvino f16"} <= found


def test_patients_of_the_fold_alone_are_read(script, prepared_dataset):
    found = dict(script.read_patients(prepared_dataset, 1, None))
    assert sorted(found) == ["sub-1", "sub-3"]
    assert found["sub-1"].image.shape == (3, 34, 40, 6)
    assert found["sub-1"].image[1].mean() < found["sub-1"].image[0].mean()  # t1, flair, t1c in this order
    assert len(list(script.read_patients(prepared_dataset, 1, 1))) == 1
