"""``pipeline.training.handlers`` and ``pipeline.training.resuming``, apart from a whole run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events

from pipeline.training.handlers import PREDICTION_COLOR, TRUTH_COLOR, draw_overlay_slice
from pipeline.training.resuming import ResumableCheckpointSaver, ResumableEarlyStopHandler, ResumableWarmupCosine

SHAPE = (9, 7, 4)  # columns, rows, slices


def block(*slices):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[slices] = True
    return mask


def colored(picture, color):
    """Return where a picture (rows, columns, 3) shows a colour, as (row, column)."""
    return {(int(row), int(column)) for row, column in np.argwhere(np.isclose(picture, color).all(axis=2))}


def test_an_overlay_shows_the_slice_with_the_most_of_the_truth():
    flair = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    truth = block(slice(2, 5), slice(1, 4), 2)
    truth[0, 0, 0] = True
    prediction = block(slice(6, 8), 5, 2) | block(slice(None), slice(None), 3)
    picture = draw_overlay_slice(flair, truth, prediction)
    assert picture.shape == (7, 9, 3)
    ring = {(row, column) for row in (1, 2, 3) for column in (2, 3, 4)} - {(2, 3)}  # the middle is no outline
    assert colored(picture, TRUTH_COLOR) == ring
    assert colored(picture, PREDICTION_COLOR) == {(5, 6), (5, 7)}


def test_an_overlay_of_a_patient_without_lesion_shows_the_slice_with_the_most_prediction():
    flair = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    prediction = block(3, 4, 1) | block(slice(5, 7), 6, 3)
    picture = draw_overlay_slice(flair, np.zeros(SHAPE, dtype=bool), prediction)
    assert colored(picture, PREDICTION_COLOR) == {(6, 5), (6, 6)}


def test_an_overlay_is_grey_from_black_to_white_where_nothing_is_drawn():
    flair = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    empty = np.zeros(SHAPE, dtype=bool)
    picture = draw_overlay_slice(flair, empty, empty)
    low, high = np.percentile(flair, [1, 99.5])
    expected = np.clip((flair[:, :, 0].T - low) / (high - low), 0, 1)
    for channel in range(3):
        np.testing.assert_allclose(picture[..., channel], expected, rtol=1e-5)


def test_an_overlay_of_a_constant_image_has_no_nan():
    empty = np.zeros(SHAPE, dtype=bool)
    assert not np.isnan(draw_overlay_slice(np.full(SHAPE, 3.0, dtype=np.float32), empty, empty)).any()


class Validator:
    """An engine that validates with given scores."""

    def __init__(self):
        self.engine = Engine(lambda _engine, _batch: None)

    def validate(self, score):
        self.engine.add_event_handler(Events.ITERATION_COMPLETED, self._set, score)
        self.engine.run([0], max_epochs=1)
        self.engine.remove_event_handler(self._set, Events.ITERATION_COMPLETED)

    def _set(self, engine, score):
        engine.state.metrics["dice"] = score


@pytest.fixture
def make_saver(tmp_path):
    """Make a saver of a one-weight model, as a run and as its resumption would."""

    def make():
        model = torch.nn.Linear(1, 1)
        saver = ResumableCheckpointSaver(
            save_dir=str(tmp_path),
            save_dict={"model": model},
            save_key_metric=True,
            key_metric_name="dice",
            key_metric_filename="model_best.pt",
        )
        validator = Validator()
        saver.attach(validator.engine)
        return model, saver, validator

    return make


def saved_weight(tmp_path):
    return torch.load(tmp_path / "model_best.pt", weights_only=True)["weight"].item()


def test_a_resumed_run_replaces_the_best_checkpoint_by_a_better_one_only(make_saver, tmp_path):
    model, saver, validator = make_saver()
    torch.nn.init.constant_(model.weight, 1.0)
    validator.validate(0.8)

    model, resumed, validator = make_saver()
    resumed.load_state_dict(saver.state_dict())
    torch.nn.init.constant_(model.weight, 2.0)
    validator.validate(0.5)
    assert saved_weight(tmp_path) == 1.0
    torch.nn.init.constant_(model.weight, 3.0)
    validator.validate(0.9)
    assert saved_weight(tmp_path) == 3.0


def test_a_resumed_run_goes_on_where_the_best_checkpoint_was_moved_away(make_saver, tmp_path):
    _, saver, validator = make_saver()
    validator.validate(0.8)
    (tmp_path / "model_best.pt").unlink()

    model, resumed, validator = make_saver()
    resumed.load_state_dict(saver.state_dict())
    torch.nn.init.constant_(model.weight, 4.0)
    validator.validate(0.9)
    assert saved_weight(tmp_path) == 4.0


@pytest.mark.filterwarnings(
    # MONAI's EarlyStopHandler names arguments as ignite did before 0.5.5.
    "ignore:'(min_delta|cumulative_delta)' is deprecated:DeprecationWarning",
)
def test_a_resumed_run_goes_on_counting_towards_its_early_stop():
    def make():
        trainer, validator = Engine(lambda _engine, _batch: None), Validator()
        handler = ResumableEarlyStopHandler(patience=2, score_function=lambda engine: engine.state.metrics["dice"])
        handler.set_trainer(trainer)
        handler.attach(validator.engine)
        return handler, validator, trainer

    handler, validator, trainer = make()
    for score in (0.8, 0.7):
        validator.validate(score)
    assert not trainer.should_terminate

    resumed, validator, trainer = make()
    resumed.load_state_dict(handler.state_dict())
    validator.validate(0.75)  # the second without a better score, counted across the interruption
    assert trainer.should_terminate


def rates(scheduler, steps):
    """Return the learning rate after each of some steps."""
    found = []
    for _ in range(steps):
        scheduler.optimizer.step()
        scheduler.step()
        found.append(scheduler.get_last_lr()[0])
    return found


def make_schedule(total, warmup=2):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    return ResumableWarmupCosine(optimizer, warmup_steps=warmup, t_total=total)


def test_the_rate_warms_up_linearly_and_then_falls_as_a_cosine():
    expected = [0.25, 0.5] + [0.25 * (1 + math.cos(math.pi * step / 4)) for step in (1, 2, 3, 4)]
    assert rates(make_schedule(total=6), 6) == pytest.approx(expected)


def test_a_schedule_resumed_for_longer_falls_until_its_own_end():
    first = make_schedule(total=6)
    rates(first, 6)
    resumed = make_schedule(total=12)
    resumed.load_state_dict(first.state_dict())
    expected = [0.25 * (1 + math.cos(math.pi * (step - 2) / 10)) for step in range(7, 13)]
    assert rates(resumed, 6) == pytest.approx(expected)
    assert expected[-1] == 0
