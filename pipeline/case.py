"""One case: a scan goes in, a folder with its mask, report and picture comes out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ScanError
from pipeline.formats.nifti import read_scan, write_mask, write_probabilities
from pipeline.formats.scan import Scan
from pipeline.measurement import Measurements, measure
from pipeline.overlay import draw_overlay
from pipeline.predictor import Predictor
from pipeline.report import build_report, write_report

if TYPE_CHECKING:
    from pipeline.confidence.assessment import Assessment

__all__ = ["CaseResult", "case_name", "read_case", "segment_case"]

NIFTI_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class CaseResult:
    """Where a case's results are, and what was measured.

    Attributes:
        mask: NIfTI mask on the scan's grid.
        report: JSON, as ``schemas/report.schema.json`` describes it.
        overlay: PNG montage with the mask's outline.
        probabilities: NIfTI of probabilities, where asked for.
        measurements: Of the mask.
        assessment: How far the mask can be trusted; None where the bundle does not say.
        seconds: From the first byte read to the last written.
    """

    mask: Path
    report: Path
    overlay: Path
    probabilities: Path | None
    measurements: Measurements
    assessment: Assessment | None
    seconds: float


def case_name(path: Path) -> str:
    """Return a scan's name for its results: the file's without its ending, or the folder's."""
    for ending in NIFTI_ENDINGS:
        if path.name.lower().endswith(ending) and path.name.lower() != ending:
            return path.name[: -len(ending)]
    return path.resolve().name if path.is_dir() else path.name


def read_case(path: Path, t1: Path | None = None, t1c: Path | None = None) -> Scan:
    """Read a FLAIR NIfTI file with its other sequences, or one patient's folder of the LGG slices.

    Args:
        path: NIfTI file, or a folder of ``<patient>_<k>.tif`` slices, which hold all three sequences.
        t1: Pre-contrast T1 on the FLAIR's grid; None where missing.
        t1c: Post-contrast T1 on the FLAIR's grid; None where missing.

    Raises:
        ScanError: If a file is not a scan that can be segmented.
        DatasetError: If a folder of slices is incomplete or damaged.
    """
    if not path.is_dir():
        return read_scan(path, t1, t1c)
    if t1 is not None or t1c is not None:
        raise ScanError(f"{path.name}: a folder of slices holds its own t1 and t1c; leave out --t1 and --t1c")
    if not any(path.glob("*.tif")):
        raise ScanError(f"{path.name}: a folder must hold the slices <patient>_<k>.tif of one patient, found none")
    from pipeline.datasets.lgg_slices import read_lgg_patient

    patient = read_lgg_patient(path, with_mask=False)
    image = patient.volume.astype("float32")
    if image[1].min() == image[1].max():
        raise ScanError(f"{path.name}: all FLAIR voxels are {image[1].min():g}; an image must vary")
    return Scan(image=image, affine=patient.affine, spacing=None, source=str(path))


def segment_case(
    predictor: Predictor,
    path: Path,
    out: Path,
    *,
    t1: Path | None = None,
    t1c: Path | None = None,
    with_probabilities: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> CaseResult:
    """Read a scan, segment it, and write mask, report and picture. Nothing is written for a bad scan.

    Args:
        predictor: Segments the scan.
        path: As ``read_case`` takes it.
        out: Folder for the results, made where missing.
        t1: Pre-contrast T1; None where missing.
        t1c: Post-contrast T1; None where missing.
        with_probabilities: Whether to write the probabilities, too.
        on_progress: Called with the slices done and their total.

    Raises:
        AR2UNetError: If the scan cannot be read, or a result cannot be written.
    """
    started = time.perf_counter()
    scan = read_case(path, t1, t1c)
    read = time.perf_counter()
    prediction = predictor.predict(scan, on_progress=on_progress)
    predicted = time.perf_counter()
    measurements = measure(prediction.mask, scan.spacing, scan.affine)

    name = case_name(path)
    _make_folder(out)
    mask = out / f"{name}_mask.nii.gz"
    write_mask(prediction.mask, scan, mask)
    probabilities = out / f"{name}_probabilities.nii.gz" if with_probabilities else None
    if probabilities is not None:
        write_probabilities(prediction.probabilities, scan, probabilities)
    overlay = out / "overlay.png"
    draw_overlay(scan, prediction.mask, overlay, measurements)
    total = time.perf_counter() - started
    seconds = {"read": read - started, **prediction.seconds, "write": time.perf_counter() - predicted, "total": total}
    inputs = {"t1": t1, "flair": path, "t1c": t1c}
    report = out / "report.json"
    write_report(
        report,
        build_report(
            scan=scan,
            measurements=measurements,
            inputs={name: file for name, file in inputs.items() if file is not None},
            bundle_name=predictor.bundle.name,
            bundle_version=predictor.version,
            weights_sha256=predictor.weights_sha256,
            engine=predictor.engine,
            seconds=seconds,
            assessment=prediction.assessment,
        ),
    )
    return CaseResult(mask, report, overlay, probabilities, measurements, prediction.assessment, total)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScanError(f"cannot make the folder {folder} for the results: {error.strerror}") from error
