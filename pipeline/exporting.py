"""From a bundle's weights to the exported network of the fast road."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.engines.artefact import FOLDER, NETWORK_FILE, Artefact, Manifest, hash_file, write_manifest
from pipeline.errors import BundleError
from pipeline.formats.atomic import atomic_write
from pipeline.formats.folders import make_folder
from pipeline.reference_road import ReferenceRoad

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigParser

__all__ = ["export_bundle"]

# What the fast road does, step by step, as the config names it. Another chain is for the reference road alone.
VOLUME_TRANSFORMS = ("ToSliceFramed", "ReduceNoised", "NormalizeHeadIntensityd", "FillSequencesd")
PROBABILITY_TRANSFORMS = ("Activationsd", "FromSliceFramed")
MASK_TRANSFORMS = ("AsDiscreted", "KeepMainComponentsd", "CastToTyped")
# What the manifest tells of them; the others have no parameters.
PARAMETERS = {
    "frame": ("ToSliceFramed", ("pixel_spacing", "divisor", "crop_to_head", "margin")),
    "noise": ("ReduceNoised", ("highest_noise",)),
    "intensity": ("NormalizeHeadIntensityd", ("lower_percentile", "upper_percentile")),
    "components": ("KeepMainComponentsd", ("smallest_share",)),
}

# Of logits between the exported network and the one it was made from, as a share of the largest of them.
LARGEST_DIFFERENCE = 1e-4
EXAMPLE_SHAPE = (2, 64, 96)  # slices, height and width of what it is tried on
OTHER_SHAPE = (1, 80, 48)  # so that nothing of the example's size is burnt in


def export_bundle(bundle: Path) -> Artefact:
    """Export a bundle's network with its weights, and write down what surrounds it.

    Args:
        bundle: The bundle's folder, with ``configs/inference.yaml`` and ``models/model.pt``.

    Raises:
        BundleError: If the weights do not fit, or the fast road cannot do what the config says.
        AR2UNetError: If the files cannot be written.
    """
    weights = bundle / "models" / "model.pt"
    for file in (weights, bundle / "configs" / "inference.yaml"):
        if not file.is_file():
            raise BundleError(f"{bundle} must be a bundle with configs and weights, got none at {file}")
    road = ReferenceRoad(bundle, weights, "cpu")
    # What torch and MONAI say to developers is not for the user's eyes.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parameters = _surroundings(road.config)
        in_channels = int(road.config.get_parsed_content("network_def#in_channels"))
        network = bundle / FOLDER / NETWORK_FILE
        _write_network(road.network, in_channels, network)
    manifest = Manifest(
        weights_sha256=hash_file(weights),
        config_sha256=hash_file(bundle / "configs" / "inference.yaml"),
        network_sha256=hash_file(network),
        in_channels=in_channels,
        frame=parameters["frame"],
        noise=parameters["noise"],
        intensity=parameters["intensity"],
        components=parameters["components"],
        software={name: metadata.version(name) for name in ("torch", "monai", "onnx")},
    )
    write_manifest(bundle, manifest)
    return Artefact(network, manifest)


def _surroundings(config: ConfigParser) -> dict[str, dict[str, Any]]:
    """Return the parameters that the config's transforms have, by the step of the fast road they belong to.

    Raises:
        BundleError: If the config does anything that the fast road does not do.
    """
    chains = {
        "volume_transforms": VOLUME_TRANSFORMS,
        "probability_transforms": PROBABILITY_TRANSFORMS,
        "mask_transforms": MASK_TRANSFORMS,
    }
    parsed: dict[str, Sequence[Any]] = {key: config.get_parsed_content(key) for key in chains}
    for key, expected in chains.items():
        found = tuple(type(transform).__name__ for transform in parsed[key])
        if found != expected:
            raise BundleError(f"{key} must be {', '.join(expected)} to be exported, got {', '.join(found)}")
    context, classes = config["slice_context"], config.get_parsed_content("network_def#out_channels")
    if context != 0 or classes != 2:
        raise BundleError(f"slice_context must be 0 and out_channels 2 to be exported, got {context} and {classes}")
    transforms = {type(transform).__name__: transform for chain in parsed.values() for transform in chain}
    return {
        step: {name: getattr(transforms[transform], name) for name in names}
        for step, (transform, names) in PARAMETERS.items()
    }


def _write_network(network: torch.nn.Module, in_channels: int, path: Path) -> None:
    """Write a network as ONNX for slices ``(B, C, H, W)`` of any number and size, and try it."""
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # only here: importing torch sets its loggers' levels
    generator = torch.Generator().manual_seed(0)
    slices, other = (
        torch.randn(shape[0], in_channels, *shape[1:], generator=generator) for shape in (EXAMPLE_SHAPE, OTHER_SHAPE)
    )
    any_size = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    # Plain memory order: exporters do not know channels last, and every engine chooses an order of its own.
    network = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    program = torch.onnx.export(
        network,
        (slices,),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": any_size},
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise BundleError("torch must return the exported network, got None")
    make_folder(path.parent)
    with atomic_write(path) as file:
        file.write(program.model_proto.SerializeToString())
    for image in (slices, other):
        _compare(network, path, image)


def _compare(network: torch.nn.Module, path: Path, image: torch.Tensor) -> None:
    """Refuse an exported network that does not compute what its original does."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (exported,) = session.run(None, {"image": image.numpy()})
    with torch.inference_mode():
        logits = network(image)
    difference = float((torch.from_numpy(exported) - logits).abs().max() / logits.abs().max())
    if not difference <= LARGEST_DIFFERENCE:
        path.unlink()
        raise BundleError(f"the exported network's logits must equal the original's, they differ by {difference:.2%}")
