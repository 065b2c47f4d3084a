"""The routes besides the jobs: the page, signing in, and what watches the server."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import FileResponse

from pipeline.web.index import LIVE
from pipeline.web.job_routes import Served, refuses, require_token
from pipeline.web.models import About, Health, JobState, NewSession, Session
from pipeline.web.refusals import Refusal
from pipeline.web.security import AUTHENTICATED, COOKIE, SESSION_SECONDS, Gate
from pipeline.web.views import view_about, view_health

__all__ = ["STATIC", "router"]

STATIC = Path(__file__).with_name("static")
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

router = APIRouter()


@router.get("/", include_in_schema=False)
@router.get("/jobs/{job_id}", include_in_schema=False)
def read_page(job_id: str = "") -> FileResponse:
    """Return the page; which job it shows it reads from its own address."""
    page = STATIC / "index.html"
    if not page.is_file():
        raise Refusal("no_page", "the page is not installed; the interface below /api is")
    return FileResponse(page)


@router.get("/api/about", tags=["server"])
def read_about(service: Served) -> About:
    """Say what the server does."""
    return view_about(service)


@router.get("/health", tags=["server"], responses={503: {"model": Health, "description": "The worker cannot run."}})
def read_health(service: Served, response: Response) -> Health:
    """Say whether the server does what it should."""
    health = view_health(service)
    if health.status != "ok":
        response.status_code = 503
    return health


@router.get("/metrics", tags=["server"], dependencies=[Depends(require_token)], responses=refuses("unauthorized"))
def read_metrics(service: Served) -> Response:
    """Return the numbers of the server in Prometheus' text format."""
    metrics, index = service.metrics, service.index
    metrics.queued.set(index.count([JobState.QUEUED]))
    metrics.live.set(index.count(LIVE))
    metrics.stored.set(index.stored_bytes())
    return Response(metrics.render(), media_type=METRICS_TYPE)


@router.get("/session", tags=["session"])
def read_session(request: Request) -> Session:
    """Say whether one has to sign in, and whether one has."""
    gate: Gate = request.app.state.gate
    return Session(required=gate.token is not None, authenticated=request.scope[AUTHENTICATED])


@router.post("/session", tags=["session"], status_code=204, responses=refuses("bad_token"))
def open_session(request: Request, response: Response, new: NewSession) -> None:
    """Sign a browser in: the cookie that it gets is not for scripts, and is sent to this server alone."""
    gate: Gate = request.app.state.gate
    if gate.token is None:
        return
    if not gate.knows(new.token):
        raise Refusal("bad_token", "this is not the token of this server")
    secure = request.url.scheme == "https"
    response.set_cookie(
        COOKIE, gate.open_session(), max_age=SESSION_SECONDS, path="/", secure=secure, httponly=True, samesite="strict"
    )


@router.delete("/session", tags=["session"], status_code=204)
def close_session(response: Response) -> None:
    """Sign a browser out."""
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
