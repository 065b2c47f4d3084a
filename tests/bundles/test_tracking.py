"""Runs recorded by MLflow through MONAI's ``--tracking``, read back with MLflow's own client.

MLflow is in MONAI Label's environment and not in this software's, so that is where these tests run unless it is here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import AR2UNetError
from pipeline.label_app.environment import check_environment, default_environment, interpreter

STAGING = Path(__file__).parents[2] / "bundles" / "dementia_stage_classification"
LABEL_ENVIRONMENT = Path(os.environ.get("AR2UNET_LABEL_ENV") or default_environment())

# Notes whatever asks for an address or connects to one.
AUDIT = """
import os, sys

def note(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect"):
        with open(os.environ["ADDRESSES"], "a") as file:
            file.write(f"{event} {arguments!r}\\n")

sys.addaudithook(note)
"""

READ = """
import json, sys
from mlflow import MlflowClient

client, found = MlflowClient(sys.argv[1]), []
for experiment in client.search_experiments():
    for run in client.search_runs(experiment.experiment_id):
        history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        found.append({
            "experiment": experiment.name,
            "status": run.info.status,
            "parameters": run.data.params,
            "metrics": {name: {str(point.step): point.value for point in points} for name, points in history.items()},
            "artifacts": [artifact.path for artifact in client.list_artifacts(run.info.run_id)],
            "folder": run.info.artifact_uri.removeprefix("file://"),
        })
print(json.dumps(found))
"""

LEAVE_A_KILLED_RUN = """
import sys
from mlflow import MlflowClient

client = MlflowClient(sys.argv[1])
client.create_run(client.create_experiment("flair_abnormality_segmentation"), run_name="killed")
"""

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Tracked:
    """A folder that a tracked run wrote to, the runs in its store, and the addresses that anything asked for."""

    folder: Path
    runs: list[dict[str, Any]]
    addresses: str

    @property
    def run(self) -> dict[str, Any]:
        (run,) = self.runs
        return run

    @property
    def config(self) -> dict[str, Any]:
        """The config that was run, as MLflow keeps it."""
        (name,) = self.run["artifacts"]
        content: dict[str, Any] = json.loads(Path(self.run["folder"], name).read_text())
        return content


@pytest.fixture(scope="module")
def python():
    """A Python that has MLflow."""
    if importlib.util.find_spec("mlflow") is not None:
        return sys.executable
    try:
        check_environment(LABEL_ENVIRONMENT)
    except AR2UNetError as error:
        pytest.skip(f"MLflow is not here, and {error}")
    return str(interpreter(LABEL_ENVIRONMENT))


@pytest.fixture(scope="module")
def run(python, repository, tmp_path_factory):
    """Run that Python in a folder, where nothing tells MLflow that it is tested."""
    home = tmp_path_factory.mktemp("home")
    (home / "sitecustomize.py").write_text(AUDIT)

    def run_python(*arguments, cwd, addresses=home / "other_addresses", **environment):
        finished = subprocess.run(
            [python, *map(str, arguments)],
            cwd=cwd,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "PYTHONPATH": f"{home}:{repository}",
                "MONAI_FAIL_ON_DUPLICATE_CONFIG": "1",
                "CUDA_VISIBLE_DEVICES": "",
                "OMP_NUM_THREADS": "1",
                "ADDRESSES": str(addresses),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    return run_python


@pytest.fixture(scope="module")
def track(run, bundle, tmp_path_factory):
    """Run a bundle's command with tracking and read its store back."""

    def track_command(*command, tracking="configs/mlflow.yaml", cwd=bundle, environment=None, folder=None, **overrides):
        folder = folder or tmp_path_factory.mktemp("tracked")
        addresses = folder / "addresses"
        flags = [part for name, value in overrides.items() for part in (f"--{name}", str(value).replace(" ", ""))]
        arguments = ("-m", "monai.bundle", "run", *command, "--tracking", tracking, "--output_dir", folder, *flags)
        run(*arguments, cwd=cwd, addresses=addresses, **(environment or {}))
        runs = json.loads(run("-c", READ, f"sqlite:///{folder}/mlruns.db", cwd=folder, MLFLOW_DISABLE_TELEMETRY="true"))
        return Tracked(folder, runs, addresses.read_text() if addresses.exists() else "")

    return track_command


@pytest.fixture(scope="module")
def training(track, small_training):
    return track("training", "--config_file", "configs/train.yaml", **small_training)


def test_a_training_is_finished_with_its_losses_its_dice_and_what_was_turned(training):
    run = training.run
    assert (run["experiment"], run["status"]) == ("flair_abnormality_segmentation", "FINISHED")
    assert {name: run["parameters"][name] for name in ("fold", "epochs", "channels", "learning_rate", "seed")} == {
        "fold": "1",
        "epochs": "2",
        "channels": "[4, 8, 16]",
        "learning_rate": "0.002",
        "seed": "0",
    }
    assert list(run["metrics"]["train_loss"]) == ["1", "2", "3", "4", "5", "6"]
    assert len(set(run["metrics"]["train_loss"].values())) == 6
    assert max(run["metrics"]["lr_group_0"].values()) == pytest.approx(2e-3)
    assert list(run["metrics"]["val_mean_dice"]) == list(run["metrics"]["val_median_dice"]) == ["1", "2"]


def test_the_config_that_was_run_is_kept_with_its_overrides(training, small_training):
    assert training.config["epochs"] == 2
    assert training.config["dataset_dir"] == small_training["dataset_dir"]
    assert training.config["train"]["trainer"]["_target_"] == "SupervisedTrainer"


def test_nothing_asks_the_network(training):
    assert training.addresses == ""


def test_the_plain_tracking_of_monai_records_losses_and_dice_too(track, small_training):
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true"}
    plain = track(
        "training",
        *("--config_file", "configs/train.yaml"),
        tracking="mlflow",
        environment=quiet,
        **{**small_training, "epochs": 1},
    )
    assert (plain.run["status"], plain.addresses) == ("FINISHED", "")
    assert list(plain.run["metrics"]["train_loss"]) == ["1", "2", "3"]
    assert list(plain.run["metrics"]["val_mean_dice"]) == ["1"]


def test_an_evaluation_is_a_run_of_its_own_beside_one_that_was_killed(
    run, track, training, small_training, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("evaluated")
    run("-c", LEAVE_A_KILLED_RUN, f"sqlite:///{folder}/mlruns.db", cwd=folder, MLFLOW_DISABLE_TELEMETRY="true")
    names = ("dataset_dir", "fold", "channels", "recurrences", "network_def#backbone", "num_workers")
    network = {name: small_training[name] for name in names}
    evaluated = track(
        "evaluating",
        *("--config_file", "['configs/train.yaml','configs/evaluate.yaml']"),
        folder=folder,
        checkpoint=training.folder / "model_final.pt",
        **network,
    )
    assert {len(run["metrics"]): run["status"] for run in evaluated.runs} == {0: "RUNNING", 2: "FINISHED"}
    (own,) = [run for run in evaluated.runs if run["metrics"]]
    assert own["parameters"]["checkpoint"] == str(training.folder / "model_final.pt")
    # The last validation of the training saw the same weights.
    assert own["metrics"]["val_mean_dice"]["1"] == pytest.approx(training.run["metrics"]["val_mean_dice"]["2"])
    assert len(own["artifacts"]) == 1


def test_an_inference_is_recorded_with_its_config(track, tiny_dataset, tmp_path):
    scan = tiny_dataset.folder / tiny_dataset.entries[1]["image"][1]
    (tmp_path / "scan.nii.gz").write_bytes(scan.read_bytes())
    inferred = track("--config_file", "configs/inference.yaml", dataset_dir=tmp_path)
    assert inferred.run["status"] == "FINISHED"
    assert inferred.run["parameters"]["dataset_dir"] == str(tmp_path)
    assert inferred.config["evaluator"]["_target_"] == "SupervisedEvaluator"
    assert (inferred.folder / "scan_mask.nii.gz").is_file()


def test_the_staging_bundle_is_tracked_by_its_own_settings(track, small_staging):
    staged = track("training", "--config_file", "configs/train.yaml", cwd=STAGING, **small_staging)
    assert (staged.run["experiment"], staged.run["status"]) == ("dementia_stage_classification", "FINISHED")
    assert staged.run["parameters"]["network"] == "AtrophyClassifier"
    assert {"train_loss_subjects", "val_auc_non_vs_any", "val_macro_auc"} <= set(staged.run["metrics"])
    assert staged.config["network_def"]["slices"] == 8
    assert staged.addresses == ""
