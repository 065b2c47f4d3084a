"""Training through the bundle's own command: what it writes, and that it goes on, stops and repeats as promised."""

from __future__ import annotations

import io
import math
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from networks.ar2unet import AR2UNet
from pipeline.errors import BundleError
from pipeline.weights import load_backbone

pytestmark = pytest.mark.filterwarnings(
    # MONAI's EarlyStopHandler names arguments as ignite did before 0.5.5.
    "ignore:'(min_delta|cumulative_delta)' is deprecated:DeprecationWarning",
)

HELD_OUT = ("sub-1", "sub-2", "sub-4")  # fold 1
LEARNING_RATE = 2.0e-3
BACKBONE = {"network_def#backbone": "efficientnet_lite0"}  # trainings of seconds go without


@dataclass(frozen=True)
class ResumedRun:
    """A run of two epochs that was then resumed until the fourth; three iterations an epoch."""

    folder: Path
    first_log: str
    first_checkpoint: dict[str, Any]
    resumed_log: str


@pytest.fixture(scope="module")
def resumed_run(run_command, small_training, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    command = (
        *("-m", "monai.bundle", "run", "training", "--meta_file", "configs/metadata.json"),
        *("--config_file", "configs/train.yaml", "--logging_file", "configs/logging.conf"),
    )
    first_log = run_command(*command, **small_training, output_dir=folder)
    first_checkpoint = torch.load(folder / "checkpoints" / "checkpoint_epoch=2.pt", weights_only=True)
    resumed_log = run_command(*command, **{**small_training, "epochs": 4}, output_dir=folder, resume="true")
    return ResumedRun(folder, first_log, first_checkpoint, resumed_log)


@pytest.fixture(scope="module")
def events(resumed_run):
    """What TensorBoard reads of the run: the first part's file and the resumed part's."""
    return read_events(resumed_run.folder / "tensorboard")


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def scalars(events, tag):
    return {event.step: event.value for event in events.Scalars(tag)}


def planned_rate(iteration, total, warmup=2):
    """Return the learning rate after an iteration: linear, then a cosine that reaches 0 with the last."""
    if iteration < warmup:
        return LEARNING_RATE * iteration / warmup
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (iteration - warmup) / (total - warmup)))


def test_the_command_trains_as_many_epochs_as_it_was_told(resumed_run):
    assert "Engine run resuming from iteration 0, epoch 0 until 2 epochs" in resumed_run.first_log
    trainer = resumed_run.first_checkpoint["trainer"]
    assert (trainer["epoch_length"], trainer["iteration"]) == (3, 6)


def test_the_overrides_reach_the_network(resumed_run):
    network = AR2UNet(2, 3, 2, channels=(4, 8, 16), recurrences=1, patch_size=2)
    for name in ("model_best.pt", "model_final.pt"):
        network.load_state_dict(torch.load(resumed_run.folder / name, weights_only=True))


def test_resuming_goes_on_where_the_run_ended(resumed_run, events):
    assert "Restored all variables from" in resumed_run.resumed_log
    assert "Epoch[4] Complete" in resumed_run.resumed_log
    assert "Epoch[2] Complete" not in resumed_run.resumed_log
    checkpoint = torch.load(resumed_run.folder / "checkpoints" / "checkpoint_epoch=4.pt", weights_only=True)
    assert checkpoint["trainer"]["iteration"] == 12
    assert [event.step for event in events.Scalars("train_loss")] == list(range(1, 13))  # each once
    assert {state["step"].item() for state in checkpoint["optimizer"]["state"].values()} == {12.0}


def test_every_iteration_leaves_its_loss(events):
    losses = scalars(events, "train_loss")
    assert all(0 < loss < 10 for loss in losses.values())
    assert len(set(losses.values())) == len(losses)


def test_the_learning_rate_warms_up_and_ends_with_the_run_also_with_the_resumed_one(events):
    rates = scalars(events, "learning_rate")
    expected = {iteration: planned_rate(iteration, total=6) for iteration in range(1, 7)}
    expected |= {iteration: planned_rate(iteration, total=12) for iteration in range(7, 13)}
    assert rates == pytest.approx(expected, abs=1e-9)


def test_validation_leaves_every_patients_dice_with_mean_and_median(events):
    patients = {subject: scalars(events, f"patient_dice/{subject}") for subject in HELD_OUT}
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("patient_dice/")} == {
        f"patient_dice/{subject}" for subject in HELD_OUT
    }
    for tag, average in (("val_mean_dice", statistics.fmean), ("val_median_dice", statistics.median)):
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3, 4]  # each once
        expected = {epoch: average(dice[epoch] for dice in patients.values()) for epoch in (1, 2, 3, 4)}
        assert scalars(events, tag) == pytest.approx(expected, abs=1e-5)


def test_an_overlay_picture_of_every_patient_has_the_size_of_the_patients_own_slices(events, tiny_dataset):
    for subject in HELD_OUT:
        pictures = events.Images(f"overlay/{subject}")
        assert [picture.step for picture in pictures] == [1, 2, 3, 4]
        columns, rows, _ = tiny_dataset.spatial_shape(subject)
        picture = np.asarray(Image.open(io.BytesIO(pictures[-1].encoded_image_string)))
        assert picture.shape == (rows, columns, 3)
        assert ((picture[..., 1] > 200) & (picture[..., 0] < 100)).any()  # the truth's green outline


def test_one_file_of_events_holds_a_whole_run(resumed_run):
    # TensorBoard follows a folder's newest file only: a second one would hide the first's growth.
    assert len(list((resumed_run.folder / "tensorboard").iterdir())) == 2  # the first run's and the resumed one's


def test_the_best_checkpoint_is_remembered_across_the_interruption(resumed_run, events):
    dice = scalars(events, "val_mean_dice")
    ((first_best, _),) = resumed_run.first_checkpoint["best"]["_saved"]
    assert first_best == pytest.approx(max(dice[1], dice[2]), abs=1e-6)
    last = torch.load(resumed_run.folder / "checkpoints" / "checkpoint_epoch=4.pt", weights_only=True)
    assert last["best"]["_saved"][0][0] == pytest.approx(max(dice.values()), abs=1e-6)
    assert last["early_stop"]["best_score"] == pytest.approx(max(dice.values()), abs=1e-6)


def test_the_saved_weights_are_the_average_and_not_the_last(resumed_run):
    final = torch.load(resumed_run.folder / "model_final.pt", weights_only=True)
    last = torch.load(resumed_run.folder / "checkpoints" / "checkpoint_epoch=4.pt", weights_only=True)
    assert all(torch.equal(final[name], last["ema"][name]) for name in final)
    assert not all(torch.equal(final[name], last["network"][name]) for name in final)


def test_training_stops_early_when_the_dice_no_longer_rises(start_training, tmp_path):
    # An average that never moves gives every validation the score of the first.
    workflow = start_training(epochs=9, early_stopping=2, ema_momentum=1.0e-12)
    workflow.run()
    assert workflow.trainer.state.epoch == 3  # the first sets the score, two do not better it
    assert (tmp_path / "run" / "model_final.pt").is_file()


def test_fold_minus_one_trains_on_every_patient_and_validates_nothing(start_training, tmp_path):
    workflow = start_training(epochs=1, fold=-1)
    workflow.run()
    assert workflow.trainer.state.iteration == 6
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints",
        "model_final.pt",
        "tensorboard",
    ]


@pytest.mark.parametrize(
    ("amp", "expected"),
    [(True, torch.bfloat16), ("true", torch.bfloat16), (False, torch.float32), ("false", torch.float32)],
)
def test_convolutions_run_in_the_precision_that_amp_says_in_training_and_validation(start_training, amp, expected):
    workflow = start_training(epochs=1, amp=amp)
    seen = {"train": set(), "validate": set()}
    trained = workflow.parser.get_parsed_content("network_def")
    averaged = workflow.parser.get_parsed_content("ema").ema_model
    for name, network in (("train", trained), ("validate", averaged)):
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(lambda _layer, _input, output, name=name: seen[name].add(output.dtype))
    workflow.run()
    assert seen == {"train": {expected}, "validate": {expected}}
    assert workflow.trainer.state.output[0]["pred"].dtype == torch.float32
    assert {weight.dtype for weight in trained.parameters()} == {torch.float32}


def losses_of(workflow):
    from ignite.engine import Events

    losses = []
    workflow.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output[0]["loss"])
    )
    workflow.run()
    return losses


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(start_training, tmp_path):
    first, second, other = (
        losses_of(start_training(epochs=1, seed=seed, output_dir=str(tmp_path / f"run{number}")))
        for number, seed in enumerate((5, 5, 6))
    )
    assert len(first) == 3
    assert first == second
    assert first != other


def test_no_patient_loses_a_sequence_while_the_volumes_are_cached(start_training, monkeypatch):
    from monai.data import NibabelReader

    read = NibabelReader.read

    def read_slowly(self, *arguments, **keywords):
        # MONAI's reader keeps the names it reads in itself: another thread's label leaves an image one sequence.
        images = read(self, *arguments, **keywords)
        time.sleep(0.02)
        return images

    monkeypatch.setattr(NibabelReader, "read", read_slowly)
    workflow = start_training(epochs=1)
    for dataset in (workflow.train_dataset, workflow.val_dataset):
        for patient in dataset._cache:
            t1, flair, t1c = patient["image"]
            assert not torch.equal(t1, flair)
            assert not torch.equal(t1c, flair)


def test_drawing_leaves_the_cached_volumes_as_they_were_and_in_slices(start_training):
    dataset = start_training(epochs=1).train_dataset
    before = [{key: patient[key].clone() for key in ("image", "label")} for patient in dataset._cache]
    drawn = [dataset[index][0] for index in range(len(dataset))]
    for patient, volumes in zip(dataset._cache, before, strict=True):
        for key, volume in volumes.items():
            assert torch.equal(patient[key], volume)
            assert patient[key][..., 0].is_contiguous()  # read from the disk, a slice lies all over its volume
    assert any(item["image"].std() > 0 for item in drawn)


def test_every_property_that_monai_looks_for_is_there(start_training, small_training):
    workflow = start_training(epochs=1)
    assert workflow.check_properties() == []
    assert workflow.max_epochs == 1
    assert workflow.dataset_dir == small_training["dataset_dir"]
    assert [entry["subject"] for entry in workflow.val_dataset_data] == list(HELD_OUT)
    assert [entry["subject"] for entry in workflow.train_dataset_data] == ["sub-0", "sub-3", "sub-5"]


def test_resuming_without_a_checkpoint_says_so(start_training, tmp_path):
    with pytest.raises(RuntimeError) as raised:
        start_training(resume=True)
    assert f"{tmp_path / 'run' / 'checkpoints'} must hold a checkpoint to resume from, found none" in reasons(raised)


def test_a_flag_that_is_neither_true_nor_false_is_refused(start_training):
    with pytest.raises(RuntimeError) as raised:
        start_training(resume="maybe")
    assert "a flag must be true or false, got 'maybe'" in reasons(raised)


def reasons(raised):
    """Return the messages of an error and of all that caused it."""
    error, messages = raised.value, []
    while error is not None:
        messages.append(str(error))
        error = error.__cause__
    return "\n".join(messages)


def test_an_existing_run_is_untouched_by_its_copy(resumed_run, start_training, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(resumed_run.folder, copy)
    workflow = start_training(epochs=4, resume="true")
    workflow.run()  # all four epochs are done already
    assert workflow.trainer.state.iteration == 12
    assert (copy / "model_best.pt").read_bytes() == (resumed_run.folder / "model_best.pt").read_bytes()


@pytest.mark.parametrize(("resume", "seed"), [("false", 5), ("true", 5 + 30)])
def test_a_resumed_training_draws_other_slices_than_its_first_epochs_did(in_bundle, tmp_path, resume, seed):
    (tmp_path / "checkpoint_epoch=30.pt").touch()
    parser = ConfigParser()
    parser.read_config("configs/train.yaml")
    parser.update({"checkpoint_dir": str(tmp_path), "resume": resume, "seed": 5})
    parser.get_parsed_content("initialize#0")
    assert torch.initial_seed() == seed


def test_a_training_starts_from_the_weights_it_is_given(bundle, in_bundle):
    parser = ConfigParser()
    parser.read_config("configs/train.yaml")
    parser["initial_weights"] = str(bundle / "models" / "model.pt")
    parser["device"] = "$torch.device('cpu')"
    network = parser.get_parsed_content("network")
    for name, value in torch.load(bundle / "models" / "model.pt", weights_only=True).items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=0)


def test_weights_of_another_network_do_not_start_a_training(bundle, in_bundle):
    parser = ConfigParser()
    parser.read_config("configs/train.yaml")
    parser["initial_weights"] = str(bundle / "models" / "model.pt")
    parser["channels"] = [4, 8, 16]
    with pytest.raises(RuntimeError) as caught:  # MONAI's parser wraps what an expression raises
        parser.get_parsed_content("network")
    assert isinstance(caught.value.__cause__, BundleError)
    assert "model.pt" in str(caught.value.__cause__)


def test_a_training_starts_from_the_published_backbone_and_teaches_it_at_its_share_of_the_rate(start_training):
    workflow = start_training(**BACKBONE, epochs=1)
    network = workflow.parser.get_parsed_content("network")
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    published = load_backbone(AR2UNet(2, 3, 2, channels=(4, 8), patch_size=2, backbone="efficientnet_lite0"))
    assert all(torch.equal(value, before[name]) for name, value in published.backbone.state_dict().items())
    rates = [group["initial_lr"] for group in workflow.parser.get_parsed_content("optimizer").param_groups]
    assert rates == pytest.approx([LEARNING_RATE, LEARNING_RATE / 4])
    workflow.run()
    moved = [name for name, value in network.backbone.named_parameters() if not torch.equal(value, before[name])]
    assert len(moved) == len(list(network.backbone.parameters()))


def test_a_resumed_training_needs_no_published_backbone(start_training, monkeypatch):
    start_training(**BACKBONE, epochs=1).run()
    monkeypatch.setattr("pipeline.weights.load_backbone", None)  # as on a machine without the package
    workflow = start_training(**BACKBONE, epochs=2, resume=True)
    workflow.run()
    assert workflow.parser.get_parsed_content("train#trainer").state.epoch == 2


def test_the_second_cycle_trains_the_weights_of_the_first(start_training, tmp_path):
    start_training(epochs=1).run()
    first = tmp_path / "run" / "model_final.pt"
    output = tmp_path / "second"
    workflow = start_training("second_cycle.yaml", initial_weights=str(first), output_dir=str(output), epochs=1)
    network = workflow.parser.get_parsed_content("network")
    learned = torch.load(first, weights_only=True)
    assert all(torch.equal(value, learned[name]) for name, value in network.state_dict().items())
    workflow.run()
    assert any(not torch.equal(value, learned[name]) for name, value in network.state_dict().items())
    assert (output / "model_final.pt").is_file()


def test_a_training_sees_windows_of_the_sizes_asked_for(start_training):
    sizes = {"window_sizes": [[16, 24], [32, 40]], "window_weights": [0.5, 0.5]}
    workflow = start_training(**sizes)
    shapes = []
    network = workflow.parser.get_parsed_content("network")
    network.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape[2:])))
    workflow.run()
    assert set(shapes) == {(16, 24), (32, 40)}
