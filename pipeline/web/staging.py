"""Jobs of the kind "staging", in the worker process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

from pipeline.staging.case import stage_case
from pipeline.staging.stager import Stager
from pipeline.web.kinds import Order, Outcome

__all__ = ["StagingRunner"]

ROLES = {"stage": "report"}  # the rest are called what they are in ``StagePaths``


class StagingRunner:
    """Tell the dementia stage of slices and volumes with one stager; torch is imported with the first.

    Raises:
        BundleError: If the bundle cannot serve.
    """

    def __init__(self) -> None:
        self.stager = Stager()

    def about(self) -> Mapping[str, str]:
        """Return what serves."""
        return {
            "bundle": self.stager.bundle.name,
            "bundle_version": self.stager.version,
            "engine": "torch f32",
            "weights_sha256": self.stager.weights_sha256,
            "note": "",
        }

    def run(self, order: Order, on_progress: Callable[[str, int, int], None]) -> Outcome:
        """Stage one slice or volume; the folder of results is that of ``pipeline.staging.case``.

        Raises:
            AR2UNetError: If the file cannot be read, or a result cannot be written.
        """
        on_progress("reading", 0, 0)
        paths = stage_case(self.stager, Path(order.files["t1"]), Path(order.work)).paths
        files = {} if paths is None else {field.name: getattr(paths, field.name) for field in fields(paths)}
        return Outcome({file.name: ROLES.get(name, name) for name, file in files.items()}, order.files["t1"])
