"""A real server, and a real browser in front of it: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest

from pipeline.web.viewer import is_installed, read_lock

SAMPLE = Path(__file__).parents[4] / "pipeline" / "sample" / "sub-phantom_FLAIR.nii.gz"
# WebGL without a graphics card.
FLAGS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
]
SECONDS = 45  # for whatever one waits for; a browser without a graphics card takes its time
VIEW = {"width": 1000, "height": 640}


@dataclass
class Site:
    """A server that runs."""

    url: str
    process: subprocess.Popen[str] = field(repr=False)

    def ask(self, path: str, body: bytes | None = None, kind: str = "application/json") -> Any:
        headers = {"Content-Type": kind} if body is not None else {}
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            content = answer.read()
            return json.loads(content) if "json" in answer.headers["Content-Type"] else content

    def begin(self, **new: Any) -> str:
        return self.ask("/api/jobs", json.dumps(new).encode())["id"]

    def wait(self, job: str) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            found = self.ask(f"/api/jobs/{job}")
            if found["state"] in ("finished", "failed", "cancelled"):
                return found
            time.sleep(0.1)
        raise AssertionError(f"job still {found['state']}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = os.environ.get("AR2UNET_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed (Debian: apt install chromium)")
    if not is_installed(read_lock()):
        pytest.skip("the viewer is not installed (python -m pipeline.web.viewer)")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def serve_site(exported_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Site]]:
    running: list[Site] = []

    def start(token: str | None = None) -> Site:
        command = [sys.executable, "-c", "from pipeline.cli import main; main()", "serve", "--port", "0"]
        folder = tmp_path_factory.mktemp("server")
        environment = {**os.environ, **({} if token is None else {"AR2UNET_TOKEN": token})}
        process = subprocess.Popen(
            [*command, "--folder", str(folder), "--bundle", str(exported_bundle)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        words = process.stdout.readline().split()
        assert words, "the server did not start"
        running.append(Site(words[1].rstrip("/"), process))
        return running[-1]

    yield start
    for site in running:
        site.process.terminate()
        site.process.wait(10)
        site.process.stdout.close()


@pytest.fixture(scope="session")
def site(browser: Any, serve_site: Callable[..., Site]) -> Site:
    return serve_site()


@pytest.fixture(scope="session")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen slices of the sample, with axes to posterior, superior, right; no two sizes are equal.

    Its qform has the higher code and says something else than its sform, which is the one that counts.
    """
    image = nib.load(SAMPLE)
    thin = image.slicer[20:-20, 16:-16, 9:23]
    turned = nib.orientations.ornt_transform(nib.io_orientation(thin.affine), nib.orientations.axcodes2ornt("PSR"))
    path = tmp_path_factory.mktemp("scan") / "DOE_JANE_flair.nii.gz"
    scan = thin.as_reoriented(turned)
    elsewhere = scan.affine.copy()
    elsewhere[:3, 3] += (31, -17, 23)
    scan.set_sform(scan.affine, code=1)
    scan.set_qform(elsewhere, code=2)
    nib.save(scan, path)
    return path


@pytest.fixture(scope="session")
def finished(site: Site, scan_file: Path) -> dict[str, Any]:
    """A finished job; tests that change it make their own."""
    return make_job(site, scan_file)


def make_job(site: Site, scan: Path) -> dict[str, Any]:
    job = site.begin(kind="segmentation")
    site.ask(f"/api/jobs/{job}/uploads?role=flair", scan.read_bytes(), "application/octet-stream")
    site.ask(f"/api/jobs/{job}/start", b"")
    found = site.wait(job)
    assert found["state"] == "finished", found
    return found


@pytest.fixture
def own_job(site: Site, scan_file: Path) -> dict[str, Any]:
    return make_job(site, scan_file)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a browser of one's own; whatever its console complains about fails the test."""
    contexts, complaints = [], []

    def heard(message: Any) -> None:
        # Chromium itself writes a line for each answer that is no success; those are the tests' subject.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            complaints.append(message.text)

    def start(url: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": VIEW, "color_scheme": "dark", **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS * 1000)
        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        return page

    yield start
    for context in contexts:
        context.close()
    assert not complaints


def wait_for_viewer(page: Any) -> None:
    page.wait_for_selector(".viewer[aria-busy=false]")


@pytest.fixture
def open_result(site: Site, open_page: Callable[..., Any]) -> Callable[..., Any]:
    """Open a finished job, one plane of it: without a graphics card, 3D costs a second a picture."""

    def start(job: dict[str, Any], **options: Any) -> Any:
        page = open_page(f"{site.url}/jobs/{job['id']}", **options)
        wait_for_viewer(page)
        page.click("[data-name=axial]")
        return page

    return start
