"""Ways to train: what makes the plain MONAI way plain, and where the stopwatch splits a training."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events

from pipeline.training.precision import computes_bfloat16

SMALL = {"channels": [4, 8], "recurrences": 1, "batch_size": 2, "slices_per_patient": 2, "slice_size": [16, 32]}
SMALL = {**SMALL, "num_workers": 0, "warmup_iterations": 1, "network_def#backbone": "none"}


@pytest.fixture
def script(load_script):
    return load_script("training_runs")


@pytest.fixture
def common(prepared_dataset, tmp_path):
    folders = {"dataset_dir": str(prepared_dataset), "output_dir": str(tmp_path)}
    device = "$torch.device('cpu')"
    return {**SMALL, **folders, "fold": 1, "epochs": 9, "val_interval": 99, "device": device}


# --- the stopwatch -----------------------------------------------------------------------------------


def test_steps_and_waits_are_split_where_the_batch_comes_and_training_ends(script):
    now = [0.0]

    def data():
        while True:
            now[0] += 5.0  # reading
            yield None

    def step(_engine, _batch):
        now[0] += 100.0

    engine = Engine(step)
    stopwatch = script.Stopwatch(4, clock=lambda: now[0])
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: now.__setitem__(0, now[0] + 20.0))
    stopwatch.attach(engine)
    engine.run(data(), epoch_length=3, max_epochs=10)
    steps, waits = script.read_stopwatch(stopwatch, 1)
    assert steps == (120.0,) * 3  # with what other handlers do, and over the end of an epoch
    assert waits == (5.0,) * 3


def test_rates_are_those_of_all_iterations_and_the_step_is_the_median_one(script):
    training = script.Training("ours", "bf16", (12, 3, 16, 32), 60, (1.0, 2.0, 6.0), (0.5, 0.25, 0.25), 3.0)
    assert training.slices_per_second == 12 * 3 / 10
    assert training.waiting == 0.1
    assert training.step == 2.0


# --- the settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "compiled", "names"),
    [
        ("cpu", False, ["ours"]),
        ("cpu", True, ["ours", "ours, compiled"]),
        ("cuda", True, ["ours", "ours, compiled", "ours, memory not pinned"]),
    ],
)
@pytest.mark.parametrize("precision", ["bf16", "f32"])
def test_ours_comes_first_and_the_plain_way_last(script, device, compiled, names, precision, monkeypatch):
    monkeypatch.setattr("pipeline.training.precision.computes_bfloat16", lambda device: precision == "bf16")
    settings = script.make_settings(device, compiled=compiled)
    assert [s.name for s in settings] == [*names, "plain MONAI, AR2-UNet", "plain MONAI, AttentionUnet"]
    assert [s.plain for s in settings] == [False] * len(names) + [True, True]
    assert [s.precision for s in settings] == [precision] * len(names) + ["f32", "f32"]


def test_variants_of_ours_change_one_thing_each(script, common):
    changed = {}
    for setting in script.make_settings("cuda", compiled=True)[:3]:
        config = script.read_config({**common, **setting.overrides})
        trainer, loader = config["train"]["trainer"], config["train"]["dataloader"]
        changed[setting.name] = (trainer.get("compile", False), loader["pin_memory"])
    pinned = '$@device.type == "cuda"'
    assert changed == {
        "ours": (False, pinned),
        "ours, compiled": (True, pinned),
        "ours, memory not pinned": (False, False),
    }


def batch_and_network(script, common, name):
    """The first batch of a way to train, its network, and its dataset."""
    setting = next(s for s in script.make_settings("cpu", compiled=False) if s.name == name)
    config = script.read_config({**common, **setting.overrides})
    batch = next(iter(config.get_parsed_content("train#dataloader")))
    return batch, config.get_parsed_content("network"), config.get_parsed_content("train#dataset"), config


def test_ours_is_what_train_yaml_says(script, common):
    batch, network, dataset, config = batch_and_network(script, common, "ours")
    assert type(dataset).__name__ == "CacheDataset"
    assert batch["image"].shape == (4, 3, 16, 32)
    assert any(not weight.is_contiguous() for weight in network.parameters() if weight.ndim == 4)
    assert config.get_parsed_content("train#inferer").enabled == computes_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "kind"), [("plain MONAI, AR2-UNet", "AR2UNet"), ("plain MONAI, AttentionUnet", "AttentionUnet")]
)
def test_the_plain_way_is_float32_on_uncached_whole_slices_in_plain_order(script, common, name, kind):
    batch, network, dataset, config = batch_and_network(script, common, name)
    assert type(dataset).__name__ == "Dataset"
    assert batch["image"].shape == (4, 3, 256, 256)
    assert batch["label"].shape == (4, 1, 256, 256)
    assert batch["image"].dtype == torch.float32
    assert all(weight.is_contiguous() for weight in network.parameters())
    assert not config.get_parsed_content("train#inferer").enabled
    assert type(network).__name__ == kind
    names = [type(transform).__name__ for transform in dataset.transform.transforms]
    assert names[:3] == ["LoadImaged", "Orientationd", "NormalizeIntensityd"]
    ours = [type(t).__name__ for t in batch_and_network(script, common, "ours")[2].transform.transforms]
    assert names[3:] == ours[ours.index("RandSlicesd") :]  # the same slices, the same augmentation
    first = ours.index("RandSlicesd")
    assert ours[first - 2 : first] == ["LabelToSliceFramed", "SliceMajord"]


# --- a training --------------------------------------------------------------------------------------


def test_a_training_is_measured_after_its_first_iterations(script, common, capsys):
    setting = script.Setting("ours", "bf16")
    training = script.train(setting, common, iterations=2, warmup=1, device="cpu")
    assert training.shape == (4, 3, 16, 32)
    assert len(training.steps) == len(training.waits) == 2
    assert min(training.steps) > 0
    network = script.read_config(common).get_parsed_content("network_def")
    from floor import count_flops

    assert training.flops == 3 * count_flops(network, (4, 3, 16, 32))
    assert "ours: " in capsys.readouterr().err


def test_a_training_that_ends_early_is_refused(script, common):
    with pytest.raises(script.AR2UNetError, match="ours must train 7 iterations, got 1"):
        script.train(script.Setting("ours", "bf16"), {**common, "epochs": 1}, iterations=5, warmup=2, device="cpu")
