"""What a result was made with: versions of the software and of a bundle."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

from pipeline.errors import BundleError

__all__ = ["read_bundle_version", "software_version", "software_versions"]

DISTRIBUTION = "ar2unet-monai"


@cache
def software_version() -> str:
    """Return the version of this software; "unknown" where it is not installed, as in a packed bundle."""
    return software_versions(()).get("ar2unet", "unknown")


def software_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python, of this software, and of distributions, without importing any.

    Args:
        names: Of the distributions; those that are not installed are left out.
    """
    versions = {"python": platform.python_version()}
    for name, distribution in {"ar2unet": DISTRIBUTION, **{name: name for name in names}}.items():
        try:
            versions[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:  # a packed bundle runs without this project installed
            continue
    return versions


def read_bundle_version(bundle: Path) -> str:
    """Return a bundle's version, from its metadata.

    Args:
        bundle: The bundle's folder.

    Raises:
        BundleError: If its metadata cannot be read or name none.
    """
    path = bundle / "configs" / "metadata.json"
    try:
        return str(json.loads(path.read_text())["version"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BundleError(f"{path} must be JSON with a version: {error}") from error
