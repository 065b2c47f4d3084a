"""Weights files: read safely, and fit into the network they belong to."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import BundleError, first_line

if TYPE_CHECKING:
    import torch

__all__ = ["load_weights"]


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
