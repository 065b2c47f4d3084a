"""The staging bundle: its configs, its metadata, and its own commands on a small synthetic data set."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from networks.atrophy_classifier import CLASSES, AtrophyClassifier
from pipeline.errors import DatasetError, ScanError
from pipeline.evaluation.classification import roc_auc
from pipeline.training.stages import (
    LoadT1Slicesd,
    SubjectMeanInferer,
    TakeSubjectSlicesd,
    stage_entries,
    stage_folder_entries,
)

BUNDLE = Path(__file__).parents[2] / "bundles" / "dementia_stage_classification"
CONFIGS = sorted(path.name for path in (BUNDLE / "configs").glob("*.yaml"))
LABELS = (0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3)  # of the subjects of `staging_dataset`
RPS = np.diag([1.0, -1.0, 1.0, 1.0])  # the axes of prepared volumes


@pytest.fixture
def start(staging_dataset, tmp_path, monkeypatch):
    """Make an initialised workflow of configs in this process, writing to ``tmp_path / "run"``."""
    from monai.bundle import ConfigWorkflow

    monkeypatch.chdir(BUNDLE)
    monkeypatch.setenv("MONAI_FAIL_ON_DUPLICATE_CONFIG", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads, started = torch.get_num_threads(), []
    torch.set_num_threads(1)

    def make(*names, kind="train", **overrides):
        settings = {"dataset_dir": str(staging_dataset), "output_dir": str(tmp_path / "run"), "fold": 1, **overrides}
        workflow = ConfigWorkflow(
            [f"configs/{name}" for name in names], logging_file=False, workflow_type=kind, **settings
        )
        workflow.initialize()
        started.append(workflow)
        return workflow

    yield make
    for workflow in started:
        if "writer" in workflow.parser:
            workflow.parser.get_parsed_content("writer").close()
    torch.set_num_threads(threads)


# --- configs and metadata, without running them ------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_no_number_is_read_as_a_string_and_no_logic_hides_in_lambdas(name):
    text = (BUNDLE / "configs" / name).read_text()
    assert "lambda" not in text
    assert not re.search(r"[:\[,] *[-+]?\d+(\.\d*)?[eE][-+]?\d+", re.sub(r"\d\.\d+e[-+]\d", "", text))


def test_a_config_can_be_run_by_its_own_key_and_by_run_alone():
    for name, key in (("train", "training"), ("inference", "inference"), ("evaluate", "evaluating")):
        config = yaml.safe_load((BUNDLE / "configs" / f"{name}.yaml").read_text())
        assert config["run"] == config[key]


def test_the_network_of_inference_is_that_of_training_and_fits_the_shipped_weights():
    train, inference = (
        yaml.safe_load((BUNDLE / "configs" / f"{name}.yaml").read_text()) for name in ("train", "inference")
    )
    assert (
        train["network_def"]
        == inference["network_def"]
        == {"_target_": "networks.atrophy_classifier.AtrophyClassifier"}
    )
    weights = BUNDLE / "models" / "model.pt"
    assert weights.stat().st_size < 20e6
    network = AtrophyClassifier()
    network.load_state_dict(torch.load(weights, weights_only=True))
    assert network.subject_head.calibration_weight.abs().sum() > 0


def test_the_metadata_are_those_of_the_network_and_valid_for_monai(monkeypatch):
    from monai.bundle import verify_metadata, verify_net_in_out

    monkeypatch.chdir(BUNDLE)
    metadata = json.loads(Path("configs/metadata.json").read_text())
    assert list(metadata["network_data_format"]["outputs"]["pred"]["channel_def"].values()) == list(CLASSES)
    assert max(metadata["changelog"]) == metadata["version"]
    verify_net_in_out("network_def", "configs/metadata.json", "configs/inference.yaml", device="cpu")
    schema = BUNDLE.parents[2] / "shared" / "schema" / metadata["schema"].rpartition("/")[2]
    if not schema.is_file():
        pytest.skip(f"MONAI's {schema.name} is not beside the repository, and tests do not download")
    with pytest.warns(UserWarning, match="No hash value provided"):
        verify_metadata(meta_file="configs/metadata.json", filepath=str(schema))


def test_the_exports_give_the_probabilities_of_the_network(monkeypatch, tmp_path):
    from monai.bundle import ckpt_export

    monkeypatch.chdir(BUNDLE)
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file="models/model.pt",
        meta_file="configs/metadata.json",
        config_file="configs/inference.yaml",
    )
    network = AtrophyClassifier()
    network.load_state_dict(torch.load("models/model.pt", weights_only=True))
    image = torch.rand(2, 32, 208, 176, generator=torch.Generator().manual_seed(0)) * 255
    torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), network(image))


@pytest.mark.slow
@pytest.mark.filterwarnings(  # torch.export's own, where it walks through its trees
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning"
)
def test_the_onnx_export_gives_the_logits_of_the_network(monkeypatch, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from monai.bundle import onnx_export

    monkeypatch.chdir(BUNDLE)
    path = tmp_path / "model.onnx"
    onnx_export(
        net_id="network_def",
        filepath=str(path),
        ckpt_file="models/model.pt",
        meta_file="configs/metadata.json",
        config_file="configs/inference.yaml",
    )
    session = onnxruntime.InferenceSession(path)
    network = AtrophyClassifier()
    network.load_state_dict(torch.load("models/model.pt", weights_only=True))
    image = torch.rand(session.get_inputs()[0].shape, generator=torch.Generator().manual_seed(0)) * 255
    (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), network(image), rtol=1e-4, atol=1e-4)


def test_the_documents_say_what_they_must():
    assert (BUNDLE / "LICENSE").read_text() == (BUNDLE.parents[1] / "LICENSE").read_text()
    assert "Not known" in (BUNDLE / "docs" / "data_license.txt").read_text()
    card = (BUNDLE / "docs" / "README.md").read_text()
    for statement in ("not a diagnosis", "not a medical device", "Moderate", "not known"):
        assert statement in card


# --- training and evaluating -------------------------------------------------------------------------


def test_training_fits_all_but_the_held_out_fold_and_evaluating_scores_that_fold(
    start, small_staging, make_t1, tmp_path
):
    workflow = start("train.yaml", **small_staging)
    assert workflow.check_properties() == []
    assert [entry["subject"] for entry in workflow.val_dataset_data] == [f"sub-{n:02}" for n in range(18) if n % 3 == 1]
    workflow.run()
    assert workflow.trainer.state.iteration == 2  # 12 subjects, 8 a batch
    assert set(workflow.evaluator.state.metrics) >= {"val_auc_non_vs_any", "val_macro_auc", "val_balanced_accuracy"}
    checkpoint = tmp_path / "run" / "model_final.pt"

    scores = tmp_path / "scores"
    evaluation = start(
        "train.yaml", "evaluate.yaml", output_dir=str(scores), checkpoint=str(checkpoint), **small_staging
    )
    evaluation.parser.get_parsed_content("evaluating")
    with (scores / "subjects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["subject"] for row in rows] == [f"sub-{n:02}" for n in range(18) if n % 3 == 1]
    assert [int(row["label"]) for row in rows] == [min(LABELS[n], 2) for n in range(18) if n % 3 == 1]
    shares = np.array([[float(row[f"probability_{k}"]) for k in range(3)] for row in rows])
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-4)

    network = AtrophyClassifier(8, (34, 30), ((5, 29), (6, 22)), 4, ((9, 21), (10, 18)))
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    images = np.stack([make_t1(LABELS[n], n) for n in range(18) if n % 3 == 1]).transpose(0, 3, 2, 1)
    expected = network(torch.from_numpy(np.ascontiguousarray(images))).softmax(1)
    np.testing.assert_allclose(shares, expected, atol=1e-4)
    summary = json.loads((scores / "summary.json").read_text())
    truth = [int(row["label"]) > 0 for row in rows]
    assert summary["auc_non_vs_any"]["value"] == pytest.approx(roc_auc(truth, 1 - shares[:, 0]))


@pytest.mark.slow
def test_the_literal_command_trains_on_everybody_and_resuming_finds_nothing_left_to_do(
    small_staging, run_command, tmp_path
):
    command = ("-m", "monai.bundle", "run", "training", "--config_file", str(BUNDLE / "configs" / "train.yaml"))
    everybody = {**small_staging, "fold": -1, "output_dir": tmp_path}
    run_command(*command, **everybody)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "model_final.pt", "tensorboard"]
    before = (tmp_path / "model_final.pt").read_bytes()
    log = run_command(*command, **everybody, resume="true")
    assert "Restored all variables from" in log
    assert (tmp_path / "model_final.pt").read_bytes() == before


def test_the_slice_network_trains_on_top_and_is_scored_by_subject(start, tmp_path):
    small = {"epochs": 2, "slice_size": [17, 15], "slices_per_subject": 3, "warmup_iterations": 1, "val_interval": 1}
    workflow = start("train.yaml", "network_slice_classifier.yaml", **small, **{"network_def#channels": [4, 6]})
    assert workflow.check_properties() == []
    workflow.run()
    assert workflow.trainer.state.iteration == 6  # 12 subjects, 4 a batch, twice
    assert len(workflow.evaluator.state.output) == 2  # the last 2 of 6 subjects: one answer each
    assert workflow.evaluator.state.output[0]["pred"].shape == (3,)
    assert (tmp_path / "run" / "model_final.pt").is_file()


def test_a_subjects_probability_is_the_mean_of_its_slices():
    class OfMean(torch.nn.Module):
        def forward(self, slices):
            level = slices.mean((1, 2, 3))
            return torch.stack([level, -level, 2 * level], dim=1)

    from monai.inferers import SimpleInferer

    images = torch.arange(2 * 5 * 3 * 4.0).view(2, 5, 3, 4) / 60
    network = OfMean()
    expected = torch.stack([network(subject[:, None]).softmax(1).mean(0) for subject in images])
    torch.testing.assert_close(SubjectMeanInferer(SimpleInferer())(images, network).softmax(1), expected)


# --- entries -----------------------------------------------------------------------------------------


def test_moderate_is_counted_with_mild_and_folds_are_kept_apart(staging_dataset):
    training, held = stage_entries(staging_dataset, 2, "training"), stage_entries(staging_dataset, 2, "validation")
    assert {entry["fold"] for entry in held} == {2}
    assert 2 not in {entry["fold"] for entry in training}
    assert len(training) + len(held) == 18
    moderate = [entry for entry in training + held if entry["stage"] == "ModerateDemented"]
    assert [entry["label"] for entry in moderate] == [2]
    assert stage_entries(staging_dataset, -1, "validation") == []


def test_a_fold_or_a_datalist_that_is_not_there_is_named(staging_dataset, tmp_path):
    with pytest.raises(DatasetError, match=r"nothing for validation with fold 7; its folds are \[0, 1, 2\]"):
        stage_entries(staging_dataset, 7, "validation")
    with pytest.raises(DatasetError, match=r"datalist.json must be a datalist as 'ar2unet prepare dementia' writes it"):
        stage_entries(tmp_path, 0, "training")


def test_the_folder_holds_slices_and_volumes_under_different_names(tmp_path):
    with pytest.raises(DatasetError, match="found none"):
        stage_folder_entries(tmp_path)
    for name in ("b.nii.gz", "a.png", ".hidden.png", "notes.txt", "c.JPG"):
        (tmp_path / name).touch()
    assert [entry["subject"] for entry in stage_folder_entries(tmp_path)] == ["a", "b", "c"]
    (tmp_path / "a.jpeg").touch()
    with pytest.raises(DatasetError, match=r"both a\.jpeg and a\.png; keep one"):
        stage_folder_entries(tmp_path)


# --- inference ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_size():
    """A head of the training frame's size as ``(columns, rows, slices)``, no slice like another."""
    rng = np.random.default_rng(5)
    columns, rows, _ = np.indices((176, 208, 32))
    inside = ((columns - 87) / 60) ** 2 + ((rows - 104) / 80) ** 2 < 1
    brain = 120 + 60 * np.sin(columns / 9 + np.arange(32)) * np.cos(rows / (7 + np.arange(32) / 5))
    return ((brain + rng.normal(0, 5, brain.shape)) * inside).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def weights(full_size, tmp_path_factory):
    """A network whose mean slices are those of the head, and whose answers depend on the image."""
    network, generator = AtrophyClassifier(), torch.Generator().manual_seed(0)
    slices = torch.from_numpy(full_size.transpose(2, 1, 0).copy()).float()
    small = torch.nn.functional.avg_pool2d(network._crop(slices[None])[0], 4).flatten(1)
    centred = small - small.mean(1, keepdim=True)
    network.templates.copy_(centred / centred.norm(dim=1, keepdim=True))
    for head in (network.subject_head, network.slice_heads):
        for name in ("weight", "calibration_weight"):
            value = getattr(head, name)
            value.copy_(torch.randn(value.shape, generator=generator) * (0.01 if name == "weight" else 1.0))
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(network.state_dict(), path)
    return network, path


def test_a_folder_of_slices_and_volumes_is_answered_file_by_file(full_size, weights, save_nifti, start, tmp_path):
    network, path = weights
    scans, out = tmp_path / "scans", tmp_path / "out"
    save_nifti(scans / "plain.nii.gz", full_size, RPS)
    # Axes to superior, left, anterior: the same head, stored otherwise.
    turned = full_size.transpose(2, 0, 1)[:, ::-1, ::-1]
    affine = np.array([[0, -1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    save_nifti(scans / "turned.nii.gz", turned, affine)
    noise = np.random.default_rng(1).integers(0, 90, (176, 208, 9)).astype(np.uint8)
    save_nifti(scans / "tall.nii.gz", np.concatenate([noise[..., :5], full_size, noise[..., 5:]], axis=2), RPS)
    Image.fromarray(full_size[:, :, 11].T).save(scans / "slice.png")
    workflow = start("inference.yaml", kind="infer", dataset_dir=str(scans), output_dir=str(out), checkpoint=str(path))
    assert workflow.check_properties() == []
    workflow.run()
    answers = {file.name.removesuffix("_stage.json"): json.loads(file.read_text()) for file in out.iterdir()}
    assert sorted(answers) == ["plain", "slice", "tall", "turned"]

    slices = torch.from_numpy(full_size.transpose(2, 1, 0).copy())
    expected = network(slices[None])[0].softmax(0)
    for name in ("plain", "turned", "tall"):
        np.testing.assert_allclose(list(answers[name]["probabilities"].values()), expected, atol=1e-3)
        assert answers[name]["stage"] == CLASSES[int(expected.argmax())]
    assert answers["plain"]["slices"] == [1, 32]
    assert answers["tall"]["slices"] == [6, 37]
    assert answers["tall"]["notes"] == ["took slices 6 to 37 of 41"]
    single = network.slice_logits(slices[11:12][None], torch.tensor([11]))[0].softmax(0)
    np.testing.assert_allclose(list(answers["slice"]["probabilities"].values()), single, atol=1e-3)
    assert answers["slice"]["like_training_slice"] == 12
    assert all("not a diagnosis" in answer["disclaimer"] for answer in answers.values())


def test_training_and_inference_read_a_volume_alike(full_size, save_nifti, tmp_path):
    from monai.bundle import ConfigParser
    from monai.transforms import Compose

    path = save_nifti(tmp_path / "turned.nii.gz", full_size[::-1, ::-1], np.diag([-1.0, 1.0, 1.0, 1.0]))
    parser = ConfigParser(yaml.safe_load((BUNDLE / "configs" / "train.yaml").read_text()))
    trained = Compose(parser.get_parsed_content("load_transforms"))({"image": str(path)})["image"]
    inferred = LoadT1Slicesd("image")({"image": str(path)})["image"]
    assert trained.dtype == torch.uint8
    assert torch.equal(trained.float(), inferred)


def test_a_volume_of_another_size_is_refused_in_one_line(save_nifti, make_t1, tmp_path):
    path = save_nifti(tmp_path / "small.nii.gz", make_t1(1, 0), RPS)
    with pytest.raises(ScanError, match=r"small\.nii\.gz: expected .*; got 30x34x8 voxels$"):
        LoadT1Slicesd("image")({"image": str(path)})


def test_a_stack_that_is_neither_a_slice_nor_a_subject_is_refused():
    with pytest.raises(ScanError, match=r"sub-7: expected 1 slice or at least 32, got 20"):
        TakeSubjectSlicesd("image", AtrophyClassifier())({"subject": "sub-7", "image": torch.zeros(20, 208, 176)})


def test_nothing_of_the_bundle_is_written_by_its_tests():
    assert not (BUNDLE / "eval").exists()
