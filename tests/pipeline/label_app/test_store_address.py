"""Whether STUDIES is a DICOMweb store, and what is refused before a server starts."""

from __future__ import annotations

import base64
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline.errors import AR2UNetError
from pipeline.label_app.store_address import (
    check_address,
    check_store,
    is_address,
    make_private,
    user_and_password,
)

LOGIN = ("ar2unet", "secret:with a colon")


class Answer(BaseHTTPRequestHandler):
    """Answers by path; only who logs in gets anything."""

    def do_GET(self) -> None:
        token = base64.b64encode(":".join(LOGIN).encode()).decode()
        status, body = {
            "/dicom-web/studies?limit=1": (200, b'[{"0020000D": {"vr": "UI", "Value": ["1.2"]}}]'),
            "/empty/studies?limit=1": (204, b""),
            "/page/studies?limit=1": (200, b"<html>welcome</html>"),
            "/object/studies?limit=1": (200, b"{}"),
        }.get(self.path, (404, b"[]"))
        if self.headers["Authorization"] != f"Basic {token}":
            status, body = 401, b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def host() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_address_is_told_from_a_folder() -> None:
    assert all(is_address(one) for one in ("http://127.0.0.1:8042/dicom-web", "HTTPS://pacs.example/x"))
    assert not any(is_address(one) for one in ("studies", "/data/http", "http:", "ftp://host/x"))
    assert check_address("http://127.0.0.1:8042/dicom-web/") == "http://127.0.0.1:8042/dicom-web"


@pytest.mark.parametrize("address", ["http://", "http://:8042/x", "http://host:99999/x", "http://host/x?limit=1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(AR2UNetError, match=r"STUDIES must be an address such as http://127\.0\.0\.1:8042/dicom-web"):
        check_address(address)


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(AR2UNetError, match="MONAI_LABEL_DATASTORE_PASSWORD instead") as caught:
        check_address("http://somebody:secret@127.0.0.1:8042/dicom-web")
    assert "secret" not in str(caught.value)


def test_user_name_and_password_come_from_the_environment_and_together() -> None:
    user, password = "MONAI_LABEL_DATASTORE_USERNAME", "MONAI_LABEL_DATASTORE_PASSWORD"
    assert user_and_password({user: "a", password: "b"}) == ("a", "b")
    assert user_and_password({user: ""}) is None
    for one in (user, password):
        with pytest.raises(AR2UNetError, match=f"must be set both, got {one} alone"):
            user_and_password({one: "x"})


def test_a_store_that_answers_is_taken(host: str) -> None:
    check_store(f"{host}/dicom-web", LOGIN)
    check_store(f"{host}/empty", LOGIN)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("wrong", "must be the address of a DICOMweb store.*got HTTP status 404"),
        ("page", "must be the address of a DICOMweb store.*got no DICOM JSON"),
        ("object", "must be the address of a DICOMweb store.*got no list"),
    ],
)
def test_what_is_no_dicomweb_store_is_refused(host: str, path: str, reason: str) -> None:
    with pytest.raises(AR2UNetError, match=reason):
        check_store(f"{host}/{path}", LOGIN)


def test_a_wrong_password_is_said_but_not_shown(host: str) -> None:
    with pytest.raises(AR2UNetError, match="wants another user name and password, got none"):
        check_store(f"{host}/dicom-web", None)
    with pytest.raises(AR2UNetError, match="got MONAI_LABEL_DATASTORE_USERNAME 'ar2unet' and its password") as caught:
        check_store(f"{host}/dicom-web", ("ar2unet", "guess"))
    assert "guess" not in str(caught.value)


def test_a_store_that_does_not_answer_is_one_line_and_exit_code_2(
    ar2unet: Callable[..., subprocess.CompletedProcess[str]], free_port: Callable[[], int], tmp_path: Path
) -> None:
    address = f"http://127.0.0.1:{free_port()}/dicom-web"
    finished = ar2unet("label", address, "--environment", tmp_path / "none", "--folder", tmp_path / "app")
    assert finished.returncode == 2
    assert finished.stderr == f"ar2unet: {address}: cannot be reached: Connection refused\n"
    assert not (tmp_path / "app").exists()


def test_nobody_else_looks_into_the_folder_of_the_app(tmp_path: Path) -> None:
    make_private(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o700
