"""How sure the network is of each scan, kept a file a scan: server and background tasks write at the same time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.formats.atomic import atomic_write

__all__ = ["Confidences", "least_confident"]


class Confidences:
    """Confidences of scans under one network's weights.

    Args:
        folder: Where they are kept.
        weights: The file of the weights; other weights, or the same name with other content, have others.
    """

    def __init__(self, folder: Path, weights: Path) -> None:
        status = weights.stat()
        self.folder = folder / f"{weights.stem}_{status.st_size}_{status.st_mtime_ns}"

    def read(self, image: Path) -> float | None:
        """Return a scan's confidence, 0 to 1; None where it is not known, or the file has changed since."""
        try:
            kept = json.loads(self._path(image).read_text())
            return float(kept["confidence"]) if kept["modified"] == image.stat().st_mtime_ns else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, image: Path, confidence: float) -> None:
        """Keep a scan's confidence."""
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {"image": str(image), "modified": image.stat().st_mtime_ns, "confidence": confidence}
        with atomic_write(self._path(image)) as file:
            file.write(json.dumps(kept).encode())

    def _path(self, image: Path) -> Path:
        return self.folder / f"{hashlib.sha256(str(image).encode()).hexdigest()[:32]}.json"


def least_confident(confidences: Mapping[str, float | None], skipped: Iterable[str] = ()) -> str | None:
    """Return the scan to label next: the least confident, the first by name among equals.

    Args:
        confidences: By scan; None is not known, and comes last.
        skipped: Scans that were offered already and came back without a label; they wait behind all others.
    """
    later = set(skipped)

    def order(name: str) -> tuple[bool, bool, float, str]:
        confidence = confidences[name]
        return name in later, confidence is None, confidence or 0.0, name

    return min(confidences, key=order, default=None)
