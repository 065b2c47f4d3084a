"""Which scan to label next: the one that the network is least sure of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from monailabel.interfaces.tasks.scoring import ScoringMethod  # type: ignore[import-not-found]
from monailabel.interfaces.tasks.strategy import Strategy  # type: ignore[import-not-found]

from pipeline.label_app.confidences import least_confident

__all__ = ["ConfidenceScoring", "LowestConfidence"]

Ask = Callable[[str | None, int], Mapping[str, float | None]]
NOW = 16  # scans that a request for the next one waits for; the scoring method does all
ALL = 2**31


class LowestConfidence(Strategy):  # type: ignore[misc]
    """Offer the scan without a label that the network is least sure of; one offered before waits behind the others.

    Args:
        ask: Returns the confidences of a model, segmenting some scans at most.
    """

    def __init__(self, ask: Ask) -> None:
        super().__init__("The scan that the network is least sure of")
        self.ask = ask

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any] | None:
        """Return the scan's ``id``, its ``confidence``, and how many scans' confidence is not known yet."""
        confidences = self.ask(request.get("model"), int(request.get("limit", NOW)))
        name = request["strategy"]
        offered = [image for image in confidences if name in datastore.get_image_info(image).get("strategy", {})]
        image = least_confident(confidences, offered)
        if image is None:
            return None
        unknown = sum(confidence is None for confidence in confidences.values())
        return {"id": image, "confidence": confidences[image], "unknown": unknown}


class ConfidenceScoring(ScoringMethod):  # type: ignore[misc]
    """Segment every scan without a label whose confidence is not known, and keep how sure the network was.

    Args:
        ask: As that of ``LowestConfidence``.
    """

    def __init__(self, ask: Ask) -> None:
        super().__init__("How sure the network is of each scan without a label")
        self.ask = ask

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, float | None]:
        """Return the confidences, 0 to 1, by scan; None for a scan that cannot be segmented."""
        return dict(self.ask(request.get("model"), ALL))
