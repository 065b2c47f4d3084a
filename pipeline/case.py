"""One case: a scan goes in, a folder with its mask, report, page and picture comes out.

``segment_case`` takes one case through the steps, ``pipeline.stream`` many at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pipeline.contours import draw_contours
from pipeline.errors import ScanError
from pipeline.formats.folders import check_folder, make_folder
from pipeline.formats.nifti import write_mask, write_probabilities
from pipeline.measurement import Measurements, measure_scan
from pipeline.overlay import draw_overlay
from pipeline.predictor import Predictor
from pipeline.reading import ReadScan, case_name, read_case
from pipeline.report import build_report, write_report
from pipeline.report_page import write_page

if TYPE_CHECKING:
    from pipeline.confidence.assessment import Assessment
    from pipeline.formats.dicom.source import DicomSource
    from pipeline.formats.scan import Scan
    from pipeline.predictor import Inferred, Prediction, Prepared

__all__ = [
    "Case",
    "CaseResult",
    "PreparedCase",
    "finish_case",
    "prepare_case",
    "segment_case",
]


@dataclass(frozen=True)
class Case:
    """What is to be segmented, and where the results go.

    Attributes:
        flair: What ``pipeline.reading.read_case`` takes: NIfTI, DICOM, or a folder of LGG slices.
        out: Folder for the results, made where missing.
        t1: Pre-contrast T1 beside a NIfTI FLAIR; None where missing.
        t1c: Post-contrast T1 beside a NIfTI FLAIR; None where missing.
        series: SeriesInstanceUID to read as FLAIR from a DICOM study; None to find it.
        with_probabilities: Whether to write the probabilities, too.
        with_mesh: Whether to write the surface of the lesions, too.
    """

    flair: Path
    out: Path
    t1: Path | None = None
    t1c: Path | None = None
    series: str | None = None
    with_probabilities: bool = False
    with_mesh: bool = False

    @property
    def name(self) -> str:
        """What its results are named after."""
        return case_name(self.flair)


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case that is read and ready for the network.

    Attributes:
        case: What was read.
        read: What was read from it.
        prepared: The scan as the network takes it.
        read_seconds: Wall-clock time of reading.
    """

    case: Case
    read: ReadScan
    prepared: Prepared
    read_seconds: float


@dataclass(frozen=True)
class CaseResult:
    """Where a case's results are, and what was measured.

    Attributes:
        mask: NIfTI mask on the scan's grid.
        report: JSON, as ``schemas/report.schema.json`` describes it.
        page: HTML, the report to read, in one file.
        overlay: PNG montage with the mask's outline.
        probabilities: NIfTI of probabilities, where asked for.
        segmentation: The mask as DICOM SEG, where the scan was DICOM whose headers allow one.
        mesh: STL of the lesions' surface, where asked for and there is one.
        measurements: Of the mask.
        assessment: How far the mask can be trusted; None where the bundle does not say.
        warnings: What the reader of the result should know, one sentence each.
        seconds: What all steps took together; waiting for other cases' steps does not count.
    """

    mask: Path
    report: Path
    page: Path
    overlay: Path
    probabilities: Path | None
    segmentation: Path | None
    mesh: Path | None
    measurements: Measurements
    assessment: Assessment | None
    warnings: tuple[str, ...]
    seconds: float


def segment_case(
    predictor: Predictor,
    path: Path,
    out: Path,
    *,
    t1: Path | None = None,
    t1c: Path | None = None,
    with_probabilities: bool = False,
    with_mesh: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> CaseResult:
    """Read a scan, segment it, and write mask, report, page and picture. Nothing is written for a bad scan.

    Args:
        predictor: Segments the scan.
        path: As ``read_case`` takes it.
        out: Folder for the results, made where missing.
        t1: Pre-contrast T1; None where missing.
        t1c: Post-contrast T1; None where missing.
        with_probabilities: Whether to write the probabilities, too.
        with_mesh: Whether to write the surface of the lesions, too.
        on_progress: Called with the slices done and their total.

    Raises:
        AR2UNetError: If the scan cannot be read, or a result cannot be written.
    """
    ready = prepare_case(predictor, Case(path, out, t1, t1c, None, with_probabilities, with_mesh))
    return finish_case(predictor, ready, predictor.infer(ready.prepared, on_progress=on_progress))


def prepare_case(predictor: Predictor, case: Case) -> PreparedCase:
    """Read a case and make it ready for the network; many threads may do so at once.

    Raises:
        AR2UNetError: If the scan cannot be read, or there can be no folder for the results.
    """
    check_folder(case.out)
    started = time.perf_counter()
    read = read_case(case.flair, case.t1, case.t1c, case.series)
    seconds = time.perf_counter() - started
    return PreparedCase(case, read, predictor.prepare(read.scan), seconds)


def finish_case(predictor: Predictor, ready: PreparedCase, inferred: Inferred) -> CaseResult:
    """Make the mask of a case from the network's output, and write it with its report and picture.

    Args:
        predictor: What prepared the case and ran the network.
        ready: The case.
        inferred: What the network made of it.

    Raises:
        AR2UNetError: If a result cannot be written.
    """
    case, read, scan = ready.case, ready.read, ready.read.scan
    prediction = predictor.finish(ready.prepared, inferred)
    started = time.perf_counter()
    measurements = measure_scan(scan, prediction.mask)
    make_folder(case.out)
    mask = case.out / f"{case.name}_mask.nii.gz"
    write_mask(prediction.mask, scan, mask)
    probabilities = case.out / f"{case.name}_probabilities.nii.gz" if case.with_probabilities else None
    if probabilities is not None:
        write_probabilities(prediction.probabilities, scan, probabilities)
    segmentation, mesh, unwritten = _write_on_request(predictor, prediction, ready)
    overlay, page = case.out / "overlay.png", case.out / "report.html"
    montage = draw_overlay(scan, prediction.mask, overlay, measurements)
    contours = draw_contours(scan, prediction.mask, measurements)
    stages = {"read": ready.read_seconds, **prediction.seconds, "write": time.perf_counter() - started}
    total = sum(stages.values())
    inputs = {"t1": case.t1, "flair": case.flair, "t1c": case.t1c}
    content = build_report(
        scan=scan,
        measurements=measurements,
        inputs={name: file for name, file in inputs.items() if file is not None},
        bundle_name=predictor.bundle.name,
        bundle_version=predictor.version,
        weights_sha256=predictor.weights_sha256,
        engine=predictor.engine,
        seconds={**stages, "total": total},
        assessment=prediction.assessment,
        warnings=(*read.warnings, *prediction.warnings, *unwritten),
        notes=(*read.notes, *prediction.notes),
    )
    report = case.out / "report.json"
    write_report(report, content)
    write_page(page, content, montage, contours)
    return CaseResult(
        mask=mask,
        report=report,
        page=page,
        overlay=overlay,
        probabilities=probabilities,
        segmentation=segmentation,
        mesh=mesh,
        measurements=measurements,
        assessment=prediction.assessment,
        warnings=tuple(cast("list[str]", content["warnings"])),
        seconds=total,
    )


def _write_on_request(
    predictor: Predictor, prediction: Prediction, ready: PreparedCase
) -> tuple[Path | None, Path | None, tuple[str, ...]]:
    """Write DICOM SEG for DICOM and the mesh where asked for; return both, and what could not be written and why."""
    case, scan, source = ready.case, ready.read.scan, ready.read.source
    segmentation: Path | None = None
    mesh: Path | None = None
    unwritten = []
    # What a scan lacks for one of these shall not cost the other results.
    if source is not None:
        try:
            segmentation = _write_dicom(predictor, prediction, case, scan, source)
        except ScanError as error:
            unwritten.append(f"no DICOM SEG was written: {error}")
    if case.with_mesh:
        from pipeline.formats.mesh import write_mesh

        path = case.out / f"{case.name}_lesion.stl"
        try:
            write_mesh(prediction.mask, scan, path)
            mesh = path
        except ScanError as error:
            unwritten.append(f"no mesh was written: {error}")
    return segmentation, mesh, tuple(unwritten)


def _write_dicom(predictor: Predictor, prediction: Prediction, case: Case, scan: Scan, source: DicomSource) -> Path:
    """Write the mask, and the probabilities where asked for, as DICOM SEG; return the mask's path."""
    from pipeline.formats.dicom.segmentation import write_fractional_segmentation, write_segmentation

    path = case.out / f"{case.name}_seg.dcm"
    name, version, weights = predictor.bundle.name, predictor.version, predictor.weights_sha256
    write_segmentation(
        prediction.mask, scan, source, path, model_name=name, model_version=version, weights_sha256=weights
    )
    if case.with_probabilities:
        fractional, values = case.out / f"{case.name}_probabilities_seg.dcm", prediction.probabilities
        write_fractional_segmentation(
            values, scan, source, fractional, model_name=name, model_version=version, weights_sha256=weights
        )
    return path
