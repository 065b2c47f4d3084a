"""Jobs of the kind "segmentation", in the worker process."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.case import Case, finish_case, prepare_case
from pipeline.formats.atomic import atomic_write
from pipeline.predictor import SEGMENTATION_BUNDLE, Predictor
from pipeline.stream import keep_memory
from pipeline.web.kinds import Order, Outcome, WorkerOptions

if TYPE_CHECKING:
    from pipeline.formats.scan import Scan

__all__ = ["SegmentationRunner", "write_view"]

BROWSER_ENDINGS = (".nii", ".nii.gz")
NIFTI_HEADER_BYTES, MILLIMETRE, SCANNER, ALIGNED = 352, 2, 1, 2


class SegmentationRunner:
    """Segment scans with one predictor, which stays loaded.

    Raises:
        BundleError: If the bundle or the engine cannot serve.
    """

    def __init__(self, options: WorkerOptions) -> None:
        keep_memory()  # before the engine's threads get heaps of their own
        warnings.filterwarnings("ignore")  # what libraries say to developers is not for the log
        bundle = SEGMENTATION_BUNDLE if options.bundle is None else Path(options.bundle)
        self.predictor = Predictor(bundle, device=options.device, engine=options.engine)

    def about(self) -> Mapping[str, str]:
        """Return what serves; waits for the engine."""
        predictor = self.predictor
        return {
            "bundle": predictor.bundle.name,
            "bundle_version": predictor.version,
            "engine": predictor.engine,
            "weights_sha256": predictor.weights_sha256,
            "note": predictor.note or "",
        }

    def run(self, order: Order, on_progress: Callable[[str, int, int], None]) -> Outcome:
        """Segment one scan; the folder of results is that of ``pipeline.case``.

        Raises:
            AR2UNetError: If the scan cannot be read, or a result cannot be written.
        """
        paths = {role: Path(file) for role, file in order.files.items()}
        case = Case(paths["flair"], Path(order.work), paths.get("t1"), paths.get("t1c"), with_probabilities=True)
        on_progress("reading", 0, 0)
        ready = prepare_case(self.predictor, case)
        scan = paths["flair"]
        if not scan.name.endswith(BROWSER_ENDINGS):
            scan = Path(order.view)
            write_view(ready.read.scan, scan)
        inferred = self.predictor.infer(ready.prepared, on_progress=lambda n, total: on_progress("network", n, total))
        slices = ready.read.scan.spatial_shape
        on_progress("writing", max(slices), max(slices))
        result = finish_case(self.predictor, ready, inferred)
        values = {field.name: getattr(result, field.name) for field in fields(result)}
        return Outcome({file.name: name for name, file in values.items() if isinstance(file, Path)}, str(scan))


def write_view(scan: Scan, path: Path) -> None:
    """Write the FLAIR as uncompressed NIfTI, which a browser shows: int16 where that loses nothing, else float32.

    Args:
        scan: On whose grid the mask lies.
        path: Ends in .nii; its folder must exist.

    Raises:
        AR2UNetError: If the file cannot be written.
    """
    from nibabel.nifti1 import Nifti1Header

    flair = scan.flair
    low, high = float(flair.min()), float(flair.max())
    whole = all((plane == np.rint(plane)).all() for plane in flair.transpose(2, 0, 1))
    dtype = np.dtype("<i2" if whole and low >= -(2**15) and high < 2**15 else "<f4")
    header = Nifti1Header(endianness="<")  # type: ignore[no-untyped-call]
    header.set_data_dtype(dtype)  # type: ignore[no-untyped-call]
    header.set_data_shape(flair.shape)  # type: ignore[no-untyped-call]
    code = ALIGNED if scan.spacing is None else SCANNER
    header.set_sform(scan.affine, code=code)  # type: ignore[no-untyped-call]
    header.set_qform(scan.affine, code=code)  # type: ignore[no-untyped-call]
    header["xyzt_units"] = 0 if scan.spacing is None else MILLIMETRE
    header["vox_offset"], header["magic"] = NIFTI_HEADER_BYTES, b"n+1"
    with atomic_write(path) as file:
        file.write(header.binaryblock + bytes(4))
        for k in range(flair.shape[2]):
            file.write(flair[:, :, k].astype(dtype).tobytes(order="F"))
