"""Many clients at once against one worker of the web page: what becomes of their jobs, and how soon the page answers.

    python bench/web_load.py                       # the load
    python bench/web_load.py --warm FLAIR.nii.gz   # one scan, in turn through the page's server and through the library

Of the load, each client uploads the sample at half its resolution, waits for the mask and takes all results home.
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int]]:
    """Serve the page from an empty folder; yield its address and the server's process id."""
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "serve", "--port", "0"]
    server = subprocess.Popen(
        [*command, "--folder", folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        line = server.stdout.readline() if server.stdout else ""
        found = re.search(r"http://\S+", line)
        if found is None:
            sys.exit(f"the server does not start: {line}")
        yield found[0], server.pid
    finally:
        server.terminate()
        server.wait()


def measure_load(folder: Path, clients: int) -> None:
    """Print what becomes of the jobs of many clients, and how soon pages come meanwhile."""
    scan = make_scan(folder)
    with serving(folder / "jobs") as (url, process):
        watcher = Watcher(url, process)
        watcher.start()
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            outcomes = list(pool.map(lambda _: do_job(url, scan), range(clients)))
        seconds = time.perf_counter() - started
        watcher.done.set()
        watcher.join()
    states = Counter(state for state, _ in outcomes)
    codes = sum((each for _, each in outcomes), watcher.codes)
    print(f"{clients} clients: {dict(states)}, status codes {dict(sorted(codes.items()))}, {seconds:.1f} s")
    print("| page | median ms | 95 % | 99 % | max |\n|---|---:|---:|---:|---:|")
    for page, values in watcher.seconds.items():
        figures = np.percentile(1000 * np.array(values), (50, 95, 99, 100))
        print(f"| {page} | " + " | ".join(f"{value:.0f}" for value in figures) + " |")
    print("memory: server {:.0f} MB, worker {:.0f} MB at most".format(*watcher.memory_mb))


def measure_warm(folder: Path, scan: Path, runs: int) -> None:
    """Print how long a scan takes from its upload to all its results, against the same work in the library."""
    from pipeline.case import segment_case
    from pipeline.predictor import Predictor
    from pipeline.stream import keep_memory

    keep_memory()
    predictor, content = Predictor(), scan.read_bytes()
    seconds: dict[str, list[float]] = {"library": [], "page, all results taken home": []}
    with serving(folder / "jobs") as (url, _):
        ways = (
            lambda: segment_case(predictor, scan, folder / "out", with_probabilities=True),
            lambda: do_job(url, content),
        )
        for run in range(runs + 2):  # the first two warm both up
            for way, values in zip(ways, seconds.values(), strict=True):
                started = time.perf_counter()
                way()
                if run >= 2:
                    values.append(time.perf_counter() - started)
    for name, values in seconds.items():
        print(f"{name}: median {np.median(values):.2f} s, best {min(values):.2f} s of {runs}")
    library, page = seconds.values()
    print(f"ratio: medians {np.median(page) / np.median(library):.2f}, best {min(page) / min(library):.2f}")


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--warm", type=Path, metavar="FLAIR", help="a NIfTI file")
    parser.add_argument("--runs", type=int, default=9, help="of the warm scan")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.warm is None:
            measure_load(Path(name), options.clients)
        else:
            measure_warm(Path(name), options.warm, options.runs)


if __name__ == "__main__":
    main()
