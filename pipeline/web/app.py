"""The application: routes, what protects them, and the service behind them."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from pipeline.provenance import software_version
from pipeline.web import job_routes, site_routes
from pipeline.web.refusals import Refusal
from pipeline.web.security import Gate, Guard, refusal_response
from pipeline.web.service import Service

__all__ = ["create_app"]

DESCRIPTION = "Segment the FLAIR abnormality in brain MR scans. For research use only; not a medical device."


def create_app(service: Service) -> FastAPI:
    """Make the application of a service that has been started; its end closes the service.

    Args:
        service: The jobs.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.watchers.attach()
        try:
            yield
        finally:
            await run_in_threadpool(service.close)

    # The interactive documentation of FastAPI would load scripts from elsewhere.
    app = FastAPI(
        title="ar2unet",
        version=software_version(),
        description=DESCRIPTION,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    settings = service.settings
    app.state.service, app.state.gate = service, Gate(settings.token)
    app.include_router(job_routes.router)
    app.include_router(site_routes.router)
    if site_routes.STATIC.is_dir():
        app.mount("/static", StaticFiles(directory=site_routes.STATIC), name="static")
    app.add_exception_handler(Refusal, _answer_refusal)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(sqlite3.OperationalError, _answer_full)
    app.add_exception_handler(Exception, _answer_internal)
    hosts = (settings.host, *settings.allowed_hosts)
    app.add_middleware(Guard, gate=app.state.gate, hosts=hosts, metrics=service.metrics)
    return app


def _answer_refusal(request: Request, error: Exception) -> JSONResponse:
    return refusal_response(error if isinstance(error, Refusal) else Refusal("internal", "unexpected error"))


def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """Name what is wrong, but do not repeat what was sent."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    reasons = "; ".join(f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in found)
    return refusal_response(Refusal("invalid", reasons or "the request is not as expected"))


def _answer_http(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    if status == 405:
        return refusal_response(Refusal("no_method", f"{request.method} is not for this address", headers))
    if status == 404:
        return refusal_response(Refusal("no_page", "there is nothing at this address"))
    code = "invalid" if status < 500 else "internal"
    return refusal_response(Refusal(code, "the request cannot be answered", headers))


def _answer_full(request: Request, error: Exception) -> JSONResponse:
    return refusal_response(Refusal("storage_full", "the index of jobs cannot be written"))


def _answer_internal(request: Request, error: Exception) -> JSONResponse:
    return refusal_response(Refusal("internal", "something unexpected went wrong in the server"))
