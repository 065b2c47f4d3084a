"""The image, held to the repository: no engine is needed to see that each of its instructions can work."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.web.site_routes import router
from pipeline.web.worker_process import TOKEN_VARIABLE

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("container_steps", ROOT / "tests" / "container_steps.py")
steps = importlib.util.module_from_spec(_spec)
sys.modules["container_steps"] = steps  # where its dataclass looks for itself
_spec.loader.exec_module(steps)

BUILD, IMAGE = steps.read_stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
COMMAND = [*json.loads(IMAGE.all("ENTRYPOINT")[0]), *json.loads(IMAGE.all("CMD")[0])]
SERVICE = COMPOSE["services"]["ar2unet"]


def test_both_stages_have_the_same_slim_python_and_it_is_one_that_the_project_supports():
    assert BUILD.base == IMAGE.base
    version = re.fullmatch(r"python:(3\.\d+)-slim-\w+", BUILD.base)[1]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(version)


def test_every_instruction_is_one_that_these_tests_know():
    known = {"ARG", "ENV", "WORKDIR", "RUN", "COPY", "VOLUME", "EXPOSE", "USER", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {keyword for stage in (BUILD, IMAGE) for keyword, _ in stage.instructions} <= known


def copied() -> list[str]:
    return [source for value in BUILD.all("COPY") for source in value.split()[:-1]]


def test_what_is_copied_is_there_and_is_let_through():
    allowed = {line[1:] for line in IGNORED if line.startswith("!")}
    assert IGNORED[0] == "*"
    assert set(copied()) == allowed
    for source in copied():
        assert (ROOT / source).exists(), source
    for kept_out in (".git", ".venv", "tests", "bench", "docs"):
        assert kept_out not in allowed


def test_what_is_made_anew_on_each_machine_stays_out():
    def is_ignored(path: str) -> bool:
        return any(fnmatch.fnmatch(path, line.replace("**/", "*")) for line in IGNORED[1:] if not line.startswith("!"))

    assert is_ignored("bundles/flair_abnormality_segmentation/models/exported")
    assert is_ignored("pipeline/web/__pycache__")
    assert not is_ignored("bundles/flair_abnormality_segmentation/models/model.pt")
    assert not is_ignored("pipeline/sample/sub-phantom_FLAIR.nii.gz")


def test_every_package_of_the_project_and_the_weights_are_inside():
    for name in ("networks", "transforms", "pipeline", "bundles"):
        assert f"{name} {name}" in BUILD.all("COPY")
    for needed in (PROJECT["readme"], *PROJECT["license-files"]):
        assert needed in copied()
    assert (ROOT / "bundles/flair_abnormality_segmentation/models/model.pt").is_file()


def test_torch_comes_first_and_alone_and_everything_else_from_the_lock():
    runs = BUILD.all("RUN")
    assert "venv /opt/venv" in runs[0]
    assert '--no-deps --index-url "$TORCH_INDEX"' in runs[1]
    assert [line for line in LOCK if line.startswith("torch==")] == ["torch==2.13.0"]
    assert "--constraint requirements.lock --requirement /tmp/core.txt setuptools" in runs[2]
    assert "--no-deps --no-build-isolation -e . && pip check && ar2unet export" in runs[3]
    assert any(value.startswith("TORCH_INDEX=https://") and value.endswith("/cpu") for value in BUILD.all("ARG"))
    order = [keyword for keyword, value in BUILD.instructions if keyword == "RUN" or "requirements.lock" in value]
    assert order[:3] == ["RUN", "COPY", "RUN"]


def test_the_lock_pins_all_that_the_image_installs():
    pinned = {canonicalize_name(line.partition("==")[0]) for line in LOCK if line and not line.startswith("#")}
    todo, seen = [Requirement(line) for line in PROJECT["dependencies"]], set()
    while todo:
        asked = todo.pop()
        name = canonicalize_name(asked.name)
        if name in seen:
            continue
        seen.add(name)
        assert name in pinned, f"{name} would be installed in any version"
        for line in requires(name) or []:
            child = Requirement(line)
            foreign = name == "torch" and child.name.startswith(("nvidia-", "cuda-", "triton"))
            extras = [{"extra": extra} for extra in ("", *asked.extras)]
            if not foreign and (child.marker is None or any(child.marker.evaluate(extra) for extra in extras)):
                todo.append(child)
    assert not {"pytest", "mypy", "ruff"} & seen


def test_the_image_is_what_was_built_and_runs_without_root():
    assert IMAGE.all("COPY") == ["--from=build /opt/venv /opt/venv", "--from=build /app /app"]
    assert BUILD.name == "build"
    (user,) = IMAGE.all("USER")
    assert int(user) > 0
    assert f"--uid {user} " in IMAGE.all("RUN")[0]
    assert [keyword for keyword, _ in IMAGE.instructions].index("USER") > 0
    assert IMAGE.all("VOLUME") == ["/data"]
    assert "/opt/venv/bin:$PATH" in IMAGE.all("ENV")[0]


def test_the_command_is_one_that_the_project_has_with_options_that_it_knows():
    name, command, *options = COMMAND
    assert name in PROJECT["scripts"]
    text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).output
    for option in options[::2]:
        assert f"{option} " in text, option
    values = dict(zip(options[::2], options[1::2], strict=True))
    assert values["--folder"] == IMAGE.all("VOLUME")[0]
    assert [values["--port"]] == IMAGE.all("EXPOSE")
    assert TOKEN_VARIABLE in text


def test_the_image_does_not_start_for_everybody_without_a_token(tmp_path):
    words = [str(tmp_path) if word == "/data" else word for word in COMMAND[1:]]
    code = f"import sys; sys.argv[1:] = {words!r}; from pipeline.cli import main; main()"
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert result.returncode == 2
    assert "token is needed" in result.stderr


def test_the_health_check_asks_an_address_that_there_is():
    (check,) = IMAGE.all("HEALTHCHECK")
    program = json.loads(check.partition("CMD ")[2])
    assert program[0] == "python"  # slim images have no curl
    compile(program[2], "HEALTHCHECK", "exec")
    port, path = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", program[2]).groups()
    assert [port] == IMAGE.all("EXPOSE")
    assert path in {route.path for route in router.routes}


def test_compose_starts_this_image_for_this_machine_only_with_a_token_and_without_rights():
    assert SERVICE["build"] == "."
    assert SERVICE["ports"] == [f"127.0.0.1:{IMAGE.all('EXPOSE')[0]}:{IMAGE.all('EXPOSE')[0]}"]
    assert SERVICE["environment"][TOKEN_VARIABLE].startswith(f"${{{TOKEN_VARIABLE}:?")
    (volume,) = SERVICE["volumes"]
    assert volume.split(":") == ["jobs", IMAGE.all("VOLUME")[0]]
    assert "jobs" in COMPOSE["volumes"]
    assert SERVICE["read_only"]
    assert SERVICE["cap_drop"] == ["ALL"]
    assert "/tmp" in SERVICE["tmpfs"]


@pytest.mark.skipif("AR2UNET_CONTAINER_STEPS" not in os.environ, reason="takes minutes: AR2UNET_CONTAINER_STEPS=1")
def test_the_steps_of_the_image_run_in_a_clean_folder(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "tests" / "container_steps.py", tmp_path], timeout=3600)
    assert done.returncode == 0
