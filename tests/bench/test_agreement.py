"""Agreement of masks: who is compared with whom, what counts as work, and the tables of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from pipeline.formats.scan import Scan

SHAPE = (8, 9, 5)


@pytest.fixture
def script(load_script):
    return load_script("agreement")


class Predictor:
    """Finds the first so many voxels, and sends slices of a size of its own."""

    bundle = Path("some_bundle")

    def __init__(self, engine, voxels, sent):
        self.engine, self.voxels = engine, voxels
        self.road = SimpleNamespace(flair=lambda _content: np.zeros(sent))

    def prepare(self, scan):
        return SimpleNamespace(content=scan)

    def infer(self, prepared):
        return SimpleNamespace(seconds=self.road.flair(None).size / 100)

    def finish(self, prepared, inferred):
        mask = np.zeros(SHAPE, np.uint8)
        mask.flat[: self.voxels] = 1
        return SimpleNamespace(mask=mask)

    def predict(self, scan):
        return self.finish(None, None)


@pytest.fixture
def result(script, monkeypatch):
    monkeypatch.setattr(script, "Predictor", lambda *_a, **_k: Predictor("torch f32", 30, (1, 1, 1)))
    ours, whole = Predictor("openvino f16", 20, (4, 5, 3)), Predictor("openvino f16", 24, (8, 10, 5))
    others = [Predictor("openvino f16", 20, (1, 1, 1)), Predictor("onnx f32", 30, (1, 1, 1))]
    scan = Scan(np.zeros((1, *SHAPE), np.float32), np.eye(4), None, "made here")
    return script.measure_agreement(ours, whole, others, [("sub-a", scan), ("sub-b", scan)])


def test_engines_are_compared_with_the_reference_and_the_head_with_whole_slices(result):
    dice = {name: by["sub-b"] for name, by in result["dice"].items()}
    assert dice == {
        "openvino f16 against torch f32": 2 * 20 / (20 + 30),
        "onnx f32 against torch f32": 1.0,
        "openvino f16, the head against all": 2 * 20 / (20 + 24),
    }
    assert list(result["dice"]["onnx f32 against torch f32"]) == ["sub-a", "sub-b"]
    assert result["pooled"]["openvino f16 against torch f32"] == pytest.approx(0.8)


def test_work_is_counted_over_all_patients(result):
    assert result["work"] == {
        "voxels": {"head": 2 * 60, "all": 2 * 400},
        "slices": {"head": 2 * 3, "all": 2 * 5},
        "seconds": {"head": pytest.approx(1.2), "all": pytest.approx(8.0)},
    }


def test_tables_and_goals_name_what_was_compared(script, result):
    tables = script.agreement_tables(result)
    assert "| openvino f16 against torch f32 | 2 | 0.80000 | 0.80000 | 0.80000 |" in tables
    assert "| network's voxels | 120 | 800 | 15% |" in tables
    assert "| network's slices | 6 | 10 | 60% |" in tables
    goals = script.agreement_goals(result, "openvino f16")
    assert [(goal.measured, goal.reached) for goal in goals] == [("0.80000", False), ("0.90909", False)]
    assert [goal.reached for goal in script.agreement_goals(result, "onnx f32")] == [True]


def test_a_variant_of_the_bundle_has_its_changes_and_the_shipped_one_stays(script, monkeypatch, tmp_path):
    exported = []
    monkeypatch.setattr(script, "export_bundle", exported.append)
    monkeypatch.setattr(script, "installed_engines", lambda: ["onnx"])
    shipped = (script.SEGMENTATION_BUNDLE / "configs" / "inference.yaml").read_bytes()
    folder = script.write_variant(tmp_path / "variant", channels=(2, 5, 7), crop_to_head=False)
    config = yaml.safe_load((folder / "configs" / "inference.yaml").read_text())
    assert config["volume_transforms"][0]["crop_to_head"] is False
    assert config["network_def"]["channels"] == [2, 5, 7]
    assert exported == [folder]
    assert not (folder / "models" / "exported").exists()
    assert (script.SEGMENTATION_BUNDLE / "configs" / "inference.yaml").read_bytes() == shipped
    predictor = script.Predictor(folder, device="cpu", engine="torch")
    image = Scan(np.random.default_rng(0).random((1, 20, 40, 3), np.float32), np.eye(4), None, "noise")
    done = script.run_pass(predictor, image)
    assert done.shape == (32, 48, 3)  # whole slices, on the divisor's grid
    assert done.mask.shape == (20, 40, 3)
    assert done.seconds > 0
