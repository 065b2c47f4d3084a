"""Jobs as the page sees them."""

from __future__ import annotations

import zlib
from datetime import UTC, datetime, timedelta

from pipeline.provenance import software_version
from pipeline.report import NOTICE
from pipeline.web.corrections import AUTHOR
from pipeline.web.index import CorrectionRecord, JobRecord
from pipeline.web.kinds import KINDS
from pipeline.web.models import (
    About,
    Bundle,
    Correction,
    Health,
    Job,
    JobState,
    Kind,
    Problem,
    Progress,
    Result,
    ScanFile,
    Upload,
)
from pipeline.web.service import Service

__all__ = ["media_type", "view_about", "view_correction", "view_health", "view_job"]

MEDIA_TYPES = {
    ".nii.gz": "application/gzip",
    ".json": "application/json",
    ".png": "image/png",
    ".html": "text/html; charset=utf-8",
    ".dcm": "application/dicom",
}


def media_type(name: str) -> str:
    """Return what a file of ours is, by its ending."""
    return next((kind for ending, kind in MEDIA_TYPES.items() if name.endswith(ending)), "application/octet-stream")


def view_job(service: Service, record: JobRecord) -> Job:
    """Return a job with all that is known of it at this moment."""
    finished = record.state is JobState.FINISHED
    url = f"/api/jobs/{record.id}"
    results = [
        Result(
            name=result["name"],
            role=result["role"],
            media_type=media_type(result["name"]),
            bytes=result["bytes"],
            url=f"{url}/results/{result['name']}",
        )
        for result in record.results
    ]
    corrections = [view_correction(found) for found in service.index.corrections(record.id)] if finished else []
    ended = None if record.ended is None else _time(record.ended)
    failed = record.state is JobState.FAILED and record.error_code is not None
    job = Job(
        id=record.id,
        kind=record.kind,
        sample=record.sample,
        state=record.state,
        revision=0,
        created=_time(record.created),
        started=None if record.started is None else _time(record.started),
        ended=ended,
        upload=Upload(files=record.files, bytes=record.upload_bytes, roles=sorted(record.roles), format=record.format),
        progress=_view_progress(service, record),
        error=Problem.of(record.error_code, record.error_message or "") if failed and record.error_code else None,
        results=results,
        scan=_view_scan(service, record),
        corrections=corrections,
        removed_at=None if ended is None else ended + service.settings.keep_results,
    )
    # A number that says of itself whether anything changed needs no counter, and is the same after a restart.
    content = job.model_dump_json(exclude={"progress": {"seconds_left"}})
    return job.model_copy(update={"revision": zlib.crc32(content.encode())})


def view_correction(record: CorrectionRecord) -> Correction:
    """Return a corrected mask."""
    url = f"/api/jobs/{record.job}/corrections"
    name = f"{record.number:04d}_mask.nii.gz"
    return Correction(
        number=record.number,
        saved=_time(record.saved),
        author=AUTHOR,
        lesion_voxels=record.lesion_voxels,
        name=name,
        url=f"{url}/{name}",
        provenance_url=f"{url}/{record.number:04d}.json",
    )


def view_about(service: Service) -> About:
    """Return what the server does."""
    about, settings = service.scheduler.about["segmentation"], service.settings
    return About(
        version=software_version(),
        bundle=Bundle(name=about["bundle"], version=about["bundle_version"]),
        engine=about["engine"],
        weights_sha256=about["weights_sha256"],
        kinds=[
            Kind(name=name, roles=list(kind.roles), accepts=list(kind.accepts), sample=kind.sample is not None)
            for name, kind in KINDS.items()
        ],
        max_upload_bytes=settings.max_upload_bytes,
        queue_size=settings.queue_size,
        keep_uploads_hours=settings.keep_uploads / timedelta(hours=1),
        keep_results_days=settings.keep_results / timedelta(days=1),
        notice=NOTICE,
    )


def view_health(service: Service) -> Health:
    """Return whether the server does what it should."""
    worker = service.scheduler.worker_state
    return Health(
        status="failing" if worker == "failing" else "ok",
        worker=worker,
        queued=service.index.count([JobState.QUEUED]),
        version=software_version(),
    )


def _view_progress(service: Service, record: JobRecord) -> Progress | None:
    pace, live = service.scheduler.pace, service.scheduler.live
    in_work = None if live is None else pace.seconds_left(live)
    if record.state is JobState.RUNNING:
        if live is None or live.id != record.id:  # it has just begun, or is just ending
            return Progress(stage="reading", done=0, total=0, ahead=0, seconds_left=None)
        left = None if in_work is None else round(in_work, 1)
        return Progress(stage=live.stage, done=live.done, total=live.total, ahead=0, seconds_left=left)
    if record.state is not JobState.QUEUED:
        return None
    ahead = service.index.ahead_of(record)
    seconds = None
    if pace.job_seconds is not None:
        others = ahead if live is None else ahead - 1
        seconds = round((in_work or 0.0) + max(0, others) * pace.job_seconds + pace.job_seconds, 1)
    return Progress(stage="waiting", done=0, total=0, ahead=ahead, seconds_left=seconds)


def _view_scan(service: Service, record: JobRecord) -> ScanFile | None:
    if record.state is not JobState.FINISHED or not record.has_upload or record.scan is None or record.ended is None:
        return None
    try:
        size = (service.folders.of(record.id).input / record.scan).stat().st_size
    except OSError:
        return None
    return ScanFile(
        name=record.scan,
        bytes=size,
        url=f"/api/jobs/{record.id}/scan/{record.scan}",
        removed_at=_time(record.ended) + service.settings.keep_uploads,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=0)
