"""The real server of MONAI Label in its real environment, and small scans for it."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
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
from pipeline.label_app.environment import check_environment, default_environment, interpreter
from pipeline.predictor import SEGMENTATION_BUNDLE, Predictor

ENVIRONMENT = Path(os.environ.get("AR2UNET_LABEL_ENV") or default_environment())
ORTHANC = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")  # not in everybody's path
ORTHANC_DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SECONDS = 240  # for whatever one waits for, on a busy machine
SHAPE = (46, 50, 5)  # all sizes differ, so a swapped axis cannot pass unseen

# The DICOM series of the readers' tests, whose folder is not above this one.
_spec = importlib.util.spec_from_file_location(
    "dicom_fixtures", Path(__file__).parents[1] / "formats" / "dicom" / "conftest.py"
)
_dicom = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_dicom)
write_series, write_multiframe = _dicom.write_series, _dicom.write_multiframe


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

    def stow(self, path: Path) -> None:
        """Store a DICOM file through the proxy that is there for OHIF."""
        body = b"--part\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n--part--\r\n"
        headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=part'}
        request = urllib.request.Request(f"{self.url}/proxy/dicom/wado/studies", body, headers)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            assert answer.status == 200

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
def start_server(tmp_path_factory: pytest.TempPathFactory, label_python: Path) -> Iterator[Callable[..., LabelServer]]:
    """Start servers; those that still run at the end are stopped."""
    started: list[LabelServer] = []

    def start(studies: Path | str, folder: Path, *options: object, **variables: str) -> LabelServer:
        port = _free_port()
        log = tmp_path_factory.mktemp("log") / "server.txt"
        command = [sys.executable, "-c", "from pipeline.cli import main; main()", "label", studies, "--folder", folder]
        command += ["--environment", ENVIRONMENT, "--port", port, *options]
        # Two threads that wait for one another are slower than one where others use the machine's cores.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
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


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Find a TCP port of loopback that nobody listens on."""
    return _free_port


@pytest.fixture(scope="session")
def label_python() -> Path:
    """The Python of MONAI Label's environment."""
    try:
        check_environment(ENVIRONMENT)
    except AR2UNetError as error:
        pytest.skip(str(error))
    return interpreter(ENVIRONMENT)


@pytest.fixture(scope="module")
def predictor() -> Iterator[Predictor]:
    """What `ar2unet segment --engine torch` predicts with."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the server has it
    yield Predictor(SEGMENTATION_BUNDLE, device="cpu", engine="torch")
    torch.set_num_threads(threads)


@dataclass
class Orthanc:
    """A DICOMweb store that runs, and how it is asked."""

    url: str
    login: tuple[str, str]
    configuration: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"{self.url}/dicom-web"

    @property
    def variables(self) -> dict[str, str]:
        return dict(zip(("MONAI_LABEL_DATASTORE_USERNAME", "MONAI_LABEL_DATASTORE_PASSWORD"), self.login, strict=True))

    def ask(self, path: str, body: bytes | None = None, accept: str = "application/json") -> bytes:
        token = base64.b64encode(":".join(self.login).encode()).decode()
        headers = {"Authorization": f"Basic {token}", "Accept": accept}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, body, headers), timeout=SECONDS) as answer:
            return bytes(answer.read())

    def find(self, query: str) -> list[dict[str, Any]]:
        """Return what QIDO-RS finds, a value by tag."""
        found = json.loads(self.ask(f"/dicom-web/{query}", accept="application/dicom+json"))
        return [{tag: (element.get("Value") or [None])[0] for tag, element in one.items()} for one in found]

    def download(self, study: str, series: str) -> bytes:
        """Return the file of the only instance of a series."""
        (found,) = self.find(f"studies/{study}/series/{series}/instances")
        (one,) = json.loads(self.ask("/tools/lookup", found["00080018"].encode()))
        return self.ask(f"/instances/{one['ID']}/file")

    def upload(self, *folders: Path) -> None:
        for file in (file for folder in folders for file in sorted(folder.iterdir())):
            self.ask("/instances", file.read_bytes())

    def start(self) -> None:
        log = self.configuration.with_suffix(".log").open("ab")
        with log:
            self.process = subprocess.Popen([ORTHANC, self.configuration], stdout=log, stderr=log)
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                self.find("studies")
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(self.configuration.with_suffix(".log").read_text()[-3000:])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(SECONDS)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Start Orthanc on loopback with a storage of its own; it ends with the module."""
    if ORTHANC is None or not ORTHANC_DICOMWEB.exists():
        pytest.skip("Orthanc with DICOMweb (Debian: orthanc orthanc-dicomweb) is not installed")
    folder = tmp_path_factory.mktemp("orthanc")
    port, login = _free_port(), ("ar2unet", "a secret: with spaces")
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": dict([login]),
        "Plugins": [str(ORTHANC_DICOMWEB)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    store = Orthanc(f"http://127.0.0.1:{port}", login, folder / "orthanc.json")
    store.start()
    yield store
    store.stop()


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
