"""The command in this process, and what a refusal must look like."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from bad_inputs import (
    assert_line,
)

from pipeline.cli import main

MAX_GROWTH = 400  # MiB that a refusal may take


def stub_predictor(bundle, device, engine):
    """What no refused scan gets to."""
    return SimpleNamespace(note=None, engine="none", prepare=lambda scan: pytest.fail("it was not refused"))


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the command in this process, in a folder of the test's own; exit code, stdout and stderr come back."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ar2unet", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


def memory():
    """The most this process ever took, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.fixture
def refusing(monkeypatch):
    """Let no scan get as far as the network."""
    monkeypatch.setattr("pipeline.cli.segment.make_predictor", stub_predictor)


@pytest.fixture
def assert_refused(command, refusing):
    """Make an input and give it to the command, which must end with the expected line and leave nothing behind."""

    def check(make, expected):
        given = make()
        before = memory()
        code, out, err = command("segment", *([given] if isinstance(given, str) else given), "-o", "out")
        assert_line(err.removesuffix("\n"), f"ar2unet: {expected}")
        assert (code, out) == (2, "")
        assert not Path("out").exists()
        assert memory() - before < MAX_GROWTH

    return check
