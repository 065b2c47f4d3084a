"""The kinds of job: what each takes, and who runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = ["KINDS", "JobKind", "Order", "Outcome", "Runner", "WorkerOptions"]


@dataclass(frozen=True)
class WorkerOptions:
    """What the worker is started with.

    Attributes:
        bundle: The bundle's folder; None takes the shipped one.
        device: As ``Predictor`` takes it.
        engine: As ``Predictor`` takes it.
    """

    bundle: str | None = None
    device: str | None = None
    engine: str = "auto"

    def as_dict(self) -> dict[str, Any]:
        """Return what makes the same again."""
        return asdict(self)


@dataclass(frozen=True)
class Order:
    """What the worker shall do.

    Attributes:
        id: The job's.
        kind: A key of ``KINDS``.
        files: By role, the uploaded file or folder.
        work: Empty folder for the results.
        view: Where a scan that browsers cannot show goes, as uncompressed NIfTI; its folder exists.
    """

    id: str
    kind: str
    files: dict[str, str]
    work: str
    view: str

    def as_dict(self) -> dict[str, Any]:
        """Return what makes the same again."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What the worker did.

    Attributes:
        roles: By name of a file in the folder of results, what it is; files that are nothing special are left out.
        scan: The file to look the scan up in.
    """

    roles: dict[str, str]
    scan: str


class Runner(Protocol):
    """Who runs the jobs of one kind, in the worker process, one after the other."""

    def about(self) -> Mapping[str, str]:
        """Return what serves: ``bundle``, ``bundle_version``, ``engine`` and ``weights_sha256``."""

    def run(self, order: Order, on_progress: Callable[[str, int, int], None]) -> Outcome:
        """Do a job.

        Args:
            order: What to do.
            on_progress: Called with the stage ("reading", "network" or "writing"), the slices done and their total.

        Raises:
            AR2UNetError: If it cannot be done.
        """


@dataclass(frozen=True)
class JobKind:
    """A kind of job.

    Attributes:
        roles: Of its files, the first of which it cannot do without.
        accepts: Names of formats that ``pipeline.web.file_formats`` tells apart.
        sample: Gives the embedded sample's file for each role; None where there is none.
        make_runner: Called in the worker process, once.
    """

    roles: tuple[str, ...]
    accepts: tuple[str, ...]
    sample: Callable[[], dict[str, Path]] | None
    make_runner: Callable[[WorkerOptions], Runner]


def _make_segmentation(options: WorkerOptions) -> Runner:
    from pipeline.web.segmentation import SegmentationRunner

    return SegmentationRunner(options)


def _make_staging(options: WorkerOptions) -> Runner:
    from pipeline.web.staging import StagingRunner

    return StagingRunner()  # the options name the bundle and the engine of the segmentation


def _segmentation_sample() -> dict[str, Path]:
    from pipeline.datasets.phantom import load_sample

    sample = load_sample()
    return {"flair": sample.flair, "t1": sample.t1, "t1c": sample.t1c}


KINDS: dict[str, JobKind] = {
    "segmentation": JobKind(
        roles=("flair", "t1", "t1c"),
        accepts=("nifti", "nrrd", "metaimage", "dicom", "zip"),
        sample=_segmentation_sample,
        make_runner=_make_segmentation,
    ),
    "staging": JobKind(
        roles=("t1",),
        accepts=("png", "jpeg", "nifti", "nrrd", "metaimage"),
        sample=None,
        make_runner=_make_staging,
    ),
}
