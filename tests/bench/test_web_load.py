"""The load on the web page: what its clients do, and what its watcher notes."""

from __future__ import annotations

import gzip
import importlib.util
import os
from pathlib import Path

import nibabel as nib
import pytest


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "bench" / "web_load.py"
    spec = importlib.util.spec_from_file_location("web_load", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_scan_is_the_sample_at_half_its_resolution(script, tmp_path):
    content = script.make_scan(tmp_path)
    assert gzip.decompress(content)[344:348] == b"n+1\0"
    small, whole = nib.load(tmp_path / "scan.nii.gz"), nib.load(script.load_sample().flair)
    assert small.shape == tuple(-(-size // step) for size, step in zip(whole.shape, (2, 2, 3), strict=True))
    assert small.header.get_zooms() == pytest.approx(
        [2 * whole.header.get_zooms()[0]] * 2 + [3 * whole.header.get_zooms()[2]]
    )


def test_memory_is_that_of_a_process_and_none_of_one_that_has_ended(script):
    assert 10 < script._memory_mb(os.getpid()) < 10_000
    assert script._memory_mb(2**22 + 7) == 0


def test_a_job_ends_with_its_state_and_every_answer_is_counted(script, monkeypatch):
    asked = []
    answers = iter(["queued", "running", "finished"])

    class Client:
        def __init__(self, **_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def request(self, method, path, **more):
            asked.append((method, path))
            state = next(answers) if path.endswith("start") or (method, path) == ("GET", "/api/jobs/7") else "uploading"
            job = {"id": "7", "state": state, "revision": len(asked), "results": [{"url": "/a"}, {"url": "/b"}]}
            return type("Answer", (), {"status_code": 200 + len(asked) % 2, "json": lambda self: job})()

    monkeypatch.setattr(script.httpx2, "Client", Client)
    state, codes = script.do_job("http://x", b"scan")
    assert state == "finished"
    assert asked[-2:] == [("GET", "/a"), ("GET", "/b")]
    assert sum(codes.values()) == len(asked) == 7
