"""torchvision without its compiled operators: PyPI has it for CUDA; beside a CPU build of torch they do not load."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["define_missing_operators"]

# What torchvision's Python registers shape functions for at import; nothing here ever calls them.
OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_kept: list[Any] = []  # a library's operators live as long as it does


def define_missing_operators() -> bool:
    """Declare the operators that torchvision's import needs, only where that import fails for want of them.

    Returns:
        Whether they had to be declared.

    Raises:
        RuntimeError: If torchvision fails to load for another reason.
    """
    try:
        import torchvision  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: F401
    except ImportError:
        return False
    except RuntimeError as error:
        if "torchvision::" not in str(error) or "does not exist" not in str(error):
            raise
        _declare()
        return True
    return False


def _declare() -> None:
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in OPERATORS.values():
        library.define(schema)  # type: ignore[no-untyped-call]
    _kept.append(library)
    import torchvision  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: F401
