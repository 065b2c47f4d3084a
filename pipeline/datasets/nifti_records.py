"""A prepared scan's files, and the record beside its mask by which a later run finds it done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.datasets.datalist import SEQUENCES, remove, sidecar_path, write_json, write_volume
from pipeline.datasets.nifti_checks import Sample
from pipeline.datasets.nifti_pairs import LabelScheme, Pair
from pipeline.formats.bids import sort_entities
from pipeline.formats.nifti_header import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LABELS", "SITE", "fingerprint", "read_record", "write_sample"]

# Part of each fingerprint: raise it when what is written from the same files changes, and every scan is redone.
FORMAT = 1

LABELS = {"0": "background", "1": "FLAIR abnormality"}
SITE = "unknown"


def fingerprint(pair: Pair, scheme: LabelScheme) -> str:
    """Hash the bytes of a pair's files, what its label values mean, and the format they are written in.

    A file that cannot be read counts as empty: reading the pair will tell.
    """
    digest = hashlib.sha256(f"nifti {FORMAT} {sorted(scheme.lesion)} {sorted(scheme.allowed or ())}".encode())
    for name, path in {**pair.images, "label": pair.label}.items():
        try:
            content = path.read_bytes()
        except OSError:
            content = b""
        digest.update(f"\n{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _entry_of(pair: Pair, *, slices: int, lesion_voxels: int, filled: Sequence[str]) -> dict[str, Any]:
    """Describe a scan as the datalist does, its fold still to come."""
    session = dict(pair.entities).get("ses")
    anat = Path(pair.patient, *([] if session is None else [f"ses-{session}"]), "anat")
    agents = {"t1": (), "flair": (), "t1c": (("ce", "gadolinium"),)}
    suffixes = {name: suffix.rpartition("_")[2] for name, suffix in SEQUENCES.items()}

    def named(suffix: str, *more: tuple[str, str]) -> str:
        return "_".join([*(f"{key}-{value}" for key, value in sort_entities([*pair.entities, *more])), suffix])

    images = [(anat / f"{named(suffixes[name], *agents[name])}.nii.gz").as_posix() for name in SEQUENCES]
    label = Path("derivatives", "manual") / anat / f"{named('mask', ('label', 'lesion'))}.nii.gz"
    return {
        "subject": pair.subject,
        "patient": pair.patient,
        "site": SITE,
        "fold": None,
        "image": images,
        "label": label.as_posix(),
        "slices": slices,
        "lesion_voxels": lesion_voxels,
        "filled": list(filled),
        "source": printable(Path(pair.source)),
    }


def read_record(out: Path, pair: Pair, digest: str) -> tuple[dict[str, Any], str] | None:
    """Return entry and FLAIR hash of a scan that is prepared already from these very files, else None."""
    entry = _entry_of(pair, slices=0, lesion_voxels=0, filled=())
    files = [out / name for name in (*entry["image"], entry["label"])]
    if not all(path.is_file() for file in files for path in (file, sidecar_path(file))):
        return None
    try:
        record = json.loads(sidecar_path(files[-1]).read_bytes())
        if record["SourceFingerprint"] != digest:
            return None
        slices, voxels, filled = int(record["Slices"]), int(record["LesionVoxels"]), list(record["FilledWithFLAIR"])
        return _entry_of(pair, slices=slices, lesion_voxels=voxels, filled=filled), str(record["FLAIRVoxelsSHA256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not our record, or a damaged one: the scan is done again


def write_sample(out: Path, pair: Pair, sample: Sample, digest: str) -> dict[str, Any]:
    """Write a scan's volumes, mask and sidecars, the mask's sidecar, which says "done", last."""
    import numpy as np

    # Of the volume's axes the one closest to feet to head.
    axis = int(np.abs(sample.affine[2, :3] / np.linalg.norm(sample.affine[:3, :3], axis=0)).argmax())
    voxels = int(np.count_nonzero(sample.label))
    entry = _entry_of(pair, slices=sample.label.shape[axis], lesion_voxels=voxels, filled=sample.filled)
    common = {"SpacingKnown": sample.spacing_known, "SourceScan": entry["source"]}
    label = out / entry["label"]
    # First of all: a run killed half-way must not leave a record that vouches for a mixture of old and new files.
    remove(sidecar_path(label))
    for name, path in zip(SEQUENCES, entry["image"], strict=True):
        volume = _compact(sample.volumes[name])
        write_volume(out / path, volume, sample.affine, spacing_known=sample.spacing_known)
        made = {"CopyOfFLAIR": name in sample.filled, "ResampledOntoFLAIR": name in sample.resampled}
        write_json(sidecar_path(out / path), {**common, **made})
    write_volume(label, sample.label, sample.affine, spacing_known=sample.spacing_known)
    content = {
        "Type": "Lesion",
        "Labels": LABELS,
        "Sources": [f"bids:raw:{entry['image'][1]}"],
        **common,
        "SourceFingerprint": digest,
        "FLAIRVoxelsSHA256": sample.flair_sha256,
        "Slices": entry["slices"],
        "LesionVoxels": voxels,
        "FilledWithFLAIR": list(sample.filled),
    }
    write_json(sidecar_path(label), content)
    return entry


def _compact(volume: NDArray[np.float32]) -> NDArray[np.generic]:
    """Return a volume as int16 where nothing is lost by it: a third of the room on the disk."""
    import numpy as np

    limits = np.iinfo(np.int16)
    if volume.min() < limits.min or volume.max() > limits.max:
        return volume
    whole = volume.astype(np.int16)
    return whole if np.array_equal(whole, volume) else volume
