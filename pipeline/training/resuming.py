"""Parts of a training run that MONAI makes forgetful: here they remember across an interruption."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monai.handlers import CheckpointSaver, EarlyStopHandler
from monai.optimizers import WarmupCosineSchedule

if TYPE_CHECKING:
    from ignite.engine import Engine

__all__ = ["ResumableCheckpointSaver", "ResumableEarlyStopHandler", "ResumableWarmupCosine"]


class ResumableWarmupCosine(WarmupCosineSchedule):
    """Warm the learning rate up, then let it fall as a cosine that ends with the run.

    MONAI's schedule restores the old run's length with its state: a run resumed with more
    epochs would pass the cosine's end and see its rate rise again. Here the length stays
    what this run was made with.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position of a schedule, but not its length."""
        super().load_state_dict({**state_dict, "warmup_steps": self.warmup_steps, "t_total": self.t_total})


class ResumableCheckpointSaver(CheckpointSaver):
    """Save the checkpoint with the best key metric, also compared with those before an interruption.

    MONAI's saver keeps its state with the weights only. Kept with the rest of the run, the
    first validation after a resume does not replace a better checkpoint. Nor does a run end because somebody
    moved the best checkpoint away.
    """

    def metrics_completed(self, engine: Engine) -> None:
        """Save the checkpoint if its metric is the best so far."""
        try:
            super().metrics_completed(engine)
        except FileNotFoundError:  # of the one to be replaced, which ignite has struck off its list by now
            super().metrics_completed(engine)

    def state_dict(self) -> dict[str, Any]:
        """Return which checkpoint is the best so far, and its score; ``load_state_dict`` is MONAI's."""
        return dict(self._key_metric_checkpoint.state_dict()) if self._key_metric_checkpoint else {}


class ResumableEarlyStopHandler(EarlyStopHandler):
    """Stop training after some validations without a better score, counting across an interruption.

    The trainer must be set before the state is asked for or loaded.
    """

    _handler: Any  # ignite's EarlyStopping, once the trainer is set

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and the validations since."""
        return dict(self._handler.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._handler.load_state_dict(state_dict)
