"""A bundle with other weights than its own, such as those of a training that held a fold out."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.errors import AR2UNetError
from pipeline.exporting import export_bundle
from pipeline.fast_road import installed_engines

__all__ = ["bundle_with"]


def bundle_with(weights: Path, bundle: Path, folder: Path, network: Path | None = None) -> Path:
    """Copy a bundle, put weights in the place of its own, and export the network where a fast engine is installed.

    A predictor holds an exported network against the weights beside it, so the copy cannot pass for the original.
    Otherwise the shipped weights, which saw every patient, would be scored in place of those given, and flatter.

    Args:
        weights: A state dict.
        bundle: Stays as it is.
        folder: Where the copy is made; must not exist.
        network: A config that goes on top of ``inference.yaml``, where the weights are another network's.

    Returns:
        The copy's folder.

    Raises:
        AR2UNetError: If there are no such weights or config, or they do not fit.
    """
    if not weights.is_file():
        raise AR2UNetError(f"{weights} must be the weights of a training, got no file")
    if network is not None and not network.is_file():
        raise AR2UNetError(f"{network} must be a config, got no file")
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("exported"))
    shutil.copyfile(weights, folder / "models" / "model.pt")
    if network is not None:
        from monai.bundle import ConfigParser

        inference = folder / "configs" / "inference.yaml"
        parser = ConfigParser()
        parser.read_config([str(inference), str(network)])
        ConfigParser.export_config_file(parser.get(), str(inference), fmt="yaml")
    if installed_engines():
        export_bundle(folder)
    return folder
