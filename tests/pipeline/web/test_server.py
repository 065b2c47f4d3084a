"""The server as a user starts it: a process, its worker process, and what may happen to both."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import httpx2
import pytest

CLIENTS = 12  # each with a job; the usual queue holds 64
PAGE_SECONDS = 0.2
MEMORY_BYTES = 400 * 2**20  # of the server's own process, which never holds a scan


class Process:
    """``ar2unet serve`` on a free port."""

    def __init__(self, folder: Path, bundle: Path, *options: str) -> None:
        command = [sys.executable, "-c", "from pipeline.cli import main; main()", "serve", "--port", "0"]
        command += ["--folder", str(folder), "--bundle", str(bundle), "--engine", "onnx", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.line = self.process.stdout.readline()
        found = re.fullmatch(r"ar2unet: (http://\S+/) \(Ctrl-C ends it\)\n", self.line)
        assert found, self.line + self.process.stderr.read()
        self.url = found[1]

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60)

    @property
    def workers(self) -> list[int]:
        """The processes whose parent is the server."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return sorted({int(child) for text in threads for child in text.read_text().split()} | set(map(int, children)))

    @property
    def memory(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, error = self.process.communicate(timeout=30)
        return self.process.returncode, out, error


@pytest.fixture
def start(exported_bundle, tmp_path):
    started = []

    def begin(*options: str) -> Process:
        started.append(Process(tmp_path / "server", exported_bundle, *options))
        return started[-1]

    yield begin
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.process.communicate()


def submit(client: httpx2.Client, scan: Path) -> str:
    begun = client.post("/api/jobs", json={})
    assert begun.status_code == 201, begun.text
    job = begun.json()["id"]
    assert client.post(f"/api/jobs/{job}/uploads", content=scan.read_bytes()).status_code == 201
    assert client.post(f"/api/jobs/{job}/start").status_code == 202
    return job


def wait(client: httpx2.Client, job: str, *states: str) -> dict:
    found = {"revision": -1}
    for _ in range(300):
        answer = client.get(f"/api/jobs/{job}", params={"revision": found["revision"]})
        assert answer.status_code == 200, answer.text
        found = answer.json()
        if found["state"] in (states or ("finished", "failed", "cancelled")):
            return found
    raise AssertionError(f"still {found['state']}")


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def gone(pid: int) -> bool:
    for _ in range(200):
        if not is_alive(pid):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks processes up in /proc")
def test_many_clients_at_once_lose_no_job_and_the_page_answers_meanwhile(start, scan):
    server = start()
    times, statuses, stop = [], [], threading.Event()

    def look() -> None:
        with server.client() as client:
            while not stop.is_set():
                began = time.perf_counter()
                statuses.append(client.get("/health").status_code)
                times.append(time.perf_counter() - began)
                time.sleep(0.02)

    def work(number: int) -> str:
        with server.client() as client:
            return wait(client, submit(client, scan))["state"]

    watcher = threading.Thread(target=look)
    watcher.start()
    with ThreadPoolExecutor(CLIENTS) as pool:
        states = list(pool.map(work, range(CLIENTS)))
    stop.set()
    watcher.join()
    assert states == ["finished"] * CLIENTS
    assert set(statuses) == {200}
    assert median(times) < PAGE_SECONDS
    assert server.memory < MEMORY_BYTES
    with server.client() as client:
        assert client.get("/api/jobs").json()["total"] == CLIENTS
        assert 'status="5' not in client.get("/metrics").text

    # Then the worker is killed in the middle of a job: that one fails, the next is done by a new worker.
    (worker,) = server.workers
    with server.client() as client:
        os.kill(worker, signal.SIGSTOP)
        lost, next_job = submit(client, scan), submit(client, scan)
        wait(client, lost, "running")
        os.kill(worker, signal.SIGKILL)
        error = wait(client, lost)["error"]
        assert error["code"] == "worker_died"
        assert "signal 9" in error["message"]
        assert wait(client, next_job)["state"] == "finished"
    assert server.workers != [worker]
    assert len(server.workers) == 1

    # And Ctrl-C ends everything, without a word too many.
    (worker,) = server.workers
    code, out, error = server.stop()
    assert code == 0
    assert out == ""
    assert "Traceback" not in error
    assert len([line for line in error.splitlines() if "finished" in line]) == CLIENTS + 1
    assert gone(worker)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks processes up in /proc")
def test_a_server_that_is_killed_takes_its_worker_along_and_loses_no_finished_job(start, scan, tmp_path):
    server = start()
    (worker,) = server.workers
    with server.client() as client:
        done = wait(client, submit(client, scan))
        os.kill(worker, signal.SIGSTOP)
        lost = [submit(client, scan) for _ in range(2)]
        wait(client, lost[0], "running")
    server.stop(signal.SIGKILL)
    os.kill(worker, signal.SIGCONT)
    assert gone(worker)
    again = start()
    with again.client() as client:
        assert client.get(f"/api/jobs/{done['id']}").json() == done
        assert client.get(done["results"][0]["url"]).status_code == 200
        for job in lost:
            assert client.get(f"/api/jobs/{job}").json()["error"]["code"] == "interrupted"
        with socket.create_connection(("127.0.0.1", int(again.url.rstrip("/").rpartition(":")[2]))) as connection:
            job = client.post("/api/jobs", json={}).json()["id"]
            head = f"POST /api/jobs/{job}/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
            connection.sendall(head.encode() + b"half of it")
        left = tmp_path / "server" / "jobs" / job / "input"
        for _ in range(100):
            if not list(left.iterdir()):
                break
            time.sleep(0.02)
        assert list(left.iterdir()) == []
        assert client.get(f"/api/jobs/{job}").json()["state"] == "uploading"
    code, _, error = again.stop(signal.SIGTERM)
    assert code in (0, -signal.SIGTERM)
    assert "Traceback" not in error


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("ar2unet: ")
    for word in words:
        assert word in line
    assert result.stdout == ""


def test_a_port_that_is_taken_is_said_in_a_line(ar2unet, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(ar2unet("serve", "--port", port, "--folder", tmp_path / "x"), str(port), "--port")


def test_what_others_could_reach_is_not_served_without_a_token(ar2unet, tmp_path):
    refused(ar2unet("serve", "--host", "0.0.0.0", "--folder", tmp_path / "x"), "token is needed", "AR2UNET_TOKEN")
    refused(ar2unet("serve", "--token", "short", "--folder", tmp_path / "x"), "16")


def test_a_bundle_that_cannot_serve_is_said_in_a_line(ar2unet, tmp_path):
    result = ar2unet("serve", "--port", "0", "--folder", tmp_path / "x", "--bundle", tmp_path / "none")
    refused(result, "none", "must be a bundle")
