"""Calls ``dicom_files`` in the environment of ``ar2unet`` from that of MONAI Label."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

from pipeline.errors import AR2UNetError, ScanError

__all__ = ["PYTHON", "Conversion"]

logger = logging.getLogger(__name__)

PYTHON = "AR2UNET_PYTHON"  # environment variable: the Python that has this software's own packages
SECONDS = 1800  # for one series, which takes a few


class Conversion:
    """DICOM series to NIfTI, and masks and labels to DICOM SEG and back.

    Args:
        python: Of the environment of ``ar2unet``.
    """

    def __init__(self, python: str) -> None:
        self.python = python

    def read_series(self, folder: Path, series: str, out: Path) -> None:
        """Write ``<series>_flair.nii.gz`` into ``out``, and t1 and t1c beside it."""
        notes = self._run("read-series", folder, series, out)
        logger.info("%s: %s", series, "; ".join(notes.splitlines()))

    def write_network_mask(self, mask: Path, folder: Path, series: str, out: Path, bundle: Path, weights: str) -> None:
        """Write the DICOM SEG of a mask that the network made."""
        more = ("--source", str(mask), "--bundle", str(bundle), "--weights", weights)
        self._run("write-network-mask", folder, series, out, *more)

    def write_label(self, mask: Path, folder: Path, series: str, out: Path, version: str) -> None:
        """Write the DICOM SEG of a label that a person saved."""
        self._run("write-label", folder, series, out, "--source", str(mask), "--version", version)

    def read_label(self, segmentation: Path, folder: Path, series: str, out: Path) -> None:
        """Write the label in a DICOM SEG as a NIfTI mask on the grid of its series."""
        self._run("read-label", folder, series, out, "--source", str(segmentation))

    def _run(self, command: str, folder: Path, series: str, out: Path, *more: str) -> str:
        """Run a command; return what it says.

        Raises:
            ScanError: With its line, where its input is at fault.
            AR2UNetError: If it fails otherwise.
        """
        # -P: without the working directory, where MONAI Label's own links to this software lie.
        line = [self.python, "-P", "-m", "pipeline.label_app.dicom_files", command]
        line += ["--folder", str(folder), "--series", series, "--out", str(out), *more]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        finished = subprocess.run(
            line,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
        )
        said = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        if finished.returncode == AR2UNetError.exit_code:
            raise ScanError(f"{series}: {said}")
        if finished.returncode != 0:
            raise AR2UNetError(f"{series}: {command} failed: {said}")
        return finished.stdout
