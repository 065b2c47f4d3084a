"""Results are whole or not there, whatever ends a run, and one run at a time writes them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.cohort.folder import open_folder
from pipeline.cohort.rows import Row
from pipeline.errors import AR2UNetError

# A commit over older results in a process that kills itself at its n-th change of the file system.
KILLED_COMMIT = """
import os, signal, sys
from pathlib import Path
from pipeline.cohort.folder import open_folder
from pipeline.cohort.rows import Row

out, killed_at = Path(sys.argv[1]), int(sys.argv[2])
count = 0

def audit(event, arguments):
    global count
    if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") or (event == "open" and arguments[1] == "wb"):
        count += 1
        if count == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

with open_folder(out) as folder:
    place = folder.workplace("a")
    sys.addaudithook(audit)
    place.mkdir()
    (place / "x_mask.nii.gz").write_bytes(b"newer")
    folder.commit("a", place, "new key", Row("a", "a.nii", "done"))
"""


def fill(folder, name, content=b"older", key="old key"):
    place = folder.workplace(name)
    place.mkdir()
    (place / "x_mask.nii.gz").write_bytes(content)
    folder.commit(name, place, key, Row(name, f"{name}.nii", "done", volume_ml=1.5))


def test_committed_results_are_found_again_by_their_key_alone(tmp_path):
    with open_folder(tmp_path / "out") as folder:
        fill(folder, "a")
        assert folder.find_done("a", "another key") is None
        assert folder.find_done("b", "old key") is None
        record = folder.find_done("a", "old key")
    assert record.row == Row("a", "a.nii", "done", volume_ml=1.5)
    assert (tmp_path / "out" / "cases" / "a" / "x_mask.nii.gz").read_bytes() == b"older"


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"short")])
def test_results_of_which_a_file_is_missing_or_cut_are_not_done(tmp_path, damage):
    with open_folder(tmp_path / "out") as folder:
        fill(folder, "a", b"longer than short")
        damage(folder.place("a") / "x_mask.nii.gz")
        assert folder.find_done("a", "old key") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": 1}', b'{"key": "k", "row": {"x": 1}, "files": {}}'])
def test_a_damaged_record_is_none(tmp_path, content):
    with open_folder(tmp_path / "out") as folder:
        fill(folder, "a")
        (folder.place("a") / "record.json").write_bytes(content)
        assert folder.read_record("a") is None


def test_files_elsewhere_belong_to_the_results(tmp_path):
    with open_folder(tmp_path / "out") as folder:
        other = folder.out / "sub-1.nii.gz"
        other.write_bytes(b"copy")
        place = folder.workplace("a")
        place.mkdir()
        folder.commit("a", place, "key", Row("a", "a.nii", "done"), [other])
        assert folder.find_done("a", "key") is not None
        folder.discard("a", [other])
        assert not other.exists()
        assert not folder.place("a").exists()


@pytest.mark.parametrize("killed_at", range(1, 9))
def test_a_kill_at_any_step_of_a_commit_leaves_the_older_or_the_newer_results_or_none(tmp_path, killed_at):
    out = tmp_path / "out"
    with open_folder(out) as folder:
        fill(folder, "a")
    done = subprocess.run([sys.executable, "-c", KILLED_COMMIT, out, str(killed_at)], check=False, timeout=60)
    assert done.returncode == (-9 if killed_at < 8 else 0)
    with open_folder(out) as folder:
        record = folder.read_record("a")
        assert {path.name for path in out.rglob("x_*")} <= {"x_mask.nii.gz"}
        if record is None:
            assert not folder.place("a").exists()
        else:
            content = (folder.place("a") / "x_mask.nii.gz").read_bytes()
            assert (record.key, content) in (("old key", b"older"), ("new key", b"newer"))
            assert folder.find_done("a", record.key) is not None
        assert list((out / ".cohort" / "unfinished").iterdir()) == []
        fill(folder, "a", b"again", "newest key")
        assert folder.find_done("a", "newest key") is not None


def test_something_else_in_the_place_of_a_case_is_not_overwritten(tmp_path):
    with open_folder(tmp_path / "out") as folder:
        folder.place("a").mkdir()
        (folder.place("a") / "thesis.txt").write_text("years of work")
        with pytest.raises(AR2UNetError, match="something else"):
            fill(folder, "a")
        folder.discard("a")
        assert (folder.place("a") / "thesis.txt").exists()


def test_a_second_run_is_refused_while_the_first_one_lives_and_not_afterwards(tmp_path):
    with open_folder(tmp_path / "out") as folder:
        workplace = folder.workplace("a")
        workplace.mkdir()
        with pytest.raises(AR2UNetError, match="another cohort run"), open_folder(tmp_path / "out"):
            pass
        assert workplace.exists()
    with open_folder(tmp_path / "out"):
        assert not workplace.exists()


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from pipeline.cohort.folder import open_folder\n"
        "with open_folder(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], check=False, timeout=60)
    assert done.returncode == -9
    with open_folder(tmp_path / "out"):
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AR2UNetError, match="cannot make the folder"), open_folder(tmp_path / "file" / "out"):
        pass
