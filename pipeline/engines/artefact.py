"""The exported network: written by ``ar2unet export``, and refused where it does not belong to the bundle.

``models/exported/network.onnx`` is the network with its weights, for slices of any size. ``manifest.json`` beside it
says what it was made from, by hash, and holds what the fast road needs of ``inference.yaml``, so that neither YAML
nor MONAI is read to segment a scan.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BundleError
from pipeline.formats.atomic import atomic_write

__all__ = ["Artefact", "Manifest", "hash_file", "read_artefact", "write_manifest"]

FOLDER = Path("models") / "exported"
NETWORK_FILE, MANIFEST_FILE = "network.onnx", "manifest.json"
FORMAT = 2


@dataclass(frozen=True)
class Manifest:
    """What an exported network was made from, and how it is used.

    Attributes:
        weights_sha256: Of the bundle's ``models/model.pt``.
        config_sha256: Of the bundle's ``configs/inference.yaml``.
        network_sha256: Of the exported network itself.
        in_channels: Of the network's input.
        frame: Keyword arguments of ``transforms.geometry.find_slice_frame``.
        noise: Keyword arguments of ``transforms.denoising.reduce_noise``.
        intensity: Keyword arguments of ``transforms.intensity.normalize_intensity``.
        components: Keyword arguments of ``transforms.components.keep_main_components``.
        software: Versions of what exported it.
        format: Of this file.
    """

    weights_sha256: str
    config_sha256: str
    network_sha256: str
    in_channels: int
    frame: dict[str, Any]
    noise: dict[str, Any]
    intensity: dict[str, Any]
    components: dict[str, Any]
    software: dict[str, str]
    format: int = FORMAT


@dataclass(frozen=True)
class Artefact:
    """An exported network that belongs to its bundle.

    Attributes:
        network: ONNX file.
        manifest: What goes with it.
    """

    network: Path
    manifest: Manifest


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits.

    Raises:
        BundleError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path} must be readable: {error.strerror}") from error


def read_artefact(bundle: Path, weights_sha256: str) -> Artefact:
    """Read a bundle's exported network and make sure that it was made from this very bundle.

    Args:
        bundle: The bundle's folder.
        weights_sha256: Of its weights.

    Raises:
        BundleError: If there is none, it is damaged, or it was made from other weights or another config.
    """
    network, path = bundle / FOLDER / NETWORK_FILE, bundle / FOLDER / MANIFEST_FILE
    remedy = "run 'ar2unet export'"
    if not path.is_file() or not network.is_file():
        raise BundleError(f"{bundle.name} has no exported network: {remedy}")
    try:
        fields = json.loads(path.read_bytes())
        if fields["format"] != FORMAT:
            raise ValueError(f"format {fields['format']} in place of {FORMAT}")
        manifest = Manifest(**fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} must be a manifest of this version ({error}): {remedy}") from error
    if manifest.weights_sha256 != weights_sha256:
        raise BundleError(f"the exported network of {bundle.name} was made from other weights: {remedy}")
    if manifest.config_sha256 != hash_file(bundle / "configs" / "inference.yaml"):
        raise BundleError(f"the exported network of {bundle.name} was made from another inference.yaml: {remedy}")
    if manifest.network_sha256 != hash_file(network):
        raise BundleError(f"{network} is not the file that its manifest describes: {remedy}")
    return Artefact(network, manifest)


def write_manifest(bundle: Path, manifest: Manifest) -> None:
    """Write a manifest beside the exported network.

    Raises:
        AR2UNetError: If the file cannot be written.
    """
    with atomic_write(bundle / FOLDER / MANIFEST_FILE) as file:
        file.write(json.dumps(asdict(manifest), indent=2).encode() + b"\n")
