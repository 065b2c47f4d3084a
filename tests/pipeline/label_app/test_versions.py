"""Versions of weights: which one is used, and that none is ever lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import BundleError
from pipeline.label_app.versions import Choice, add_version, choose, list_versions, offered


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "some_segmentation" / "models"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"shipped")
    (folder / "model.ts").write_bytes(b"no version")
    return folder


@pytest.fixture
def trained(models: Path) -> Path:
    for number in (1, 2, 10):
        (models / f"finetuned_{number:04d}.pt").write_bytes(b"trained %d" % number)
    return models


def test_the_newest_version_comes_first_and_the_shipped_one_last(trained: Path) -> None:
    (trained / "finetuned_11.pt").touch()  # a user's own name
    expected = ["finetuned_0010.pt", "finetuned_0002.pt", "finetuned_0001.pt", "model.pt"]
    assert list_versions(trained) == expected


@pytest.mark.parametrize(
    ("wanted", "name"),
    [("latest", "finetuned_0010.pt"), ("shipped", "model.pt"), ("2", "finetuned_0002.pt"), ("0", "model.pt")]
    + [(name, name) for name in ("finetuned_0001.pt", "model.pt")],
)
def test_weights_are_chosen_by_number_name_or_word(trained: Path, wanted: str, name: str) -> None:
    assert choose(trained, wanted) == Choice(name, 10)


def test_without_training_the_latest_weights_are_the_shipped_ones(models: Path) -> None:
    assert choose(models, "latest") == Choice("model.pt", 0)


@pytest.mark.parametrize("wanted", ["3", "newest", "../model.pt", "model.ts", ""])
def test_weights_that_are_not_there_are_refused_with_those_that_are(trained: Path, wanted: str) -> None:
    with pytest.raises(BundleError, match=r"some_segmentation .*latest, shipped, finetuned_0010.*got " + wanted):
        choose(trained, wanted)


def test_a_chosen_version_is_used_until_a_training_makes_a_newer_one(trained: Path) -> None:
    choice = choose(trained, "shipped")
    assert offered(trained, choice)[0] == "model.pt"
    assert sorted(offered(trained, choice)) == sorted(list_versions(trained))
    (trained / "finetuned_0011.pt").touch()
    assert offered(trained, choice)[:2] == ["finetuned_0011.pt", "finetuned_0010.pt"]


def test_a_new_version_gets_the_next_number_and_changes_no_other(trained: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    (tmp_path / "final.pt").write_bytes(b"new")
    assert add_version(trained, tmp_path / "final.pt") == "finetuned_0011.pt"
    after = {path.name: path.read_bytes() for path in trained.iterdir()}
    assert after == {**before, "finetuned_0011.pt": b"new"}
