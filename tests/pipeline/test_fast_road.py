from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline.datasets.phantom import load_sample
from pipeline.errors import BundleError
from pipeline.formats.nifti import read_scan
from pipeline.formats.scan import Scan
from pipeline.predictor import Inferred, Predictor


def both_roads(bundle):
    return Predictor(bundle, engine="torch"), Predictor(bundle, engine="onnx")


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PSR", "oblique"])
@pytest.mark.parametrize("unit", ["mm", "unknown"])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("sequences", [1, 3])
def test_both_roads_give_the_network_the_same_voxels(
    orientation, unit, sequences, noisy, anatomy, make_nifti, exported_bundle
):
    spacing = (1.0, 1.0, 1.0) if unit == "unknown" else (0.6, 1.3, 4.0)
    volume, lesion = anatomy
    if noisy:
        volume = volume + np.random.default_rng(7).normal(0, 60, volume.shape).astype(volume.dtype)
    files = [
        make_nifti(f"{n}.nii.gz", orientation=orientation, volume=volume + n * lesion.astype(volume.dtype),
                   spacing=spacing, unit=unit)
        for n in range(sequences)
    ]  # fmt: skip
    scan = read_scan(*files)
    reference, fast = (predictor.road.prepare(scan) for predictor in both_roads(exported_bundle))
    np.testing.assert_array_equal(fast.image, reference["image"].numpy())
    assert fast.frame.to_json() == reference["image"].meta["slice_frame"]


def test_both_roads_give_the_same_mask_and_say_the_same_of_it(exported_bundle):
    sample = load_sample()
    scan = read_scan(sample.flair, sample.t1, sample.t1c)
    # A piece of the sample, for the reference takes its time.
    piece = Scan(np.ascontiguousarray(scan.image[..., 12:20]), scan.affine, scan.spacing, "piece")
    reference, fast = (predictor.predict(piece) for predictor in both_roads(exported_bundle))
    assert reference.mask.sum() > 1000
    np.testing.assert_allclose(fast.probabilities, reference.probabilities, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(fast.mask, reference.mask)
    assert (fast.mask.dtype, fast.probabilities.dtype) == (np.uint8, np.float32)
    assert fast.assessment.warnings == reference.assessment.warnings
    assert fast.assessment.predicted_dice == pytest.approx(reference.assessment.predicted_dice, abs=1e-4)


@pytest.mark.parametrize("fragment", [True, False])
def test_both_roads_leave_the_same_fragments_out_and_say_so(exported_bundle, fragment):
    scan = read_scan(load_sample().flair)
    masks = []
    for predictor, is_reference in zip(both_roads(exported_bundle), (True, False), strict=True):
        prepared = predictor.prepare(scan)
        probabilities = np.full(predictor.road.flair(prepared.content).shape, 0.01, np.float32)
        row, column = (size // 2 for size in probabilities.shape[:2])
        probabilities[row : row + 20, column : column + 20, 10:14] = 0.99
        if fragment:
            probabilities[row - 20 : row - 16, column : column + 4, 20] = 0.99
        both = torch.from_numpy(np.stack([1 - probabilities, probabilities])).log()
        prediction = predictor.finish(prepared, Inferred(both if is_reference else probabilities, 0.0))
        likely = prediction.probabilities > 0.5
        lost = likely & (prediction.mask == 0)
        assert prediction.mask.sum() > 1500
        assert lost.any() == fragment
        assert 10 < lost.sum() < 25 or not fragment
        left_out = f"Fragments far smaller than the main lesion were left out of the mask (voxels: {lost.sum()})."
        assert prediction.notes == ((left_out,) if fragment else ())
        masks.append(prediction.mask)
    np.testing.assert_array_equal(*masks)


def test_the_fastest_engine_changes_less_than_a_voxel_in_a_thousand(exported_bundle):
    sample = load_sample()
    scan = read_scan(sample.flair)
    masks = [Predictor(exported_bundle, engine=engine).predict(scan).mask for engine in ("onnx", "auto")]
    assert 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()) >= 0.999
    assert Predictor(exported_bundle).engine.startswith("openvino")


def test_auto_takes_torch_and_says_why_where_nothing_was_exported(bundle):
    predictor = Predictor(bundle, device="cpu")
    assert predictor.engine == "torch f32"
    assert "has no exported network: run 'ar2unet export'" in predictor.note
    assert "\n" not in predictor.note


def test_an_engine_that_is_asked_for_is_never_replaced(bundle, exported_bundle):
    with pytest.raises(BundleError, match="has no exported network"):
        Predictor(bundle, engine="openvino")
    with pytest.raises(BundleError, match=r"engine onnx runs on the CPU, got device 'cuda'"):
        Predictor(exported_bundle, engine="onnx", device="cuda")
    with pytest.raises(BundleError, match="engine must be auto, torch, openvino or onnx, got 'tpu'"):
        Predictor(bundle, engine="tpu")
    assert Predictor(exported_bundle, engine="torch").engine == "torch f32"


def test_an_engine_that_is_not_installed_is_named(exported_bundle, monkeypatch):
    monkeypatch.setattr("pipeline.fast_road.ENGINES", {"openvino": "no_such_package", "onnx": "onnxruntime"})
    with pytest.raises(BundleError, match="engine openvino needs the package no_such_package"):
        Predictor(exported_bundle, engine="openvino")
    assert Predictor(exported_bundle).engine == "onnx f32"


def test_auto_leaves_the_work_to_a_gpu_where_there_is_one(exported_bundle, monkeypatch, tmp_path):
    monkeypatch.setattr("pipeline.predictor.NVIDIA_DEVICE", tmp_path)
    assert Predictor(exported_bundle).engine == "torch f32"
    assert Predictor(exported_bundle, device="cpu").engine.startswith("openvino")


def test_the_fast_road_needs_neither_torch_nor_monai(exported_bundle, make_nifti, anatomy, tmp_path):
    path = make_nifti(volume=anatomy[0])
    code = (
        "import sys; from pathlib import Path; from pipeline.case import segment_case; "
        "from pipeline.predictor import Predictor; bundle, scan, out = map(Path, sys.argv[1:]); "
        "segment_case(Predictor(bundle), scan, out); "
        "print(sorted({'torch', 'monai', 'onnxruntime', 'matplotlib', 'yaml'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, exported_bundle, path, tmp_path / "out"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
