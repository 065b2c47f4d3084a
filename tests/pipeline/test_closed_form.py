"""``pipeline.training.closed_form``: what reaches ``fit``, and when."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset

from pipeline.training.closed_form import ClosedFormTrainer

SUBJECTS = [
    {"subject": f"sub-{number}", "image": torch.full((2, 3), number), "label": number % 3} for number in range(7)
]


class Recorder(torch.nn.Module):
    """Keeps what it was fitted to."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def fit(self, images, labels, generator):
        self.calls.append((images, labels, torch.rand(1, generator=generator).item()))
        return {"subjects": 0.25 * len(self.calls)}


def make_trainer(subjects=SUBJECTS, batch_size=3, **arguments):
    loader = DataLoader(Dataset(subjects), batch_size=batch_size, num_workers=0)
    return ClosedFormTrainer("cpu", loader, Recorder(), **arguments)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_one_fit_gets_every_subject_once_with_its_label(batch_size):
    trainer = make_trainer(batch_size=batch_size)
    trainer.run()
    ((images, labels, _),) = trainer.network.calls
    assert images.shape == (7, 2, 3)
    assert images[:, 0, 0].tolist() == list(range(7))
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_the_order_of_the_subjects_does_not_matter():
    trainer = make_trainer(SUBJECTS[::-1])
    trainer.run()
    assert trainer.network.calls[0][0][:, 0, 0].tolist() == list(range(7))


def test_a_subject_that_comes_twice_counts_once():
    trainer = make_trainer([*SUBJECTS, SUBJECTS[2]])
    trainer.run()
    assert len(trainer.network.calls[0][0]) == 7


def test_the_seed_is_that_of_the_generator_and_the_same_in_each_epoch():
    first, second = make_trainer(seed=5, max_epochs=2), make_trainer(seed=6)
    first.run()
    second.run()
    drawn = [call[2] for call in first.network.calls]
    assert drawn[0] == drawn[1] != second.network.calls[0][2]
    assert len(first.network.calls[1][0]) == 7  # and nothing of the first epoch is left in the second


def test_an_epoch_of_other_subjects_is_fitted_to_them_alone():
    epochs = [(0, 1, 2), (3, 4, 5)]

    class Changing(torch.utils.data.Sampler):
        def __iter__(self):
            return iter(epochs.pop(0))

        def __len__(self):
            return 3

    loader = DataLoader(Dataset(SUBJECTS), batch_size=2, num_workers=0, sampler=Changing())
    trainer = ClosedFormTrainer("cpu", loader, Recorder(), max_epochs=2)
    trainer.run()
    assert [call[0][:, 0, 0].tolist() for call in trainer.network.calls] == [[0, 1, 2], [3, 4, 5]]


def test_what_other_processes_were_handed_belongs_to_the_fit(monkeypatch):
    trainer = make_trainer(SUBJECTS[:5])
    theirs = {each["subject"]: (each["image"], torch.tensor(each["label"])) for each in SUBJECTS[4:]}

    def gather(parts, own):
        parts[:] = [own, theirs]

    for name, stand_in in (
        ("is_initialized", lambda: True),
        ("get_rank", lambda: 0),
        ("get_world_size", lambda: 2),
        ("all_gather_object", gather),
    ):
        monkeypatch.setattr(torch.distributed, name, stand_in)
    trainer.run()
    ((images, labels, _),) = trainer.network.calls
    assert images[:, 0, 0].tolist() == list(range(7))
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_a_handler_at_the_end_of_the_epoch_finds_a_fitted_network_and_its_losses():
    seen = []

    class Handler:
        def attach(self, engine):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.look)

        def look(self, engine):
            seen.append((len(engine.network.calls), dict(engine.state.metrics)))

    make_trainer(train_handlers=[Handler()], max_epochs=2).run()
    assert seen == [(1, {"train_loss_subjects": 0.25}), (2, {"train_loss_subjects": 0.5})]


def test_images_of_two_sizes_are_an_error_and_not_a_fit():
    trainer = make_trainer([SUBJECTS[0], {**SUBJECTS[1], "image": torch.zeros(2, 4)}], batch_size=1)
    with pytest.raises(RuntimeError, match="equal size"):
        trainer.run()
    assert trainer.network.calls == []
