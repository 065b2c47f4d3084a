"""What outlives a restart, what is removed and when, and what a full disk does."""

from __future__ import annotations

import contextlib
import errno
import shutil
import sqlite3
import subprocess
import time
from datetime import timedelta

import pytest

from pipeline.errors import AR2UNetError
from pipeline.web.cleaning import ABANDONED_SECONDS, GRACE_SECONDS
from pipeline.web.folders import Folders
from pipeline.web.index import JobIndex
from pipeline.web.models import JobState
from pipeline.web.service import Service

HOUR, DAY = 3600, 86400


def leave_behind(settings, worker, scan):
    """Stop a server as kill -9 would, with a job finished, one in work, one waiting and one being uploaded."""
    service = Service(settings, worker)
    service.start()
    jobs = {}
    for name in ("finished", "running", "queued", "uploading"):
        job = jobs[name] = service.begin("segmentation", sample=False).id
        copy = service.folders.of(job).input / ".upload"
        shutil.copyfile(scan, copy)
        service.add_file(job, "flair", copy, copy.stat().st_size)
        if name == "uploading":
            continue
        service.enqueue(job)
        wanted = JobState(name)
        while service.job(job).state is not wanted:
            time.sleep(0.01)
        if name == "finished":
            worker.go.clear()
    shutil.copytree(service.folders.root, service.folders.root.with_name("left"))
    worker.go.set()
    service.close()
    return jobs


def test_a_restart_finds_what_was_finished_and_says_of_the_rest_that_it_was_interrupted(
    serve, make_settings, worker, scan, tmp_path
):
    jobs = leave_behind(make_settings(), worker, scan)
    client = serve(folder=tmp_path / "left")
    kept = client.get(f"/api/jobs/{jobs['finished']}").json()
    assert kept["state"] == "finished"
    for result in kept["results"]:
        assert len(client.get(result["url"]).content) == result["bytes"]
    assert client.get(kept["scan"]["url"]).content == scan.read_bytes()
    for name in ("running", "queued", "uploading"):
        lost = client.get(f"/api/jobs/{jobs[name]}").json()
        assert lost["state"] == "failed"
        assert lost["error"]["code"] == "interrupted"
        folder = client.service.folders.of(jobs[name])
        assert not folder.input.exists()
        assert not folder.unfinished.exists()
    assert client.wait(client.submit(scan))["state"] == "finished"


def test_a_server_that_is_stopped_says_of_its_jobs_that_they_were_interrupted(make_settings, worker, scan):
    jobs = leave_behind(make_settings(), worker, scan)
    index = JobIndex(make_settings().folder / "index.sqlite")
    assert index.get(jobs["finished"]).state is JobState.FINISHED
    assert index.get(jobs["running"]).error_code == "interrupted"
    index.close()


def test_results_without_an_entry_are_removed_at_the_start(make_settings, worker):
    stranger = make_settings().folder / "jobs" / ("f" * 32) / "results"
    stranger.mkdir(parents=True)
    service = Service(make_settings(), worker)
    service.start()
    assert not stranger.parent.exists()
    service.close()


def test_two_servers_do_not_share_a_folder(make_settings, worker):
    service = Service(make_settings(), worker)
    with pytest.raises(AR2UNetError, match="another server uses this folder"):
        Service(make_settings(), worker)
    service.close()
    Service(make_settings(), worker).close()


def test_an_index_of_another_version_or_of_another_kind_is_refused_in_a_line(make_settings, worker):
    folder = make_settings().folder
    folder.mkdir()
    with sqlite3.connect(folder / "index.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(AR2UNetError, match="version 1, got version 99"):
        Service(make_settings(), worker)
    (folder / "index.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(AR2UNetError, match="expected an index of jobs"):
        Service(make_settings(), worker)
    with pytest.raises(AR2UNetError, match="expected a folder that can be written"):
        Folders(folder / "index.sqlite")


def test_only_the_user_can_read_the_folder(client):
    assert client.service.folders.root.stat().st_mode & 0o077 == 0


def test_a_scan_is_removed_after_its_retention_time_and_a_job_after_its_own(serve, scan):
    client = serve(keep_uploads=timedelta(hours=2), keep_results=timedelta(days=3))
    job = client.wait(client.submit(scan))
    cleaner, folder = client.service.cleaner, client.service.folders.of(job["id"])
    cleaner.clean(time.time() + 2 * HOUR - 60)
    assert client.get(job["scan"]["url"]).status_code == 200
    cleaner.clean(time.time() + 2 * HOUR + 60)
    later = client.get(f"/api/jobs/{job['id']}").json()
    assert later["scan"] is None
    assert client.get(job["scan"]["url"]).json()["error"]["code"] == "no_file"
    assert not folder.input.exists()
    assert client.get(job["results"][0]["url"]).status_code == 200
    cleaner.clean(time.time() + 3 * DAY + 60)
    assert client.get(f"/api/jobs/{job['id']}").status_code == 404
    assert not folder.path.exists()


def test_an_upload_that_nobody_finishes_is_given_up(client, scan):
    idle, busy = client.begin(), client.begin()
    client.upload(idle, scan)
    client.service.cleaner.clean(time.time() + ABANDONED_SECONDS - 5)
    assert client.get(f"/api/jobs/{idle}").json()["state"] == "uploading"
    client.service.cleaner.clean(time.time() + ABANDONED_SECONDS + 5)
    assert client.get(f"/api/jobs/{idle}").json()["error"]["code"] == "abandoned"
    assert not client.service.folders.of(idle).input.exists()
    assert client.upload(busy, scan).json()["error"]["code"] == "wrong_state"


def test_where_room_runs_out_the_oldest_jobs_go_but_none_of_the_last_hour(serve, scan):
    client = serve()
    old, young = client.wait(client.submit(scan))["id"], client.wait(client.submit(scan))["id"]
    used, cleaner = client.service.index.stored_bytes(), client.service.cleaner
    object.__setattr__(client.service.settings, "max_storage_bytes", used)
    assert not cleaner.make_room(1)
    full = client.post("/api/jobs", json={})
    assert full.status_code == 507
    assert full.json()["error"]["code"] == "storage_full"
    assert client.get("/api/jobs").json()["total"] == 2
    assert cleaner.make_room(1, time.time() + GRACE_SECONDS + 5)
    assert client.get(f"/api/jobs/{old}").status_code == 404
    assert client.get(f"/api/jobs/{young}").json()["state"] == "finished"


def test_results_beyond_the_quota_fail_their_job_and_no_other(client, scan):
    first = client.wait(client.submit(scan))
    client.worker.go.clear()
    second = client.submit(scan)
    object.__setattr__(client.service.settings, "max_storage_bytes", client.service.index.stored_bytes() + 100)
    client.worker.go.set()
    lost = client.wait(second)
    assert lost["state"] == "failed"
    assert lost["error"]["code"] == "storage_full"
    assert client.get(first["results"][0]["url"]).status_code == 200
    assert not client.service.folders.of(second).results.exists()


def test_a_disk_that_is_full_while_results_are_written_fails_the_job_with_the_reason(client, scan, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    job = client.wait(client.submit(scan))
    assert job["error"]["code"] == "storage_full"
    monkeypatch.undo()
    assert client.wait(client.submit(scan))["state"] == "finished"


def test_an_upload_on_a_full_disk_is_refused_and_the_job_can_go_on(client, scan, monkeypatch):
    job = client.begin()
    monkeypatch.setattr("pipeline.web.folders.FREE_RESERVE", 2**62)
    assert client.upload(job, scan).status_code == 507
    assert client.post("/api/jobs", json={}).status_code == 507
    monkeypatch.undo()
    assert client.upload(job, scan).status_code == 201


def test_the_end_of_a_job_is_entered_as_soon_as_the_index_can_be_written_again(client, scan, monkeypatch):
    index, failures = client.service.index, []
    finish = index.finish

    def fail_first(*arguments):
        if not failures:
            failures.append(1)
            raise sqlite3.OperationalError("database or disk is full")
        return finish(*arguments)

    monkeypatch.setattr("pipeline.web.scheduler.RETRY_SECONDS", 0.05)
    monkeypatch.setattr(index, "finish", fail_first)
    job = client.wait(client.submit(scan))
    assert job["error"]["code"] == "storage_full"
    assert client.wait(client.submit(scan))["state"] == "finished"


def fill(path):
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_on_a_disk_that_fills_up_what_is_finished_stays_and_the_rest_is_said_to_be_failed(
    serve, small_disk, scan, monkeypatch
):
    monkeypatch.setattr("pipeline.web.folders.FREE_RESERVE", 0)
    client = serve(folder=small_disk / "server")
    finished = client.wait(client.submit(scan))
    assert finished["state"] == "finished"
    client.worker.go.clear()
    waiting = client.submit(scan)
    client.wait(waiting, "running")
    fill(small_disk / "ballast")
    answer = client.post("/api/jobs", json={})
    assert answer.status_code == 507
    client.worker.go.set()
    time.sleep(0.5)
    assert client.get(finished["results"][0]["url"]).status_code == 200
    (small_disk / "ballast").unlink()
    assert client.wait(waiting)["error"]["code"] == "storage_full"
    assert client.get(f"/api/jobs/{finished['id']}").json() == finished
    assert client.wait(client.submit(scan))["state"] == "finished"
