"""The list of a folder's scans and labels, in MONAI Label's own environment: whole always, and found again."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.label_app.environment import HERE

pytestmark = pytest.mark.slow  # a new process each, and MONAI Label's imports

LIST = "datastore_v2.json"
OPEN = """
import json, logging, os, sys, time
from pathlib import Path
from pipeline.label_app.datastore import Studies
logging.basicConfig(level=logging.WARNING, format="%(message)s")
folder = Path(sys.argv[1])
studies = Studies(str(folder), extensions=["*.nii.gz"], auto_reload=True)
labels = {name: sorted(studies.get_labels_by_image_id(name)) for name in sorted(studies.list_images())}
"""

Run = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tmp_path: Path, make_nifti: Callable[..., Path], numbered_volume: NDArray[np.int16]) -> Path:
    mask = (numbered_volume > 500).astype(np.uint8)
    (tmp_path / "studies" / "labels" / "final").mkdir(parents=True)
    make_nifti("studies/one.nii.gz")
    make_nifti("studies/two.nii.gz")
    make_nifti("studies/labels/final/one.nii.gz", volume=mask)
    make_nifti("mask.nii.gz", volume=mask)
    return tmp_path / "studies"


@pytest.fixture
def run(label_python: Path, folder: Path) -> Run:
    """Run code in MONAI Label's environment, behind what opens the folder."""

    def run(code: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
        command = [label_python, "-c", OPEN + code, folder]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=folder.parent)

    return run


def test_a_list_cut_off_by_a_crash_is_put_aside_and_no_label_is_lost(run: Run, folder: Path) -> None:
    assert json.loads(run("print(json.dumps(labels))").stdout) == {"one": ["final"], "two": []}
    whole = (folder / LIST).read_text()
    for left in (0, 40):
        (folder / LIST).write_text(whole[:left])
        (folder / f"{LIST}.damaged").unlink(missing_ok=True)
        again = run("print(json.dumps(labels))")
        assert json.loads(again.stdout) == {"one": ["final"], "two": []}
        (said,) = [line for line in again.stderr.splitlines() if LIST in line]
        assert said.startswith(f"{folder / LIST} is damaged and was put aside as {LIST}.damaged; scans and labels are")
        assert "Traceback" not in again.stderr
        assert (folder / f"{LIST}.damaged").read_text() == whole[:left]
        assert json.loads((folder / LIST).read_text())["objects"].keys() == {"one", "two"}


def test_a_write_that_fails_leaves_the_old_list_whole(run: Run, folder: Path) -> None:
    code = f"""
before = (folder / {LIST!r}).read_bytes()
def fail(descriptor):
    raise OSError(28, "No space left on device")
os.fsync = fail
try:
    studies.update_image_info("one", {{"strategy": "offered"}})
except Exception as error:
    print(error)
print((folder / {LIST!r}).read_bytes() == before != b"")
"""
    message, unchanged = run(code).stdout.splitlines()
    assert "cannot be written: No space left on device" in message
    assert unchanged == "True"
    assert not list(folder.glob("*.partial")) + list(folder.glob(".*.partial"))


def test_what_another_process_saves_or_notes_is_seen(run: Run, folder: Path) -> None:
    # A server that has the folder open while a background task saves a label, and later notes something.
    code = f"""
def wait(seen):
    deadline = time.monotonic() + 60
    while not seen() and time.monotonic() < deadline:
        time.sleep(0.05)
other = Studies(str(folder), extensions=["*.nii.gz"], auto_reload=False)
other.save_label("two", {str(folder.parent / "mask.nii.gz")!r}, "original", {{}})
wait(lambda: studies.get_labels_by_image_id("two"))
time.sleep(2)  # until the label's own file is dealt with
other.update_image_info("one", {{"strategy": "offered"}})
wait(lambda: "strategy" in studies.get_image_info("one"))
print(json.dumps([studies.get_labels_by_image_id("two"), studies.get_image_info("one")["strategy"]]))
"""
    assert json.loads(run(code).stdout) == [{"original": "two"}, "offered"]
