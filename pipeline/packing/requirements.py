"""Whether a bundle's metadata name the packages that its code imports."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import packages_distributions
from typing import Any

from pipeline.packing.sources import PACKAGE, is_ours

__all__ = ["listed_distributions", "missing_distributions", "needed_distributions"]

# The fields of metadata.json that name one package each.
OWN_FIELDS = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
# What `python -m monai.bundle` needs and MONAI does not bring along: for its command line, for YAML, for
# `verify_metadata` and for `onnx_export`. A field for optional packages would overwrite the required ones in MONAI.
FOR_MONAI = frozenset({"fire", "pyyaml", "jsonschema", "onnx", "onnxscript"})
# Modules that need a package of another name than the one that they lie in.
BEHIND = {"torch.utils.tensorboard": "tensorboard"}


def needed_distributions(names: Iterable[str]) -> set[str]:
    """Return the packages that imports need to be installed, MONAI's own needs included.

    Args:
        names: Dotted names that code or configs import; MONAI's short names (``LoadImaged``) are passed over.
    """
    distributions = packages_distributions()
    needed = set(FOR_MONAI)
    for name in names:
        root = name.partition(".")[0]
        if is_ours(name) or root == PACKAGE or root in sys.stdlib_module_names:
            continue
        needed |= {_normal(found) for found in distributions.get(root, ())[:1]}
        needed |= {package for module, package in BEHIND.items() if name.startswith(module)}
    return needed


def listed_distributions(metadata: Mapping[str, Any]) -> set[str]:
    """Return the packages that a bundle's metadata require."""
    own = {package for field, package in OWN_FIELDS.items() if metadata.get(field)}
    return own | {_normal(name) for name in metadata.get("required_packages_version") or {}}


def missing_distributions(metadata: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Return the packages that are needed and that the metadata do not require, sorted."""
    return sorted(needed_distributions(names) - listed_distributions(metadata))


def _normal(name: str) -> str:
    """Return a package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
