"""What goes over the wire, as OpenAPI shows it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.web.progress import Stage
from pipeline.web.refusals import ADVICE

__all__ = [
    "About",
    "Bundle",
    "Correction",
    "Health",
    "Job",
    "JobList",
    "JobState",
    "Kind",
    "NewJob",
    "NewSession",
    "Problem",
    "ProblemAnswer",
    "Progress",
    "Result",
    "ScanFile",
    "Session",
    "Upload",
    "Uploaded",
]


class JobState(StrEnum):
    """Where a job stands; the last three are its end."""

    UPLOADING, QUEUED, RUNNING = "uploading", "queued", "running"
    FINISHED, FAILED, CANCELLED = "finished", "failed", "cancelled"


class Problem(BaseModel):
    """Why a request or a job failed."""

    code: str = Field(description="For programs.")
    message: str = Field(description="One line: the thing, what was expected, what came.")
    advice: str = Field(description="What to do next.")

    @classmethod
    def of(cls, code: str, message: str) -> Problem:
        """Make one with the advice that belongs to its code."""
        return cls(code=code, message=message, advice=ADVICE[code])


class ProblemAnswer(BaseModel):
    """The answer to every request that fails."""

    error: Problem


class NewJob(BaseModel):
    """A job to begin."""

    model_config = ConfigDict(extra="forbid")

    kind: str = Field(default="segmentation", description="One of the kinds of /api/about.")
    sample: bool = Field(default=False, description="Take the embedded sample: nothing is uploaded.")


class Uploaded(BaseModel):
    """A file that was taken."""

    role: str
    format: str
    bytes: int


class Upload(BaseModel):
    """What a job got so far."""

    files: int
    bytes: int
    roles: list[str]
    format: str | None


class Progress(BaseModel):
    """How far a job is."""

    stage: Stage
    done: int = Field(description="Slices that went through the network.")
    total: int = Field(description="Slices in all; 0 while unknown.")
    ahead: int = Field(description="Jobs that come first.")
    seconds_left: float | None = Field(description="Until the end; null while unknown.")


class Result(BaseModel):
    """A file that a job made."""

    name: str
    role: str | None = Field(description="mask, probabilities, segmentation, overlay, report, ...; null for others.")
    media_type: str
    bytes: int
    url: str


class ScanFile(BaseModel):
    """The scan to look at."""

    name: str
    bytes: int
    url: str
    removed_at: datetime


class Correction(BaseModel):
    """A mask that a person corrected."""

    number: int
    saved: datetime
    author: str
    lesion_voxels: int
    name: str
    url: str
    provenance_url: str


class Job(BaseModel):
    """A job."""

    id: str = Field(description="32 hexadecimal digits, random: who has it can see the finished job.")
    kind: str
    sample: bool
    state: JobState
    revision: int = Field(description="Another one as soon as anything but seconds_left is.")
    created: datetime
    started: datetime | None
    ended: datetime | None
    upload: Upload
    progress: Progress | None
    error: Problem | None
    results: list[Result]
    scan: ScanFile | None
    corrections: list[Correction]
    removed_at: datetime | None = Field(description="When the job will be gone; earlier if space runs out.")


class JobList(BaseModel):
    """Jobs, the newest first."""

    jobs: list[Job]
    total: int


class Kind(BaseModel):
    """A kind of job."""

    name: str
    roles: list[str] = Field(description="The first is required, of the others any.")
    accepts: list[str] = Field(description="Formats.")
    sample: bool = Field(description="Whether there is a sample of it.")


class Bundle(BaseModel):
    """The model that serves."""

    name: str
    version: str


class About(BaseModel):
    """What this server does."""

    version: str
    bundle: Bundle
    engine: str
    weights_sha256: str
    kinds: list[Kind]
    max_upload_bytes: int
    queue_size: int
    keep_uploads_hours: float
    keep_results_days: float
    notice: str


class Health(BaseModel):
    """Whether it does."""

    status: Literal["ok", "failing"]
    worker: Literal["starting", "ready", "busy", "failing"]
    queued: int
    version: str


class NewSession(BaseModel):
    """A browser that signs in."""

    model_config = ConfigDict(extra="forbid")

    token: str = Field(max_length=1000)


class Session(BaseModel):
    """Whether one has to sign in, and whether one has."""

    required: bool
    authenticated: bool
