"""Operators are declared only where torchvision's own are broken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.label_app import torchvision_operators
from pipeline.label_app.torchvision_operators import define_missing_operators


@pytest.fixture
def make_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a package named torchvision first on the path; its text runs when it is imported."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torchvision_operators, "_kept", [])

    def make(text: str) -> None:
        monkeypatch.delitem(sys.modules, "torchvision", raising=False)
        (tmp_path / "torchvision.py").write_text(text)

    yield make
    sys.modules.pop("torchvision", None)


def test_where_torchvision_works_nothing_is_declared(make_torchvision) -> None:
    make_torchvision("works = True\n")
    assert define_missing_operators() is False
    assert torchvision_operators._kept == []


def test_where_its_operators_are_missing_they_are_declared_and_it_loads(make_torchvision) -> None:
    make_torchvision(
        "import torch\n"
        "for name in ('nms', 'qnms'):\n"
        "    if not hasattr(torch.ops.torchvision, name):\n"
        "        raise RuntimeError(f'operator torchvision::{name} does not exist')\n"
        "works = True\n"
    )
    assert define_missing_operators() is True
    assert sys.modules["torchvision"].works


def test_another_failure_is_not_hidden(make_torchvision) -> None:
    make_torchvision("raise RuntimeError('libcudart is missing')\n")
    with pytest.raises(RuntimeError, match="libcudart"):
        define_missing_operators()


def test_without_torchvision_nothing_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert define_missing_operators() is False
