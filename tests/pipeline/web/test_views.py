"""A job, and the server, as the page sees them: times, what is left to wait, and what is kept how long."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

KEPT = {"keep_uploads": timedelta(hours=2), "keep_results": timedelta(days=3)}


def test_a_job_says_in_utc_when_it_ran_and_when_it_and_its_scan_will_be_removed(serve, scan):
    client, before = serve(**KEPT), datetime.now(UTC).replace(microsecond=0)
    job = client.wait(client.submit(scan))
    created, started, ended = (datetime.fromisoformat(job[name]) for name in ("created", "started", "ended"))
    assert created.utcoffset() == timedelta(0)
    assert before <= created <= started <= ended <= datetime.now(UTC)
    assert datetime.fromisoformat(job["removed_at"]) == ended + timedelta(days=3)
    assert datetime.fromisoformat(job["scan"]["removed_at"]) == ended + timedelta(hours=2)


def test_the_server_says_what_it_takes_and_how_long_it_keeps_what(serve):
    about = serve(**KEPT, queue_size=7, max_upload_bytes=12345).get("/api/about").json()
    assert (about["keep_uploads_hours"], about["keep_results_days"]) == (2, 3)
    assert (about["queue_size"], about["max_upload_bytes"]) == (7, 12345)
    assert {kind["name"]: kind["sample"] for kind in about["kinds"]} == {"segmentation": True, "staging": False}


def test_who_waits_is_told_how_long_by_what_the_latest_jobs_took(client, scan):
    client.service.scheduler.pace._jobs.append(100.0)
    client.worker.go.clear()
    jobs = [client.submit(scan) for _ in range(3)]
    client.wait(jobs[0], "running")
    left = [client.get(f"/api/jobs/{job}").json()["progress"]["seconds_left"] for job in jobs]
    client.worker.go.set()
    assert left == [pytest.approx(seconds, abs=20) for seconds in (100, 200, 300)]
    assert {client.wait(job)["state"] for job in jobs} == {"finished"}


def test_the_revision_changes_with_the_place_in_the_queue_but_not_with_the_clock(client, scan):
    client.service.scheduler.pace._jobs.append(100.0)
    client.worker.go.clear()
    first, second, third = (client.submit(scan) for _ in range(3))
    client.wait(first, "running")
    seen = []
    for _ in range(2):
        seen.append(client.get(f"/api/jobs/{third}").json())
        time.sleep(0.15)
    client.post(f"/api/jobs/{second}/cancel")
    seen.append(client.get(f"/api/jobs/{third}").json())
    client.worker.go.set()
    assert client.wait(third)["state"] == "finished"
    assert [each["progress"]["ahead"] for each in seen] == [2, 2, 1]
    assert seen[0]["progress"]["seconds_left"] > seen[1]["progress"]["seconds_left"]
    assert seen[0]["revision"] == seen[1]["revision"] != seen[2]["revision"]
