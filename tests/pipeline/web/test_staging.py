"""Jobs of the kind "staging": a slice comes back with what the library says of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from pipeline.staging.case import stage_case
from pipeline.staging.stager import Stager


@pytest.fixture
def slice_file(tmp_path):
    """Write something round of the size of the training slices."""
    row, column = np.indices((208, 176))
    radius = np.hypot((row - 104) / 90, (column - 88) / 70)
    pixels = np.where(radius < 1, 120 + 60 * np.cos(9 * radius), 0).astype(np.uint8)
    path = tmp_path / "DOE^JANE.png"
    Image.fromarray(pixels).save(path)
    return path


def submit(client, file):
    job = client.begin(kind="staging")
    answer = client.upload(job, file, role="t1")
    assert answer.status_code == 201, answer.text
    assert client.post(f"/api/jobs/{job}/start").status_code == 202
    return client.wait(job)


def test_the_server_says_what_it_stages(client):
    kinds = {kind["name"]: kind for kind in client.get("/api/about").json()["kinds"]}
    assert kinds["staging"]["roles"] == ["t1"]
    assert {"png", "jpeg"} <= set(kinds["staging"]["accepts"])
    assert not {"png", "jpeg"} & set(kinds["segmentation"]["accepts"])


def test_a_slice_comes_back_with_what_the_library_says_of_it(client, slice_file, tmp_path):
    job = submit(client, slice_file)
    assert job["state"] == "finished", job["error"]
    results = {result["role"]: result for result in job["results"]}
    assert set(results) == {"report", "saliency", "page"}
    report = client.get(results["report"]["url"]).json()
    expected = stage_case(Stager(), slice_file, tmp_path / "expected").content
    for name in ("stage", "probabilities", "warnings", "sure", "weights_sha256"):
        assert report[name] == expected[name]
    picture = client.get(results["saliency"]["url"]).content
    assert picture.startswith(b"\x89PNG")
    assert "DOE" not in json.dumps(job) + json.dumps(report)


def test_what_cannot_be_staged_is_said_in_the_readers_words(client, tmp_path):
    small = tmp_path / "small.png"
    Image.fromarray(np.arange(30 * 20, dtype=np.uint8).reshape(30, 20)).save(small)
    job = submit(client, small)
    assert job["state"] == "failed"
    assert job["error"]["code"] == "bad_scan"
    assert "176" in job["error"]["message"]


def test_a_picture_is_no_scan_to_segment(client, slice_file):
    job = client.begin(kind="segmentation")
    answer = client.upload(job, slice_file)
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "not_accepted"
