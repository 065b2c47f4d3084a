"""What every engine can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Engine", "Receive"]

# Called with a slice's number and its logits (L, H, W), in any order; these are written over after the call.
Receive = Callable[[int, NDArray[np.float32]], None]


class Engine(Protocol):
    """Runs an exported network."""

    @property
    def name(self) -> str:
        """Its name and the precision it computes in, such as "openvino f16"."""

    def infer(self, image: NDArray[np.float32], receive: Receive) -> None:
        """Run the network on every slice.

        Results are handed over slice by slice, because a whole volume's logits can be larger than its image.

        Args:
            image: ``(C, H, W, K)``, K slices, height and width as the network divides them; views are welcome.
            receive: Gets each slice's logits; an exception of it ends the run and is raised here.
        """
