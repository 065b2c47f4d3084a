"""A job from its beginning to its end, over HTTP."""

from __future__ import annotations

import io
import logging
import re
import threading
import time
import zipfile

import nibabel as nib
import numpy as np
import pytest

from pipeline.case import segment_case
from pipeline.web.worker_process import WorkerDiedError


def test_a_scan_comes_back_as_the_very_files_that_the_library_writes(client, scan, predictor, tmp_path):
    job = client.wait(client.submit(scan))
    assert job["state"] == "finished"
    assert job["error"] is job["progress"] is None
    neutral = tmp_path / "flair.nii.gz"
    neutral.write_bytes(scan.read_bytes())
    expected = segment_case(predictor, neutral, tmp_path / "out", with_probabilities=True)
    roles = {result["role"]: result for result in job["results"]}
    for role in ("mask", "probabilities", "overlay"):
        path = getattr(expected, role)
        assert roles[role]["name"] == path.name
        assert roles[role]["bytes"] == path.stat().st_size
        assert client.get(roles[role]["url"]).content == path.read_bytes()
    assert {result["name"] for result in job["results"]} == {path.name for path in (tmp_path / "out").iterdir()}
    report = client.get(roles["report"]["url"]).json()
    assert report["inputs"] == {"flair": "flair.nii.gz"}
    assert client.get(job["scan"]["url"]).content == scan.read_bytes()


def test_each_sequence_reaches_the_network_in_its_role(client, scan, make_nifti, anatomy):
    before, after = (make_nifti(f"{name}.nii", volume=anatomy[0] // part) for name, part in (("a", 2), ("b", 3)))
    job = client.wait(client.submit(scan, t1=before, t1c=after))
    report = client.get(f"/api/jobs/{job['id']}/results/report.json").json()
    assert report["inputs"] == {"t1": "t1.nii", "flair": "flair.nii.gz", "t1c": "t1c.nii"}
    assert job["upload"]["roles"] == ["flair", "t1", "t1c"]


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_dicom_study_gives_dicom_seg_and_a_scan_to_look_at_and_its_patient_is_named_nowhere(
    as_zip, client, write_series, anatomy, caplog, tmp_path
):
    caplog.set_level(logging.DEBUG)
    folder = write_series("DOE^JANE", volume=anatomy[0])
    files = sorted(folder.iterdir())
    if as_zip:
        packed = tmp_path / "DOE^JANE.zip"
        with zipfile.ZipFile(packed, "w") as archive:
            for file in files:
                archive.write(file, f"DOE^JANE/{file.name}")
        files = [packed]
    job = client.wait(client.submit(*files))
    assert job["state"] == "finished", job["error"]
    assert job["upload"]["format"] == ("zip" if as_zip else "dicom")
    roles = {result["role"]: result for result in job["results"]}
    assert roles["segmentation"]["name"] == "study_seg.dcm"
    assert roles["segmentation"]["media_type"] == "application/dicom"
    (tmp_path / "view.nii").write_bytes(client.get(job["scan"]["url"]).content)
    (tmp_path / "mask.nii.gz").write_bytes(client.get(roles["mask"]["url"]).content)
    view, mask = nib.load(tmp_path / "view.nii"), nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(view.affine, mask.affine)
    np.testing.assert_array_equal(np.asarray(view.dataobj), anatomy[0])
    assert view.get_data_dtype() == np.int16
    kept = " ".join(str(path) for path in client.service.folders.root.rglob("*"))
    for text in (str(job), caplog.text, kept, client.get("/metrics").text):
        assert "DOE" not in text
        assert "PATIENT-ID-77" not in text


def test_the_log_says_how_a_job_ended_but_not_the_id_that_opens_it(client, scan, caplog):
    caplog.set_level(logging.INFO, "pipeline.web")
    job = client.wait(client.submit(scan))
    for _ in range(100):
        if "finished" in caplog.text:
            break
        time.sleep(0.02)
    assert f"job {job['id'][:8]} finished" in caplog.text
    assert job["id"] not in caplog.text


def test_progress_counts_every_slice_and_whoever_waits_hears_of_it(client, scan, anatomy):
    slices = anatomy[0].shape[2]
    client.worker.go.clear()
    job = client.submit(scan)
    seen = client.wait(job, "running")
    assert seen["progress"] == {"stage": "reading", "done": 0, "total": 0, "ahead": 0, "seconds_left": None}
    threading.Timer(0.2, client.worker.go.set).start()
    began = time.monotonic()
    later = client.get(f"/api/jobs/{job}", params={"revision": seen["revision"]}).json()
    assert time.monotonic() - began > 0.15
    assert later["revision"] != seen["revision"]
    assert client.wait(job)["state"] == "finished"
    live = client.service.scheduler.pace
    assert live.job_seconds > 0.2
    assert slices == 9


def test_a_long_poll_ends_with_the_job_as_it_is(client, scan, monkeypatch):
    monkeypatch.setattr("pipeline.web.job_routes.LONG_POLL_SECONDS", 0.1)
    client.worker.go.clear()
    job = client.submit(scan)
    seen = client.wait(job, "running")
    for _ in range(3):
        seen = client.get(f"/api/jobs/{job}", params={"revision": seen["revision"]}).json()
    assert seen["state"] == "running"


def test_jobs_are_done_in_their_order_and_each_knows_how_many_come_first(client, scan):
    client.worker.go.clear()
    jobs = [client.submit(scan) for _ in range(3)]
    client.wait(jobs[0], "running")
    assert [client.get(f"/api/jobs/{job}").json()["progress"]["ahead"] for job in jobs] == [0, 1, 2]
    client.worker.go.set()
    for job in jobs:
        assert client.wait(job)["state"] == "finished"
    assert [order.id for order in client.worker.orders] == jobs
    listed = client.get("/api/jobs", params={"limit": 2}).json()
    assert listed["total"] == 3
    assert [job["id"] for job in listed["jobs"]] == jobs[:0:-1]


def test_ids_are_random_and_of_128_bits(client):
    jobs = {client.begin() for _ in range(5)}
    assert len(jobs) == 5
    assert all(re.fullmatch("[0-9a-f]{32}", job) for job in jobs)


def test_a_job_of_the_sample_needs_no_file(client):
    client.worker.go.clear()
    job = client.wait(client.begin(sample=True), "running")
    assert job["sample"]
    assert job["upload"]["roles"] == ["flair", "t1", "t1c"]
    client.post(f"/api/jobs/{job['id']}/cancel")
    assert client.wait(job["id"])["state"] == "cancelled"


def test_a_full_queue_says_when_to_come_back_and_the_usual_one_holds_32(serve, make_settings):
    assert make_settings().queue_size >= 32
    client = serve(queue_size=2)
    kept = [client.begin(), client.begin()]
    answer = client.post("/api/jobs", json={})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "queue_full"
    assert answer.json()["error"]["advice"]
    assert client.delete(f"/api/jobs/{kept[0]}").status_code == 204
    client.begin()


@pytest.mark.parametrize("state", ["uploading", "queued", "running"])
def test_a_job_can_be_cancelled_whatever_it_is_at_and_the_next_is_done(state, client, scan):
    client.worker.go.clear()
    first = client.submit(scan) if state == "queued" else None
    job = client.begin() if state == "uploading" else client.submit(scan)
    client.wait(job, state)
    began = time.monotonic()
    assert client.post(f"/api/jobs/{job}/cancel").status_code == 202
    assert client.wait(job)["state"] == "cancelled"
    assert time.monotonic() - began < 1
    assert not (client.service.folders.of(job).input).exists()
    assert client.worker.starts == (2 if state == "running" else 1)
    client.worker.go.set()
    for other in filter(None, (first, client.submit(scan))):
        assert client.wait(other)["state"] == "finished"
    assert client.post(f"/api/jobs/{job}/cancel").json()["error"]["code"] == "wrong_state"


def test_a_job_that_is_deleted_in_the_middle_leaves_nothing(client, scan):
    client.worker.go.clear()
    job = client.submit(scan)
    client.wait(job, "running")
    assert client.delete(f"/api/jobs/{job}").status_code == 204
    assert client.get(f"/api/jobs/{job}").status_code == 404
    assert list(client.service.folders.jobs.iterdir()) == []
    assert client.delete(f"/api/jobs/{job}").json()["error"]["code"] == "no_job"


def test_a_worker_that_dies_fails_its_job_only(client, scan):
    client.worker.go.clear()
    first, second = client.submit(scan), client.submit(scan)
    client.wait(first, "running")
    client.worker.die()
    job = client.wait(first)
    assert job["state"] == "failed"
    assert job["error"]["code"] == "worker_died"
    assert "signal 9" in job["error"]["message"]
    assert job["error"]["advice"]
    client.worker.go.set()
    assert client.wait(second)["state"] == "finished"
    assert client.worker.starts == 2
    assert 'ar2unet_worker_restarts_total 1.0' in client.get("/metrics").text  # fmt: skip


def test_a_worker_that_dies_while_nothing_is_to_be_done_is_started_again(client, scan):
    client.worker.die()
    for _ in range(300):
        if client.worker.starts == 2:
            break
        time.sleep(0.02)
    assert client.wait(client.submit(scan))["state"] == "finished"
    assert client.worker.starts == 2


def test_a_worker_that_is_gone_when_it_gets_a_job_is_started_again_for_it(client, scan, monkeypatch):
    send, gone = client.worker.send, [1]

    def send_to_nobody_first(message):
        if gone:
            gone.pop()
            raise WorkerDiedError("the worker process ended by signal 9")
        send(message)

    monkeypatch.setattr(client.worker, "send", send_to_nobody_first)
    assert client.wait(client.submit(scan))["state"] == "finished"
    assert client.worker.starts == 2


def test_what_is_said_of_another_job_ends_no_job(client, scan):
    client.worker.go.clear()
    job = client.submit(scan)
    client.wait(job, "running")
    client.worker._messages.put({"type": "failed", "id": "f" * 32, "code": "bad_scan", "message": "of an earlier one"})
    time.sleep(0.3)
    assert client.get(f"/api/jobs/{job}").json()["state"] == "running"
    client.worker.go.set()
    assert client.wait(job)["state"] == "finished"


def test_a_worker_that_cannot_be_started_again_is_said_to_fail(client, scan, monkeypatch):
    def refuse() -> None:
        raise WorkerDiedError("no more processes")

    client.worker.go.clear()
    job = client.submit(scan)
    client.wait(job, "running")
    monkeypatch.setattr(client.worker, "start", refuse)
    client.worker.die()
    assert client.wait(job)["error"]["code"] == "worker_died"
    answer = client.get("/health")
    assert answer.status_code == 503
    assert answer.json()["status"] == answer.json()["worker"] == "failing"


def test_a_job_that_takes_too_long_is_ended(serve, scan):
    client = serve(job_seconds=0.3)
    client.worker.go.clear()
    job = client.wait(client.submit(scan))
    assert job["error"]["code"] == "timeout"
    assert "0.3 s" in job["error"]["message"]


def test_what_cannot_be_read_is_said_in_the_readers_words_without_the_servers_folders(client, tmp_path):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"\x1f\x8b" + bytes(100))
    job = client.wait(client.submit(bad))
    assert job["state"] == "failed"
    assert job["error"]["code"] == "bad_scan"
    assert job["error"]["message"].startswith("flair.nii.gz: expected ")
    assert str(client.service.folders.root) not in str(job)
    assert job["results"] == []
    assert not client.service.folders.of(job["id"]).input.exists()


def test_what_nobody_expected_fails_its_job_without_a_word_of_what_was_read(client, scan, monkeypatch, caplog):
    def explode(*arguments: object) -> None:
        raise RuntimeError("DOE^JANE")

    monkeypatch.setattr("pipeline.web.segmentation.prepare_case", explode)
    job = client.wait(client.submit(scan))
    assert job["error"]["code"] == "internal"
    assert "RuntimeError" in job["error"]["message"]
    assert "test_jobs.py" in caplog.text
    assert "DOE" not in str(job) + caplog.text


def test_nothing_happens_out_of_turn(client, scan):
    job = client.begin()
    assert client.post(f"/api/jobs/{job}/start").json()["error"]["code"] == "no_upload"
    client.upload(job, scan)
    client.worker.go.clear()
    client.post(f"/api/jobs/{job}/start")
    for answer in (client.post(f"/api/jobs/{job}/start"), client.upload(job, scan, "t1")):
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "wrong_state"
    assert client.get(f"/api/jobs/{job}/results/report.json").json()["error"]["code"] == "no_file"
    assert client.post(f"/api/jobs/{job}/corrections", content=b"x").status_code == 409


@pytest.mark.parametrize(
    "new", [{"kind": "spelling"}, {"kind": "staging", "sample": True}, {"kind": 7}, {"name": "x"}, []]
)
def test_a_job_that_makes_no_sense_is_refused_in_one_form(new, client):
    answer = client.post("/api/jobs", json=new)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid"
    assert "\n" not in answer.json()["error"]["message"]


def test_the_interface_is_described_with_its_types_and_errors(client):
    described = client.get("/api/openapi.json").json()
    begin = described["paths"]["/api/jobs"]["post"]
    assert begin["responses"]["201"]["content"]["application/json"]["schema"]["$ref"].endswith("/Job")
    assert "queue_full" in begin["responses"]["429"]["description"]
    upload = described["paths"]["/api/jobs/{job_id}/uploads"]["post"]
    assert "application/octet-stream" in upload["requestBody"]["content"]
    about = client.get("/api/about").json()
    assert [kind["name"] for kind in about["kinds"]] == ["segmentation", "staging"]
    assert "research use" in about["notice"]
    assert len(about["weights_sha256"]) == 64


def test_files_may_be_asked_for_in_part(client, scan):
    job = client.wait(client.submit(scan))
    part = client.get(job["scan"]["url"], headers={"Range": "bytes=2-5"})
    assert part.status_code == 206
    assert part.content == scan.read_bytes()[2:6]


def test_the_metrics_count_jobs_and_answers_and_know_no_ids(client, scan):
    job = client.wait(client.submit(scan))["id"]
    text = client.get("/metrics").text
    assert 'ar2unet_jobs_total{kind="segmentation",state="finished"} 1.0' in text
    assert f"ar2unet_uploaded_bytes_total {float(scan.stat().st_size)}" in text
    assert 'ar2unet_answers_total{method="POST",status="202"} 1.0' in text
    assert job not in text
    assert io.StringIO(text).readline().startswith("# HELP")
