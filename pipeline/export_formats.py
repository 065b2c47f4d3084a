"""A bundle's network for others to run: TorchScript, ONNX, OpenVINO, or its weights alone, for slices of any size."""

from __future__ import annotations

import io
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from pipeline.engines.artefact import Artefact, hash_file, read_artefact
from pipeline.errors import BundleError
from pipeline.exporting import export_bundle
from pipeline.formats.atomic import atomic_write
from pipeline.formats.folders import make_folder
from pipeline.formats.scan import CHANNELS
from pipeline.reference_road import ReferenceRoad

__all__ = ["ENDINGS", "export_network"]

ENDINGS = {"torchscript": ".ts", "onnx": ".onnx", "openvino": ".xml", "state-dict": ".pt"}


def export_network(bundle: Path, format_name: str, path: Path) -> tuple[Path, ...]:
    """Export a bundle's network with its weights, and what has to be done before and after it as JSON.

    The fast engines' own export in the bundle is used, and made anew where it does not fit the weights and the config.

    Args:
        bundle: The bundle's folder.
        format_name: A key of ``ENDINGS``.
        path: Ends in that format's ending; its folder is made where missing.

    Returns:
        What was written: the network's file or files, then ``<path>.json``.

    Raises:
        BundleError: If the bundle cannot be exported, or the ending is another.
        AR2UNetError: If a file cannot be written.
    """
    if path.suffix != ENDINGS[format_name]:
        raise BundleError(f"{path}: a file of the format {format_name} must end in {ENDINGS[format_name]}")
    artefact = _fitting_export(bundle)
    make_folder(path.parent)
    contents = {path: b""}
    if format_name == "onnx":
        contents[path] = artefact.network.read_bytes()
    elif format_name == "openvino":
        contents = _openvino(artefact.network, path)
    else:
        contents[path] = _torch(bundle, scripted=format_name == "torchscript")
    contents[path.with_name(f"{path.name}.json")] = json.dumps(_describe(artefact), indent=2).encode() + b"\n"
    for file, content in contents.items():
        with atomic_write(file) as stream:
            stream.write(content)
    return tuple(contents)


def _fitting_export(bundle: Path) -> Artefact:
    """Return the bundle's export for the fast engines, made now if there is none that fits."""
    try:
        return read_artefact(bundle, hash_file(bundle / "models" / "model.pt"))
    except BundleError:
        return export_bundle(bundle)


def _torch(bundle: Path, *, scripted: bool) -> bytes:
    """Return the network as TorchScript, or its weights as a state dict."""
    import torch

    network = ReferenceRoad(bundle, bundle / "models" / "model.pt", "cpu").network
    file = io.BytesIO()
    if scripted:
        torch.jit.save(torch.jit.script(network), file)
    else:
        torch.save(network.state_dict(), file)
    return file.getvalue()


def _openvino(network: Path, path: Path) -> dict[Path, bytes]:
    """Return OpenVINO's two files, the weights first, in float32."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / path.name
        openvino.save_model(openvino.convert_model(network), model, compress_to_fp16=False)
        return {path.with_suffix(suffix): model.with_suffix(suffix).read_bytes() for suffix in (".bin", ".xml")}


def _describe(artefact: Artefact) -> dict[str, object]:
    """Return what somebody without this software has to do around the network."""
    manifest = asdict(artefact.manifest)
    return {
        "input": {
            "name": "image",
            "shape": ["slices", manifest["in_channels"], "height", "width"],
            "type": "float32",
            "channels": list(CHANNELS),
            "sizes": f"height and width are multiples of {manifest['frame']['divisor']}",
        },
        "before": [
            "Cut the volume along its axial axis: rows to posterior, columns to the patient's left, slices upwards.",
            "Resample, crop to the head and pad as 'frame' says (transforms/geometry.py, find_slice_frame).",
            "Reduce noise above 'noise' (transforms/denoising.py), then normalise each channel in the head as "
            "'intensity' says (transforms/intensity.py, normalize_intensity).",
            "A sequence that is missing is replaced by FLAIR.",
        ],
        "frame": manifest["frame"],
        "noise": manifest["noise"],
        "intensity": manifest["intensity"],
        "output": {"name": "logits", "shape": ["slices", 2, "height", "width"], "channels": ["background", "lesion"]},
        "after": ["Softmax over the channels; the mask is the larger of the two, put back onto the scan's own voxels."],
        "weights_sha256": manifest["weights_sha256"],
        "config_sha256": manifest["config_sha256"],
        "software": manifest["software"],
    }
