"""What two processes of one training share, and what each has of its own; with ``multi_gpu_train.yaml`` and gloo."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

STEPS = Path(__file__).with_name("distributed_steps.py")
STAGING = Path(__file__).parents[2] / "bundles" / "dementia_stage_classification"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
TRAINED_ON = ["sub-1", "sub-2", "sub-4", "sub-5"]  # all but fold 0, whose two patients are held out


@dataclass(frozen=True)
class Processes:
    """What two processes saw of a training, and the folder that it wrote."""

    folder: Path
    seen: list[dict[str, Any]]

    def both(self, name: str) -> Any:
        """Return what both saw alike."""
        first, second = (process[name] for process in self.seen)
        assert first == second
        return first


@pytest.fixture(scope="module")
def train(run_command, small_training):
    def run(folder, **overrides):
        settings = {**small_training, "fold": 0, "output_dir": str(folder), **overrides}
        run_command(*TORCHRUN, str(STEPS), json.dumps(settings))
        return Processes(folder, [json.loads((folder / f"process_{rank}.json").read_text()) for rank in (0, 1)])

    return run


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    """Two epochs: two patients a process, one a batch."""
    return train(tmp_path_factory.mktemp("processes"))


def test_every_epoch_deals_the_patients_anew_and_each_to_one_process(trained):
    epochs = list(zip(*(process["patients"] for process in trained.seen), strict=True))
    assert [sorted(first + second) for first, second in epochs] == [TRAINED_ON, TRAINED_ON]
    assert epochs[0] != epochs[1]


def test_each_process_draws_slices_of_its_own(trained):
    assert trained.seen[0]["seed"] != trained.seen[1]["seed"]
    drawn = [drawn for process in trained.seen for drawn in process["drawn"]]
    assert len(drawn) == len(set(drawn)) == 8


def test_the_processes_start_from_the_same_weights_though_their_seeds_differ(trained):
    assert trained.both("start")


def test_the_learning_rate_is_planned_for_the_iterations_that_a_process_makes(trained):
    assert trained.both("rates") == pytest.approx([1e-3, 2e-3, 1e-3, 0.0], abs=1e-9)


def test_what_each_process_validated_is_what_was_saved(trained):
    assert trained.both("averages")[-1] == trained.both("saved")  # batch norm statistics included


def test_both_processes_know_the_mean_over_all_patients_and_decide_by_it(trained):
    dice = trained.both("dice")
    assert trained.both("best")["_saved"][0][0] == max(dice)
    assert trained.both("early_stop")["best_score"] == max(dice)


@pytest.mark.slow
def test_a_resumed_training_goes_on_in_both_processes(trained, train, tmp_path):
    shutil.copytree(trained.folder / "checkpoints", tmp_path / "checkpoints")
    resumed = train(tmp_path, epochs=3, resume=True)
    assert len(resumed.both("rates")) == 2  # the third epoch alone
    assert resumed.both("rates")[-1] == pytest.approx(0, abs=1e-9)
    assert resumed.both("averages") != trained.both("averages")[-1:]
    checkpoint = torch.load(tmp_path / "checkpoints" / "checkpoint_epoch=3.pt", weights_only=True)
    assert checkpoint["trainer"]["iteration"] == 6


@pytest.mark.slow
def test_the_fit_in_closed_form_is_the_same_in_two_processes_as_in_one(run_command, small_staging, tmp_path):
    train = str(STAGING / "configs" / "train.yaml")
    configs = f"['{train}','{STAGING / 'configs' / 'multi_gpu_train.yaml'}']"
    monai = ("-m", "monai.bundle", "run", "training", "--config_file")
    run_command(*monai, train, **small_staging, output_dir=tmp_path / "one")
    run_command(*TORCHRUN, *monai, configs, **small_staging, output_dir=tmp_path / "two")
    one, two = (torch.load(tmp_path / name / "model_final.pt", weights_only=True) for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=0, atol=0)
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1
