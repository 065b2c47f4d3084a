"""The routes below /api/jobs."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool

from pipeline.formats.nifti_header import read_layout
from pipeline.web.models import Correction, Job, JobList, JobState, NewJob, ProblemAnswer, Uploaded
from pipeline.web.refusals import STATUS, Refusal
from pipeline.web.security import AUTHENTICATED, REPORT_POLICY
from pipeline.web.service import MASK_OVERHEAD, Service
from pipeline.web.uploads import receive_file
from pipeline.web.views import media_type, view_correction, view_job

__all__ = ["router"]

LONG_POLL_SECONDS = 20.0
INLINE = (".html", ".png", ".json")  # shown by a browser; everything else is saved


def get_service(request: Request) -> Service:
    """Return the service of the application that answers."""
    service: Service = request.app.state.service
    return service


def require_token(request: Request) -> None:
    """Refuse whoever does not show the token, where there is one."""
    if not request.scope[AUTHENTICATED]:
        raise Refusal("unauthorized", "expected the token of this server, got none")


def require_finished_or_token(request: Request, job_id: str) -> None:
    """Let anybody see a finished job whose id they have; for every other the token is needed."""
    if request.scope[AUTHENTICATED]:
        return
    record = get_service(request).index.get(job_id)
    if record is None or record.state is not JobState.FINISHED:
        require_token(request)  # the same answer, whether there is such a job or not


Served = Annotated[Service, Depends(get_service)]
owner, reader = [Depends(require_token)], [Depends(require_finished_or_token)]


def refuses(*codes: str) -> dict[int | str, dict[str, object]]:
    """Return what OpenAPI says of a route's errors."""
    by_status: dict[int | str, dict[str, object]] = {}
    for status in sorted({STATUS[code] for code in codes}):
        named = ", ".join(code for code in codes if STATUS[code] == status)
        by_status[status] = {"model": ProblemAnswer, "description": named}
    return by_status


router = APIRouter(prefix="/api/jobs", tags=["jobs"], responses=refuses("unauthorized", "no_job", "cross_origin"))
FILE = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}, "required": True}


@router.post("", status_code=201, dependencies=owner, responses=refuses("queue_full", "storage_full", "invalid"))
def begin_job(service: Served, response: Response, new: NewJob) -> Job:
    """Begin a job; files come next, unless it is of the sample, which is queued at once."""
    record = service.begin(new.kind, sample=new.sample)
    response.headers["Location"] = f"/api/jobs/{record.id}"
    return view_job(service, record)


@router.get("", dependencies=owner)
def list_jobs(
    service: Served, limit: Annotated[int, Query(ge=1, le=500)] = 50, offset: Annotated[int, Query(ge=0, le=2**31)] = 0
) -> JobList:
    """List jobs, the newest first."""
    jobs = [view_job(service, record) for record in service.index.newest(limit, offset)]
    return JobList(jobs=jobs, total=service.index.count())


@router.get("/{job_id}", dependencies=reader)
async def read_job(service: Served, job_id: str, revision: Annotated[int | None, Query()] = None) -> Job:
    """Return a job; given the revision one has seen, wait until it is another, 20 seconds at the longest."""
    deadline = time.monotonic() + LONG_POLL_SECONDS
    with service.watchers.watch(job_id) as changed:
        while True:
            changed.clear()
            job = await run_in_threadpool(lambda: view_job(service, service.job(job_id)))
            left = deadline - time.monotonic()
            if job.revision != revision or service.watchers.closed or left <= 0:
                return job
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), left)


@router.post(
    "/{job_id}/uploads",
    status_code=201,
    dependencies=owner,
    openapi_extra={"requestBody": FILE},
    responses=refuses("wrong_state", "role_taken", "mixed_formats", "too_slow", "too_large", "unknown_format",
                      "not_accepted", "invalid", "storage_full"),
)  # fmt: skip
async def upload_file(request: Request, service: Served, job_id: str, role: str | None = None) -> Uploaded:
    """Send a file of a job as the request's body: one request a file. What it is, its content says."""
    known, limit = await run_in_threadpool(service.expect_file, job_id, role)
    async with receive_file(request, service.folders.of(job_id).input, limit) as (path, size):
        return await run_in_threadpool(service.add_file, job_id, known, path, size)


@router.post("/{job_id}/start", status_code=202, dependencies=owner, responses=refuses("no_upload", "wrong_state"))
def start_job(service: Served, job_id: str) -> Job:
    """Put a job into the queue: all its files are there."""
    return view_job(service, service.enqueue(job_id))


@router.post("/{job_id}/cancel", status_code=202, dependencies=owner, responses=refuses("wrong_state"))
def cancel_job(service: Served, job_id: str) -> Job:
    """Cancel a job; one that is in work ends a moment later."""
    return view_job(service, service.cancel(job_id))


@router.delete("/{job_id}", status_code=204, dependencies=owner, responses=refuses("wrong_state"))
def delete_job(service: Served, job_id: str) -> None:
    """Remove a job with all its files."""
    service.delete(job_id)


@router.get("/{job_id}/results/{name}", dependencies=reader, response_class=FileResponse, responses=refuses("no_file"))
def read_result(service: Served, job_id: str, name: str) -> FileResponse:
    """Return a result of a finished job."""
    return _file_response(service.result_file(job_id, name))


@router.get("/{job_id}/scan/{name}", dependencies=reader, response_class=FileResponse, responses=refuses("no_file"))
def read_scan_file(service: Served, job_id: str, name: str) -> FileResponse:
    """Return the scan of a finished job, until its retention time is over."""
    return _file_response(service.scan_file(job_id, name))


@router.post(
    "/{job_id}/corrections",
    status_code=201,
    dependencies=owner,
    openapi_extra={"requestBody": FILE},
    responses=refuses("wrong_state", "too_large", "bad_mask", "storage_full"),
)
async def save_corrected_mask(request: Request, response: Response, service: Served, job_id: str) -> Correction:
    """Keep a corrected mask, NIfTI of uint8 0 and 1 on the grid of the job's own, beside that one."""
    layout = await run_in_threadpool(lambda: read_layout(service.model_mask(job_id)))
    limit = math.prod(layout.spatial_shape) + MASK_OVERHEAD
    async with receive_file(request, service.folders.of(job_id).path, limit) as (path, _):
        correction = view_correction(await run_in_threadpool(service.correct, job_id, path))
    response.headers["Location"] = correction.url
    return correction


@router.get("/{job_id}/corrections/{name}", dependencies=reader, response_class=FileResponse,
            responses=refuses("no_file"))  # fmt: skip
def read_corrected_mask(service: Served, job_id: str, name: str) -> FileResponse:
    """Return a corrected mask, or what is known of where it comes from."""
    return _file_response(service.correction_file(job_id, name))


def _file_response(path: Path) -> FileResponse:
    headers = {"Content-Security-Policy": REPORT_POLICY} if path.suffix == ".html" else None
    disposition = "inline" if path.suffix in INLINE else "attachment"
    return FileResponse(
        path,
        media_type=media_type(path.name),
        filename=path.name,
        headers=headers,
        content_disposition_type=disposition,
    )
