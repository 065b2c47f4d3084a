"""A bundle's network as TorchScript, by MONAI's own command, and always the same bytes."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from pipeline.errors import BundleError
from pipeline.packing.archive import write_entries

__all__ = ["export_torchscript", "normalize"]

# Of a TorchScript archive: where each line came from, with the folder it was exported in, and a hash over that.
DEBUG_SUFFIX, HASH_NAME = ".debug_pkl", ".data/serialization_id"

ERROR = re.compile(r"[\w.]*(Error|Exception): ")  # how the last line of a Python traceback begins


def export_torchscript(folder: Path, config: str) -> bytes:
    """Export the network of an unpacked bundle.

    In a process of its own: TorchScript numbers the classes that a process has already seen.

    Args:
        folder: The bundle, its code below ``scripts``.
        config: The config that defines ``network_def``, such as "configs/inference.json".

    Raises:
        BundleError: If MONAI cannot export it.
    """
    output = folder / "models" / "model.ts"
    arguments = {
        "net_id": "network_def",
        "filepath": output,
        "ckpt_file": folder / "models" / "model.pt",
        "meta_file": folder / "configs" / "metadata.json",
        "config_file": folder / config,
    }
    # On the CPU, and in an order of sets that does not depend on the process.
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(
        [sys.executable, "-P", "-m", "monai.bundle", "ckpt_export"]
        + [part for name, value in arguments.items() for part in (f"--{name}", str(value))],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode != 0 or not output.is_file():
        raise BundleError(f"{folder.name}: MONAI must be able to export the network: {_reason(finished.stderr)}")
    return normalize(output.read_bytes())


def normalize(content: bytes) -> bytes:
    """Return a TorchScript archive without what depends on the folder it was exported in.

    It computes the same; only the messages of its errors no longer name lines of Python.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name for name in archive.namelist() if not name.endswith((DEBUG_SUFFIX, HASH_NAME))]
        entries = {name: archive.read(name) for name in names}
    file = io.BytesIO()
    write_entries(entries, file)
    return file.getvalue()


def _reason(printed: str) -> str:
    """Return the one line of a traceback that tells what happened first; MONAI's last line never does."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()] or ["it said nothing"]
    return next((line for line in lines if ERROR.match(line)), lines[-1])
