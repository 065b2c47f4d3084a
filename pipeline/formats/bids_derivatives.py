"""Results as a BIDS derivative, each file under the name and with the sidecar that BIDS wants.

::

    OUT/dataset_description.json  README  .bidsignore
    OUT/sub-<id>/[ses-<id>/]anat/<stem>_label-lesion_{mask,probseg}.{nii.gz,json}
    OUT/sub-<id>/figures/<stem>_{report.json,report.html,overlay.png,lesion.stl}

BIDS has no names for reports and pictures, so ``.bidsignore`` names the folder ``figures``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.errors import ScanError
from pipeline.formats.atomic import atomic_write
from pipeline.formats.bids import BidsScan, sort_entities
from pipeline.formats.nifti_header import printable
from pipeline.provenance import software_version
from pipeline.report import NOTICE

__all__ = ["DerivativePaths", "derivative_paths", "write_dataset_description", "write_derivatives"]

BIDS_VERSION = "1.10.0"
RAW = "raw"  # what BIDS URIs call the data set that was segmented
README = f"""# FLAIR abnormality, segmented by AR2-UNet

{NOTICE}

`*_label-lesion_mask.nii.gz` holds 0 (background) and 1 (FLAIR abnormality) on the voxels of the FLAIR,
`*_label-lesion_probseg.nii.gz`, where it was asked for, the probabilities that the mask was made from.
Each subject's folder `figures` holds a report and a picture of every scan. They are no part of BIDS, so
`.bidsignore` names them.
"""
DESCRIPTIONS = {
    "mask": "FLAIR abnormality, segmented by a neural network and not corrected by hand",
    "probseg": "Probability of FLAIR abnormality by a neural network",
}
MEANINGS = {
    "mask": {
        "Labels": {"0": "background", "1": "FLAIR abnormality"},
        "Threshold": 0.5,  # of the probability: the likelier of the two labels
    },
    "probseg": {},
}


@dataclass(frozen=True)
class DerivativePaths:
    """Where the results of one scan belong; not all of them need be there."""

    mask: Path
    probabilities: Path
    report: Path
    page: Path
    overlay: Path
    surface: Path


def derivative_paths(scan: BidsScan, out: Path) -> DerivativePaths:
    """Return the names that the results of a scan have in the derivative ``out``."""
    subject = out / scan.subject
    anat = (subject if scan.session is None else subject / scan.session) / "anat"
    stem = "_".join(f"{key}-{value}" for key, value in sort_entities([*scan.entities, ("label", "lesion")]))
    figures = subject / "figures"
    return DerivativePaths(
        mask=anat / f"{stem}_mask.nii.gz",
        probabilities=anat / f"{stem}_probseg.nii.gz",
        report=figures / f"{scan.stem}_report.json",
        page=figures / f"{scan.stem}_report.html",
        overlay=figures / f"{scan.stem}_overlay.png",
        surface=figures / f"{scan.stem}_lesion.stl",
    )


def write_dataset_description(out: Path, root: Path, *, ignored: Sequence[str] = ()) -> None:
    """Write what makes a folder a BIDS derivative: its description, README and ``.bidsignore``.

    Args:
        out: The derivative's folder, made where missing.
        root: The BIDS tree that is segmented; its name, authors, licence and DOI are passed on.
        ignored: What else lies in ``out`` and is no part of BIDS, as patterns of ``.bidsignore`` without a slash at
            the end, such as ``cohort*``.

    Raises:
        AR2UNetError: If a file cannot be written.
    """
    raw = _read_description(root)
    # Where both lie below one folder the link is relative, and holds after they are moved together.
    url = quote(Path(os.path.relpath(root.resolve(), out.resolve())).as_posix())
    source = {"URL": url, **({"DOI": raw["DatasetDOI"]} if "DatasetDOI" in raw else {})}
    name = raw.get("Name") or root.resolve().name
    description = {
        "Name": f"{name}: FLAIR abnormality by AR2-UNet",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        **{key: raw[key] for key in ("License", "Authors") if raw.get(key)},
        "GeneratedBy": [{"Name": "ar2unet", "Version": software_version(), "Description": NOTICE}],
        "SourceDatasets": [source],
        "DatasetLinks": {RAW: url},
    }
    _write(out / "README", README.encode())
    _write(out / ".bidsignore", "".join(f"{pattern}\n" for pattern in ("figures", *ignored)).encode())
    _write_json(out / "dataset_description.json", description)


def write_derivatives(scan: BidsScan, results: Path, out: Path) -> DerivativePaths:
    """Copy what ``segment_case`` left in a folder to where a BIDS derivative has it, with sidecars.

    Files of an earlier run are replaced, each in one step, the report last: where it is, all is. Nothing depends on
    the time or the machine, so the same results always give the same bytes. ``results`` stays as it is.

    Args:
        scan: What was segmented.
        results: Folder with ``<name of the FLAIR>_mask.nii.gz`` and ``report.json``, perhaps also
            ``<name of the FLAIR>_{probabilities.nii.gz,lesion.stl}``, ``report.html`` and ``overlay.png``.
        out: The derivative's folder, described by :func:`write_dataset_description`.

    Returns:
        The names of the results, of which those that ``results`` lacked do not exist.

    Raises:
        ScanError: If the mask or the report is missing or cannot be read.
        AR2UNetError: If a file cannot be written.
    """
    paths = derivative_paths(scan, out)
    content = _read_result(results / "report.json")
    try:
        report = json.loads(content)
        used = report["inputs"]
        model = {**report["bundle"], "weights_sha256": report["weights_sha256"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ScanError(
            f"{printable(results / 'report.json')}: expected the report of a case, got {error!r}"
        ) from error
    sequences = {"flair": scan.flair, "t1": scan.t1, "t1c": scan.t1c}
    sources = [_uri(scan.root, path) for name, path in sequences.items() if path is not None and name in used]

    # First of all: a run killed half-way must not leave a report that vouches for other files.
    _remove(paths.report)
    volumes = {"mask": ("mask", paths.mask), "probseg": ("probabilities", paths.probabilities)}
    for suffix, (ending, target) in volumes.items():
        sidecar = target.with_name(target.name.removesuffix(".nii.gz") + ".json")
        if _place(results / f"{scan.stem}_FLAIR_{ending}.nii.gz", target, needed=suffix == "mask"):
            _write_json(sidecar, _sidecar(suffix, sources, model))
        else:
            _remove(sidecar)
    _place(results / "report.html", paths.page)
    _place(results / "overlay.png", paths.overlay)
    _place(results / f"{scan.stem}_FLAIR_lesion.stl", paths.surface)
    _write(paths.report, content)
    return paths


def _place(source: Path, target: Path, *, needed: bool = False) -> bool:
    """Copy a result, or remove an earlier run's where there is none now; return whether there is one."""
    if not needed and not source.exists():
        _remove(target)
        return False
    _write(target, _read_result(source))
    return True


def _sidecar(suffix: str, sources: Sequence[str], model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "Type": "Lesion",
        "Description": DESCRIPTIONS[suffix],
        "Sources": list(sources),
        "SpatialReference": sources[0],  # the FLAIR, on whose voxels all results lie
        **MEANINGS[suffix],
        "Model": {"Name": model["name"], "Version": model["version"], "WeightsSHA256": model["weights_sha256"]},
        "Notice": NOTICE,
    }


def _uri(root: Path, path: Path) -> str:
    return f"bids:{RAW}:{quote(path.relative_to(root).as_posix())}"


def _read_description(root: Path) -> dict[str, Any]:
    """Return a tree's description; a tree may be without, and a damaged one tells nothing."""
    try:
        description = json.loads((root / "dataset_description.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return description if isinstance(description, dict) else {}


def _read_result(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ScanError(f"{printable(path)}: expected a result of a case, got {error.strerror or error}") from error


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScanError(f"{printable(path.parent)}: cannot be made: {error.strerror or error}") from error
    with atomic_write(path) as file:
        file.write(content)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ScanError(f"{printable(path)}: cannot be replaced: {error.strerror or error}") from error
