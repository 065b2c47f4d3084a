"""The data contract every publisher's layout is brought to: BIDS-like NIfTI files and one ``datalist.json``.

::

    DATA/datalist.json
    DATA/participants.tsv  dataset_description.json  README
    DATA/sub-<id>/anat/sub-<id>_{T1w,FLAIR,ce-gadolinium_T1w}.{nii.gz,json}
    DATA/derivatives/manual/sub-<id>/anat/sub-<id>_label-lesion_mask.{nii.gz,json}
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import AR2UNetError, DatasetError
from pipeline.formats.atomic import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "SEQUENCES",
    "Failure",
    "PreparedDataset",
    "image_path",
    "label_path",
    "remove",
    "sidecar_path",
    "write_atomically",
    "write_dataset_files",
    "write_json",
    "write_volume",
]

# Channel name -> BIDS suffix, in channel order.
SEQUENCES = {"t1": "T1w", "flair": "FLAIR", "t1c": "ce-gadolinium_T1w"}

BIDS_VERSION = "1.10.0"
PARTICIPANTS = {
    "participant_id": "The subject's folder",
    "site": "Code of the hospital that scanned the patient",
    "slices": "Number of axial slices",
    "lesion_voxels": "Voxels inside the manual mask",
    "source": "The publisher's name of the patient's folder",
}

# Level 1 is three times as fast as the default and the files are hardly larger.
GZIP_LEVEL = 1
# NIFTI_XFORM_ALIGNED_ANAT: the orientation holds, but these are not the scanner's coordinates (that would be 1).
ALIGNED = 2


@dataclass(frozen=True)
class Failure:
    """A patient that could not be prepared, and why."""

    patient: str
    reason: str


@dataclass(frozen=True)
class PreparedDataset:
    """What a preparation did: how many subjects the datalist holds, how many were written or already there."""

    datalist: Path
    subjects: int
    written: int
    unchanged: int
    failures: tuple[Failure, ...]


def image_path(subject: str, sequence: str) -> Path:
    """Return the path, relative to the data root, of a sequence (``t1``, ``flair`` or ``t1c``) of ``sub-<id>``."""
    return Path(subject, "anat", f"{subject}_{SEQUENCES[sequence]}.nii.gz")


def label_path(subject: str) -> Path:
    """Return the path, relative to the data root, of the manual mask of ``sub-<id>``."""
    return Path("derivatives", "manual", subject, "anat", f"{subject}_label-lesion_mask.nii.gz")


def sidecar_path(image: Path) -> Path:
    """Return the JSON sidecar's path of ``X.nii.gz``."""
    return image.with_name(image.name.removesuffix(".nii.gz") + ".json")


def write_atomically(path: Path, content: bytes) -> bool:
    """Write a file so that its name never holds a part of it, and leave it alone where it is the same already.

    Returns:
        Whether anything was written.

    Raises:
        DatasetError: If the file or its folder cannot be written.
    """
    try:
        if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise DatasetError(f"cannot write {path}: {error.strerror or error}") from error
    except AR2UNetError as error:
        raise DatasetError(str(error)) from error
    return True


def remove(path: Path) -> None:
    """Remove a file where there is one.

    Raises:
        DatasetError: If it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DatasetError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> bool:
    """Write JSON as :func:`write_atomically` does."""
    return write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_volume(
    path: Path, voxels: NDArray[np.generic], affine: NDArray[np.float64], *, spacing_known: bool = False
) -> None:
    """Write a volume as ``.nii.gz``, its type kept; the same volume always gives the same bytes.

    Where the spacing is not known, the spatial unit is "unknown" and every voxel size is exactly 1, which together
    say so; the orientation is carried by qform and sform.

    Args:
        path: Ends in ``.nii.gz``.
        voxels: Volume ``(I, J, K)``.
        affine: Voxel to RAS+, ``(4, 4)``, in mm; axes of unit length where the spacing is not known.
        spacing_known: Whether the affine's millimetres are some.

    Raises:
        DatasetError: If the file cannot be written.
    """
    import nibabel as nib

    make_image: Any = nib.Nifti1Image  # nibabel's methods carry no types
    image = make_image(voxels, affine)
    image.header.set_xyzt_units("mm" if spacing_known else "unknown", "unknown")
    if not spacing_known:
        image.header["descrip"] = b"voxel spacing unknown; 1 is a placeholder"
    image.set_qform(affine, code=ALIGNED)
    image.set_sform(affine, code=ALIGNED)
    # No time of writing in the gzip header, or two runs would differ.
    write_atomically(path, gzip.compress(image.to_bytes(), compresslevel=GZIP_LEVEL, mtime=0))


def write_dataset_files(
    out: Path,
    entries: Sequence[Mapping[str, Any]],
    header: Mapping[str, Any],
    *,
    authors: Sequence[str],
    processing: str = "stacked the published slices; nothing resampled",
) -> None:
    """Write what describes the data set as a whole: BIDS' files, then ``datalist.json``, which names the rest.

    Args:
        out: The data root.
        entries: The datalist's entries, with ``subject``, ``site``, ``slices``, ``lesion_voxels``, ``source``;
            with several scans a patient also ``patient``, which they share.
        header: The datalist's top level beside ``training``; ``name``, ``source``, ``reference``, ``licence`` and
            ``spacing`` also go to BIDS' files.
        authors: Of the published data set.
        processing: What was done to its images.

    Raises:
        DatasetError: If a file cannot be written.
    """
    about = {
        "BIDSVersion": BIDS_VERSION,
        "License": header["licence"],
        "Authors": list(authors),
        "ReferencesAndLinks": [header["reference"], header["source"]],
        "GeneratedBy": [{"Name": "ar2unet prepare", "Description": processing}],
    }
    readme = (
        f"# {header['name']}\n\nSource: {header['source']}.\nReference: {header['reference']}.\n"
        f"Licence: {header['licence']}.\n\nVoxel spacing: {header['spacing']}.\n\n"
        "`datalist.json` lists each patient's files and the fold it belongs to; a patient is in one fold only.\n"
        "Manual masks are in `derivatives/manual`. A sequence that is a mere copy of FLAIR says so in its sidecar.\n"
    )
    masks = out / "derivatives" / "manual"
    table = "\n".join("\t".join(row) for row in [tuple(PARTICIPANTS), *_participants(entries)]) + "\n"

    write_atomically(out / "README", readme.encode())
    write_atomically(out / ".bidsignore", b"datalist.json\n")
    write_json(out / "dataset_description.json", {"Name": header["name"], "DatasetType": "raw", **about})
    write_json(out / "participants.json", {name: {"Description": text} for name, text in PARTICIPANTS.items()})
    write_atomically(out / "participants.tsv", table.encode())
    write_atomically(masks / "README", f"# Manual masks\n\n{readme.partition(chr(10) * 2)[2]}".encode())
    write_json(
        masks / "dataset_description.json",
        {
            "Name": f"{header['name']}: manual masks",
            "DatasetType": "derivative",
            **about,
            "DatasetLinks": {"raw": "../.."},
        },
    )
    write_json(out / "datalist.json", {**header, "training": list(entries)})


def _participants(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return a row a patient, whose scans are summed up."""
    scans: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        scans.setdefault(entry.get("patient", entry["subject"]), []).append(entry)
    return [
        (
            patient,
            own[0]["site"],
            str(sum(entry["slices"] for entry in own)),
            str(sum(entry["lesion_voxels"] for entry in own)),
            ", ".join(entry["source"] for entry in own),
        )
        for patient, own in scans.items()
    ]
