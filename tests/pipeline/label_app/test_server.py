"""What the server is told, and what is refused before it starts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import AR2UNetError
from pipeline.label_app.server import LabelSettings, _check_port, prepare_server, server_command, server_environment
from pipeline.predictor import SEGMENTATION_BUNDLE

STAGING_BUNDLE = SEGMENTATION_BUNDLE.with_name("dementia_stage_classification")

Ar2unet = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def settings(tmp_path: Path) -> LabelSettings:
    models = tmp_path / "app" / "model" / "some_segmentation" / "models"
    models.mkdir(parents=True)
    for name in ("model.pt", "finetuned_0003.pt"):
        (models / name).touch()
    (tmp_path / "studies").mkdir()
    return LabelSettings(tmp_path / "studies", tmp_path / "app", tmp_path / "env", (tmp_path / "some_segmentation",))


def test_the_command_names_app_studies_models_and_weights(settings: LabelSettings) -> None:
    command = server_command(settings, ["some_segmentation"])
    assert command[0] == str(settings.environment / "bin" / "python")
    options = dict(zip(command[4:10:2], command[5:11:2], strict=True))
    assert options == {"--app": str(settings.folder), "--studies": str(settings.studies), "--host": "127.0.0.1"}
    conf = {command[n + 1]: command[n + 2] for n, word in enumerate(command) if word == "--conf"}
    assert conf == {
        "models": "some_segmentation",
        "weights_some_segmentation": "finetuned_0003.pt",
        "known_some_segmentation": "3",
    }


def test_nothing_of_the_callers_python_reaches_the_server(settings: LabelSettings) -> None:
    caller = {
        "PATH": "/bin",
        "PYTHONPATH": "/elsewhere",
        "MONAI_LABEL_CORS_ORIGINS": '["http://x"]',
        "VIRTUAL_ENV": "/v",
    }
    environment = server_environment(settings, caller)
    assert environment["PATH"] == "/bin"
    assert environment["PYTHONPATH"] == str(settings.folder)
    assert not environment.keys() & {"MONAI_LABEL_CORS_ORIGINS", "VIRTUAL_ENV"}
    assert json.loads(environment["MONAI_LABEL_DATASTORE_FILE_EXT"]) == ["*.nii.gz", "*.nii"]


def test_a_store_is_named_by_its_address_and_its_password_is_not_on_the_command_line(settings: LabelSettings) -> None:
    store = replace(settings, studies="http://127.0.0.1:8042/dicom-web")
    command = server_command(store, ["some_segmentation"])
    assert command[command.index("--studies") + 1] == "http://127.0.0.1:8042/dicom-web"
    caller = {"MONAI_LABEL_DATASTORE_USERNAME": "somebody", "MONAI_LABEL_DATASTORE_PASSWORD": "secret"}
    environment = server_environment(store, caller)
    assert environment["MONAI_LABEL_DICOMWEB_USERNAME"] == "somebody"
    assert environment["MONAI_LABEL_DICOMWEB_PASSWORD"] == "secret"
    assert environment["AR2UNET_PYTHON"] == sys.executable
    assert not any("secret" in part for part in command)
    assert not any("PASSWORD" in name for name in server_environment(settings, caller))


def test_a_bundle_that_classifies_is_refused_before_anything_starts(settings: LabelSettings) -> None:
    staging = replace(settings, bundles=(STAGING_BUNDLE,))
    with pytest.raises(AR2UNetError, match=r"^dementia_stage_classification must be a bundle that segments.*classes$"):
        prepare_server(staging)
    assert not (settings.folder / ".lock").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org", ""])
def test_an_address_that_others_can_reach_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(AR2UNetError, match=r"must be an address of this machine only.*ssh -L 8000"):
        LabelSettings(tmp_path, tmp_path, tmp_path, (), host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "::1", "localhost"])
def test_loopback_has_several_names(host: str, tmp_path: Path) -> None:
    assert LabelSettings(tmp_path, tmp_path, tmp_path, (), host=host).host == host


def test_two_bundles_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AR2UNetError, match="different names, got a, b, a"):
        LabelSettings(tmp_path, tmp_path, tmp_path, (tmp_path / "a", tmp_path / "b", tmp_path / "x" / "a"))


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AR2UNetError, match=rf"port {port} of 127\.0\.0\.1 cannot be used.*--port"):
            _check_port("127.0.0.1", port)
    _check_port("127.0.0.1", port)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "STUDIES must name the folder"),
        (("nowhere",), "nowhere must be a folder"),
        ((".",), "ar2unet label --install --environment"),
        ((".", "--host", "0.0.0.0"), "this machine only"),
        ((".", "--port", "99999"), "65535"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_exit_code_2(
    ar2unet: Ar2unet, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    finished = ar2unet("label", *arguments, "--environment", tmp_path / "none", "--folder", tmp_path / "app")
    assert finished.returncode == 2
    assert message in " ".join(finished.stderr.split())
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "app").exists()
