"""The real server of MONAI Label in its real environment, and small scans for it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import AR2UNetError
from pipeline.label_app.environment import check_environment, default_environment

ENVIRONMENT = Path(os.environ.get("AR2UNET_LABEL_ENV") or default_environment())
SECONDS = 240  # for whatever one waits for, on a busy machine
SHAPE = (46, 50, 5)  # all sizes differ, so a swapped axis cannot pass unseen


@dataclass
class LabelServer:
    """A server that runs, and how it is asked."""

    url: str
    process: subprocess.Popen[str] = field(repr=False)
    log: Path

    def ask(self, path: str, method: str = "GET", json_body: Any = None, **files: Any) -> tuple[int, bytes]:
        """Return status and body; ``files`` are fields of a form, paths or text."""
        body, headers = None, {}
        if json_body is not None:
            body, headers = json.dumps(json_body).encode(), {"Content-Type": "application/json"}
        elif files:
            body, headers = _form(files)
        request = urllib.request.Request(self.url + path, data=body, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def json(self, path: str, method: str = "GET", json_body: Any = None, **files: Any) -> Any:
        status, body = self.ask(path, method, json_body, **files)
        assert status == 200, body
        return json.loads(body)

    def wait_for(self, path: str, done: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            status, body = self.ask(path)
            if status == 200 and done(json.loads(body)):
                return json.loads(body)
            time.sleep(0.2)
        raise AssertionError(f"{path}: still {body!r}")

    def stop(self, how: str = "terminate") -> None:
        getattr(self.process, how)()
        self.process.wait(SECONDS)


def _form(fields: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    boundary, parts = uuid.uuid4().hex, []
    for name, value in fields.items():
        content = value.read_bytes() if isinstance(value, Path) else str(value).encode()
        file = f'; filename="{value.name}"' if isinstance(value, Path) else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), {
        "Content-Type": f"multipart/form-data; boundary={boundary}"
    }


@pytest.fixture(scope="module")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LabelServer]]:
    """Start servers; those that still run at the end are stopped."""
    try:
        check_environment(ENVIRONMENT)
    except AR2UNetError as error:
        pytest.skip(str(error))
    started: list[LabelServer] = []

    def start(studies: Path, folder: Path, *options: object) -> LabelServer:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = tmp_path_factory.mktemp("log") / "server.txt"
        command = [sys.executable, "-c", "from pipeline.cli import main; main()", "label", studies, "--folder", folder]
        command += ["--environment", ENVIRONMENT, "--port", port, *options]
        # Two threads that wait for one another are slower than one where others use the machine's cores.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with log.open("w") as output:
            process = subprocess.Popen(
                list(map(str, command)), stdout=output, stderr=output, text=True, env=environment
            )
        server = LabelServer(f"http://127.0.0.1:{port}", process, log)
        started.append(server)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                server.json("/info/")
                return server
            except OSError:
                time.sleep(0.2)
        raise AssertionError(log.read_text()[-3000:])

    yield start
    for server in started:
        if server.process.poll() is None:
            server.stop("kill")


def _make_head(seed: int) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Make a head in air with a bright lesion somewhere, and where that is."""
    random = np.random.default_rng(seed)
    axes = np.ogrid[-1 : 1 : SHAPE[0] * 1j, -1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    radius = axes[0] ** 2 / 0.8**2 + axes[1] ** 2 / 0.9**2 + axes[2] ** 2 / 1.2**2
    volume = np.where(radius < 1, 300 + random.normal(0, 20, SHAPE), random.uniform(0, 6, SHAPE))
    lesion = np.zeros(SHAPE, np.uint8)
    i, j = random.integers(16, 24, 2)
    lesion[i : i + 8, j : j + 9, 1:4] = 1
    volume[lesion > 0] = 600 + 40 * seed
    return volume.astype(np.int16), lesion


def _write(volume: NDArray[np.generic], path: Path) -> Path:
    """Write a volume with thick slices, its axes to L, P, S."""
    image = nib.Nifti1Image(volume, np.array([[-3.9, 0, 0, 80], [0, -4.1, 0, 90], [0, 0, 22.5, -40], [0, 0, 0, 1.0]]))
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=2)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


@pytest.fixture(scope="session")
def make_head() -> Callable[[int], tuple[NDArray[np.int16], NDArray[np.uint8]]]:
    """Make a small head with a lesion; each number gives another."""
    return _make_head


@pytest.fixture(scope="session")
def write() -> Callable[[NDArray[np.generic], Path], Path]:
    """Write a small head's volume as NIfTI."""
    return _write
