"""Many clients at once against one worker of the web page: what becomes of their jobs, and how soon the page answers.

    python bench/web_load.py

Each client uploads the sample at half its resolution, waits for the mask and takes all results home.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import nibabel as nib
import numpy as np

from pipeline.datasets.phantom import load_sample

PAGES = ("/health", "/jobs/" + "0" * 32, "/api/jobs")
PAUSE = 0.05  # seconds between two looks


class Watcher(threading.Thread):
    """Ask for pages again and again, and note how long each took, the status codes, and the processes' memory."""

    def __init__(self, url: str, server: int) -> None:
        super().__init__()
        self.url, self.server = url, server
        self.seconds: dict[str, list[float]] = {page: [] for page in PAGES}
        self.codes: Counter[int] = Counter()
        self.memory_mb = [0.0, 0.0]  # highest of server and worker
        self.done = threading.Event()

    def run(self) -> None:
        """Look until ``done`` is set."""
        with httpx2.Client(base_url=self.url, timeout=60) as client:
            while not self.done.wait(PAUSE):
                for page, seconds in self.seconds.items():
                    started = time.perf_counter()
                    self.codes[client.get(page).status_code] += 1
                    seconds.append(time.perf_counter() - started)
                processes = ([self.server], _children(self.server))
                self.memory_mb = [
                    max([highest, *map(_memory_mb, each)])
                    for highest, each in zip(self.memory_mb, processes, strict=True)
                ]


def _children(process: int) -> list[int]:
    return [int(n) for task in Path(f"/proc/{process}/task").glob("*/children") for n in task.read_text().split()]


def _memory_mb(process: int) -> float:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:  # it has just ended
        return 0.0


def do_job(url: str, scan: bytes) -> tuple[str, Counter[int]]:
    """Take one scan through the server; return how it ended, and the status codes on the way."""
    codes: Counter[int] = Counter()
    with httpx2.Client(base_url=url, timeout=120) as client:

        def ask(method: str, path: str, **more: object) -> httpx2.Response:
            answer = client.request(method, path, **more)  # type: ignore[arg-type]
            codes[answer.status_code] += 1
            return answer

        job = f"/api/jobs/{ask('POST', '/api/jobs', json={}).json()['id']}"
        ask("POST", f"{job}/uploads", content=scan)
        found = ask("POST", f"{job}/start").json()
        while found["state"] in ("queued", "running"):
            found = ask("GET", job, params={"revision": found["revision"]}).json()
        for result in found["results"]:
            ask("GET", result["url"])
    return found["state"], codes


def make_scan(folder: Path) -> bytes:
    """Return the sample's FLAIR at half its resolution, as a NIfTI file."""
    image = nib.load(load_sample().flair)
    small = np.asarray(image.dataobj)[::2, ::2, ::3]
    path = folder / "scan.nii.gz"
    nib.save(nib.Nifti1Image(small, image.affine @ np.diag([2.0, 2.0, 3.0, 1.0])), path)
    return path.read_bytes()


def main() -> None:
    """Run the load and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-c", "from pipeline.cli import main; main()", "serve", "--port", "0"]
        server = subprocess.Popen(
            [*command, "--folder", folder / "jobs"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            line = server.stdout.readline() if server.stdout else ""
            found = re.search(r"http://\S+", line)
            if found is None:
                sys.exit(f"the server does not start: {line}")
            url, scan = found[0], make_scan(folder)
            watcher = Watcher(url, server.pid)
            watcher.start()
            started = time.perf_counter()
            with ThreadPoolExecutor(options.clients) as pool:
                outcomes = list(pool.map(lambda _: do_job(url, scan), range(options.clients)))
            seconds = time.perf_counter() - started
            watcher.done.set()
            watcher.join()
        finally:
            server.terminate()
            server.wait()
    states = Counter(state for state, _ in outcomes)
    codes = sum((each for _, each in outcomes), watcher.codes)
    print(f"{options.clients} clients: {dict(states)}, status codes {dict(sorted(codes.items()))}, {seconds:.1f} s")
    print("| page | median ms | 95 % | 99 % | max |\n|---|---:|---:|---:|---:|")
    for page, values in watcher.seconds.items():
        figures = np.percentile(1000 * np.array(values), (50, 95, 99, 100))
        print(f"| {page} | " + " | ".join(f"{value:.0f}" for value in figures) + " |")
    print("memory: server {:.0f} MB, worker {:.0f} MB at most".format(*watcher.memory_mb))


if __name__ == "__main__":
    main()
