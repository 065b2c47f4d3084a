"""The comparison of networks: its configs, its arithmetic, its table, and one tiny run of all of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import ConfigParser

# A training of seconds.
SMALL = ("channels=[4,8,16]", "recurrences=1", "batch_size=1", "slice_size=[32,48]", "warmup_iterations=1")
SMALL = (*SMALL, "num_workers=0")


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("compare_networks")


@pytest.fixture(scope="module")
def definitions(script):
    return script.network_definitions(yaml.safe_load(script.TRAIN.read_text())["network_def"])


@pytest.fixture
def comparison(script, prepared_dataset, tmp_path):
    return script.Comparison(prepared_dataset, tmp_path / "out", fold=0, budget=None, epochs=2, overrides={})


def write_definition(path: Path, definition) -> Path:
    path.write_text(yaml.safe_dump({"network_def": definition}))
    return path


# --- the networks ------------------------------------------------------------------------------------


def test_every_network_that_can_be_asked_for_has_a_definition(script, definitions):
    assert tuple(definitions) == script.NETWORKS
    assert definitions["ar2unet"] == yaml.safe_load(script.TRAIN.read_text())["network_def"]


@pytest.mark.parametrize(
    ("name", "kind", "top"),
    [
        ("unet", "UNet", 16),
        ("attention_unet", "AttentionUnet", 16),
        ("attention_residual_unet", "AttentionResidualUNet", 32),
        ("ar2unet_reference", "AR2UNet", 16),
        ("ar2unet_published", "AR2UNet", 16),
        ("ar2unet_without_backbone", "AR2UNet", 32),
        ("ar2unet", "AR2UNet", 32),
    ],
)
@pytest.mark.parametrize("context", [0, 1])
def test_a_network_maps_slices_and_their_neighbours_to_two_classes(
    script, definitions, tmp_path, name, kind, top, context
):
    layer = write_definition(tmp_path / "network.yaml", definitions[name])
    parser = ConfigParser()
    parser.read_config([str(script.TRAIN), str(layer)])
    if context > 0 and name == "ar2unet":
        pytest.skip("a backbone that has learned from photographs sees one slice")
    parser["slice_context"] = context
    network = parser.get_parsed_content("network_def").eval()
    assert type(network).__name__ == kind
    with torch.no_grad():
        assert network(torch.randn(3, 3 * (2 * context + 1), 32, 48)).shape == (3, 2, 32, 48)
    convolutions = {each: module for each, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)}
    widths = {module.out_channels for each, module in convolutions.items() if not each.startswith("backbone.")}
    assert {top, 256} <= widths
    assert max(widths) == 256


@pytest.mark.parametrize(("patch_size", "channels"), [(1, [8, 16]), (2, [4, 8, 16])])
def test_without_patches_a_level_of_half_the_channels_takes_their_place(
    script, definitions, tmp_path, patch_size, channels
):
    parser = ConfigParser()
    parser.read_config(
        [str(script.TRAIN), str(write_definition(tmp_path / "network.yaml", definitions["attention_unet"]))]
    )
    parser.update({"channels": [8, 16], "patch_size": patch_size})
    assert parser.get_parsed_content("network_def#channels") == channels
    assert parser.get_parsed_content("network_def#strides") == [2] * (len(channels) - 1)


def test_the_reference_differs_from_the_published_network_in_its_wiring_alone(definitions):
    published, reference = definitions["ar2unet_published"], definitions["ar2unet_reference"]
    assert published["recurrences"] == 2
    assert {key: value for key, value in reference.items() if published.get(key) != value} == {
        "upsample": "nearest",
        "gate": "decoder",
    }


def test_parameters_and_flops_are_those_of_convolutions_counted_by_hand(script, tmp_path):
    layer = write_definition(
        tmp_path / "network.yaml",
        {"_target_": "torch.nn.Conv2d", "in_channels": 5, "out_channels": 7, "kernel_size": 3, "padding": 1},
    )
    parameters, gflops = script.describe_network([script.TRAIN, layer], {})
    assert parameters == 7 * 5 * 9 + 7
    assert gflops == pytest.approx(2 * 256 * 256 * 7 * 5 * 9 / 1e9)


def test_what_is_set_for_the_trainings_also_changes_the_described_network(script, definitions, tmp_path):
    layer = write_definition(tmp_path / "network.yaml", definitions["ar2unet"])
    large, small = (script.describe_network([script.TRAIN, layer], {"recurrences": value}) for value in ("2", "0"))
    assert small[0] == large[0]  # a recurrence uses the same weights again
    assert small[1] < large[1] / 2


# --- the budget --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "seconds", "epochs"), [(60, 30.0, 116), (1, 58.0, 1), (0.5, 0.25, 116)])
def test_as_many_epochs_are_trained_as_fit_with_three_per_cent_to_spare(script, budget, seconds, epochs):
    assert script.epochs_within(budget, seconds) == epochs
    assert epochs * seconds <= 0.97 * budget * 60 < (epochs + 1) * seconds


@pytest.mark.parametrize("budget", [0.9, 0, -3])
def test_a_budget_that_holds_no_epoch_is_refused(script, budget):
    with pytest.raises(script.AR2UNetError, match=r"--budget must hold an epoch of 54\.0 s, got"):
        script.epochs_within(budget, 54.0)


def test_an_epoch_is_measured_without_the_first_and_as_many_are_trained_as_the_budget_then_holds(
    script, comparison, monkeypatch, tmp_path, capsys
):
    trainings = []

    def train(comparison, configs, folder, epochs):
        trainings.append((folder, epochs))
        return [9.0, 2.0, 4.0] if len(trainings) == 1 else [3.0] * epochs

    monkeypatch.setattr(script, "train", train)
    within = replace(comparison, budget=1, epochs=None)
    folder = tmp_path / "unet"
    stale = folder / "evaluation" / "summary.json"
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert script.train_within(within, [], folder) == [3.0] * 19
    (probe, probed), trained = trainings
    assert probed == 3
    assert not probe.exists()
    assert trained == (folder, 19)  # 0.97 of 60 s
    assert capsys.readouterr().err == "unet: 3.00 s an epoch, so 19 epochs in 1 minutes\n"
    assert not stale.exists()


def test_epoch_times_are_read_from_the_trainers_lines_alone(script):
    log = (
        "2026-11-21 04:57:51,604 INFO ignite.engine.engine.SupervisedTrainer: Epoch[1] Complete. "
        "Time taken: 00:00:28.926\n"
        "2026-11-21 05:06:47,551 INFO ignite.engine.engine.SupervisedEvaluator: Epoch[1] Complete. "
        "Time taken: 00:00:23.923\n"
        "2026-11-21 05:06:47,596 INFO ignite.engine.engine.SupervisedTrainer: Epoch[2] Complete. "
        "Time taken: 01:02:03.500\n"
        "2026-11-21 05:06:47,613 INFO ignite.engine.engine.SupervisedTrainer: Engine run finished. "
        "Time taken: 01:21:59.384\n"
    )
    assert script.read_epoch_seconds(log) == [28.926, 3723.5]


# --- options and earlier results ---------------------------------------------------------------------


@pytest.mark.parametrize("pair", ["epochs=3", "network_def#gate=skip", "seed", "=3"])
def test_what_the_comparison_itself_sets_cannot_be_set(script, pair):
    with pytest.raises(script.AR2UNetError, match="--set must be key=value"):
        script.parse_overrides(["seed=1", pair])


def test_an_override_keeps_everything_behind_its_first_equals_sign(script):
    assert script.parse_overrides(["seed=1", "initial_weights=a=b.pt"]) == {"seed": "1", "initial_weights": "a=b.pt"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--networks", "unet,vnet"], "--networks must be among unet, .*, got vnet"),
        (["--fold", "-1"], "--fold must be at least 0"),
        (["--dataset_dir", "nowhere"], r"nowhere/datalist\.json must be a datalist"),
    ],
)
def test_bad_options_end_in_one_line_and_exit_code_2(script, prepared_dataset, tmp_path, capsys, change, reason):
    options = ["--dataset_dir", str(prepared_dataset), "--output_dir", str(tmp_path), "--fold", "0", "--epochs", "1"]
    assert script.main([*options, *change]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert re.search(reason, printed.err)
    assert printed.err.count("\n") == 1


def test_a_result_of_other_settings_is_refused_and_named(script, comparison, definitions, tmp_path):
    settings = script.settings_of(comparison, definitions["unet"])
    path = tmp_path / "trained.json"
    path.write_text(json.dumps({"settings": settings, "epoch_seconds": [1.5, 2.5]}))
    assert script.read_trained(path, settings) == [1.5, 2.5]
    with pytest.raises(script.AR2UNetError, match=r"trained\.json .* got epochs 2 in place of 3: choose"):
        script.read_trained(path, {**settings, "epochs": 3})


def test_a_run_that_fails_is_told_with_its_last_line_and_its_log(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script.sys, "executable", "false")
    with pytest.raises(script.BundleError, match=r"training must end .* got 1: nothing printed \(more in .*run\.log\)"):
        script.run_bundle("training", [script.TRAIN], {}, tmp_path / "run.log")


# --- the table ---------------------------------------------------------------------------------------


def hand_made(script, name, dice, interval):
    means = {"dice": dice, "iou": 0.7111, "precision": 0.8222, "recall": 0.7333, "pixel_accuracy": 0.99444}
    intervals = {"mean": {"dice": interval}, "median": {"dice": interval}}
    summary = {"patients": 20, "mean": means, "median": {"dice": dice + 0.05}, "intervals": intervals}
    return script.Result(name, {}, 1234567, 3.4567, [10.0, 30.0, 20.0], summary)


def test_the_table_has_a_row_a_network_with_all_its_numbers(script):
    results = [hand_made(script, "unet", 0.8, [0.75, 0.85]), hand_made(script, "ar2unet", 0.9, None)]
    lines = script.markdown_table(results).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert len({len(row) for row in cells}) == 1
    first = dict(zip(cells[0], cells[2], strict=True))
    assert first == {
        "network": "unet",
        "parameters": "1,234,567",
        "GFLOPs a slice": "3.46",
        "epochs": "3",
        "s an epoch": "20.00",
        "training min": "1.0",
        "mean Dice [95 %]": "0.800 [0.750 to 0.850]",
        "median Dice [95 %]": "0.850 [0.750 to 0.850]",
        "iou": "0.711",
        "precision": "0.822",
        "recall": "0.733",
        "pixel accuracy": "0.9944",
    }
    assert cells[3][6] == "0.900 [too few patients]"
    assert "20 held-out patients" in lines[-1]
    assert "multiply-add counted as 2" in lines[-1]


# --- all of it ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_whole_comparison_trains_scores_and_is_not_repeated(script, prepared_dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out, written = tmp_path / "out", tmp_path / "results.json"
    options = ["--dataset_dir", str(prepared_dataset), "--output_dir", str(out), "--fold", "1", "--json", str(written)]
    options += ["--networks", "unet,ar2unet_reference", "--set", *SMALL]
    assert script.main([*options, "--epochs", "2"]) == 0
    table = capsys.readouterr().out
    assert [line.split()[1] for line in table.splitlines()[2:4]] == ["unet", "ar2unet_reference"]
    for result in json.loads(written.read_text())["networks"]:
        folder = out / result["network"]
        assert len(result["epoch_seconds"]) == 2
        assert len((folder / "training.log").read_text().split("SupervisedTrainer: Epoch[")) == 3
        assert result["summary"] == json.loads((folder / "evaluation" / "summary.json").read_text())
        assert result["summary"]["patients"] == 2
        weights = torch.load(folder / "model_final.pt", weights_only=True)
        assert result["parameters"] == sum(
            tensor.numel()
            for name, tensor in weights.items()
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
            and not re.search(r"\.norms\.[1-9]", name)  # the scale and shift of the steps are one and the same
        )
        assert not (folder / "model_best.pt").exists()  # nothing was validated, so nothing picked

    def refuse(*_arguments, **_keywords):
        pytest.fail("nothing must run again")

    monkeypatch.setattr(script.subprocess, "run", refuse)
    assert script.main([*options, "--epochs", "2"]) == 0
    assert capsys.readouterr().out == table
    assert script.main([*options, "--budget", "0.1"]) == 2
    assert "budget_minutes None in place of 0.1; epochs 2 in place of None" in capsys.readouterr().err
