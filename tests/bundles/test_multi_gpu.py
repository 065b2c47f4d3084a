"""Training in two processes with ``multi_gpu_train.yaml``: on the CPU they talk through gloo."""

from __future__ import annotations

import pytest
import torch

PROCESSES = 2


@pytest.fixture(scope="module")
def finished(run_command, small_training, tmp_path_factory):
    """The folder and the log of a run of two epochs; ``python -m torch.distributed.run`` is ``torchrun``."""
    folder = tmp_path_factory.mktemp("multi_gpu")
    log = run_command(
        *("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}"),
        *("-m", "monai.bundle", "run", "training"),
        *("--config_file", "['configs/train.yaml','configs/multi_gpu_train.yaml']"),
        **small_training,
        output_dir=folder,
    )
    return folder, log


def test_every_process_finishes(finished):
    _, log = finished
    assert log.count("SupervisedTrainer: Engine run finished") == PROCESSES
    assert "destroy_process_group" not in log  # torch warns with it of a process that forgot to clean up


def test_checkpoints_are_written_once_and_fit_a_network_in_one_process(finished):
    from networks.ar2unet import AR2UNet

    folder, _ = finished
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "model_best.pt",
        "model_final.pt",
        "tensorboard",
    ]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint_epoch=2.pt"]
    network = AR2UNet(2, 3, 2, channels=(4, 8, 16), recurrences=1, patch_size=2)
    for name in ("model_best.pt", "model_final.pt"):
        network.load_state_dict(torch.load(folder / name, weights_only=True))
    checkpoint = torch.load(folder / "checkpoints" / "checkpoint_epoch=2.pt", weights_only=True)
    network.load_state_dict(checkpoint["network"])


def test_each_process_takes_its_share_of_the_patients(finished):
    folder, _ = finished
    checkpoint = torch.load(folder / "checkpoints" / "checkpoint_epoch=2.pt", weights_only=True)
    # Three patients in two processes, one a batch: two iterations each, one patient drawn twice.
    assert checkpoint["trainer"]["epoch_length"] == 2


def test_tensorboard_is_written_once_and_knows_the_patients_of_every_process(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = finished
    assert len(list((folder / "tensorboard").iterdir())) == 1
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3, 4]
    dice = {}
    for subject in ("sub-1", "sub-2", "sub-4"):
        assert [event.step for event in events.Scalars(f"patient_dice/{subject}")] == [1, 2]
        dice[subject] = events.Scalars(f"patient_dice/{subject}")[-1].value
    mean = events.Scalars("val_mean_dice")[-1]
    assert mean.step == 2
    assert mean.value == pytest.approx(sum(dice.values()) / 3, abs=1e-5)
