"""What can be seen from the configs without running them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "bundles" / "flair_abnormality_segmentation" / "configs"
CONFIGS = sorted(path.name for path in FOLDER.glob("*.yaml"))
NUMBERS_ALONE = ("second_cycle.yaml",)  # without a component of its own
# YAML 1.1 reads a number with an exponent but without a dot as a string.
NUMBER_READ_AS_STRING = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def values(content: Any) -> Iterator[Any]:
    """Yield every dictionary, list and value of a config."""
    yield content
    for part in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from values(part)


def numbers_read_as_strings(content: Any) -> list[str]:
    return [value for value in values(content) if isinstance(value, str) and NUMBER_READ_AS_STRING.fullmatch(value)]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_target_exists_and_takes_the_arguments_it_is_given(configs, name):
    from monai.bundle.config_item import ConfigComponent

    targets = [part for part in values(configs[name]) if isinstance(part, dict) and "_target_" in part]
    assert bool(targets) == (name not in NUMBERS_ALONE)
    for component in targets:
        found = locate(ConfigComponent(config=component).resolve_module_name())
        assert found is not None, component["_target_"]
        arguments = {key for key in component if not key.startswith("_")}
        parameters = inspect.signature(found).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            assert arguments <= set(parameters), component["_target_"]


@pytest.mark.parametrize("name", CONFIGS)
def test_no_number_is_read_as_a_string(configs, name):
    assert numbers_read_as_strings(configs[name]) == []


def test_a_number_without_a_dot_would_be_noticed():
    assert numbers_read_as_strings(yaml.safe_load("{lr: 1e-4, list: [1.0e-4, 2E5, '@lr', $1e-3]}")) == ["1e-4", "2E5"]


@pytest.mark.parametrize("name", CONFIGS)
def test_no_logic_hides_in_lambdas(configs, name):
    assert [value for value in values(configs[name]) if isinstance(value, str) and "lambda" in value] == []


def test_a_volume_is_prepared_for_inference_as_it_was_for_training(configs):
    assert configs["inference.yaml"]["volume_transforms"] == configs["train.yaml"]["volume_transforms"]


def test_inference_uses_the_network_that_training_makes(configs):
    train = configs["train.yaml"]
    resolved = {
        name: train[value.removeprefix("@")] if str(value).startswith("@") else value
        for name, value in train["network_def"].items()
    }
    assert configs["inference.yaml"]["network_def"] == resolved


def test_training_and_validation_share_the_transforms_up_to_the_network(configs):
    train = configs["train.yaml"]
    shared = "$@load_transforms + @volume_transforms"
    assert train["train"]["preprocessing"]["transforms"].startswith(shared)
    assert train["validate"]["preprocessing"]["transforms"] == shared


@pytest.mark.parametrize(
    ("name", "own_key"),
    [("train.yaml", "training"), ("inference.yaml", "inference"), ("evaluate.yaml", "evaluating")],
)
def test_a_config_can_be_run_by_its_own_key_and_by_run_alone(configs, name, own_key):
    assert configs[name]["run"] == configs[name][own_key]
