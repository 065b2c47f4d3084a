"""Many scans: their steps overlap, their order stays, and neither a bad scan nor an early end disturbs the rest."""

from __future__ import annotations

import gc
import json
import platform
import subprocess
import sys
import threading
import time
import weakref
from itertools import count, islice

import nibabel as nib
import numpy as np
import pytest

from pipeline.case import Case, segment_case
from pipeline.errors import AR2UNetError, BundleError, ScanError
from pipeline.stream import AHEAD, BEHIND, overlap, segment_cases

WAIT = 20  # seconds until a test that would hang fails instead


class Volume:
    """Something whose life can be watched; arrays and floats cannot."""

    def __init__(self, number):
        self.number = number


class Steps:
    """Three steps that leave a trace of their beginnings and ends, and wait where a test says so.

    Args:
        gates: Of a step such as ("finish", 2), the event that it waits for before it ends.
        errors: Of a step, what it raises.
    """

    def __init__(self, gates=None, errors=None):
        self.gates, self.errors = gates or {}, errors or {}
        self.events = []
        self.threads = {"prepare": set(), "infer": set(), "finish": set()}
        self.begun = {}
        self.lock = threading.Lock()
        self.alive = weakref.WeakSet()
        self.most_alive = 0

    def begins(self, *step):
        with self.lock:
            return self.begun.setdefault(step, threading.Event())

    def prepare(self, number):
        volume = Volume(number)
        self.alive.add(volume)
        self.most_alive = max(self.most_alive, len(self.alive))
        self._run("prepare", volume)
        return volume

    def infer(self, volume):
        self._run("infer", volume)
        return -volume.number

    def finish(self, volume, computed):
        self._run("finish", volume)
        return volume.number, computed

    def _run(self, name, volume):
        number = volume.number
        self.events.append((name, number, "begins"))
        self.threads[name].add(threading.current_thread().name)
        self.begins(name, number).set()
        if (name, number) in self.gates:
            assert self.gates[name, number].wait(WAIT), f"{name} of {number} waited in vain"
        if (name, number) in self.errors:
            try:
                raise ValueError("what was wrong")
            except ValueError as cause:
                raise self.errors[name, number] from cause
        self.events.append((name, number, "ends"))

    def stream(self, items):
        return overlap(items, prepare=self.prepare, infer=self.infer, finish=self.finish)

    def ran(self, name):
        return [number for step, number, what in self.events if (step, what) == (name, "begins")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("size", [0, 1, 2, 3, 11])
def test_every_item_comes_back_in_its_place_with_what_the_steps_made_of_it(size):
    steps = Steps()
    assert list(steps.stream(range(size))) == [(n, (n, -n)) for n in range(size)]
    assert [steps.ran(name) for name in ("prepare", "infer", "finish")] == [list(range(size))] * 3


def test_the_network_runs_in_the_calling_thread_and_the_others_in_one_each():
    steps = Steps()
    list(steps.stream(range(7)))
    assert steps.threads["infer"] == {threading.current_thread().name}
    assert len(steps.threads["prepare"]) == len(steps.threads["finish"]) == 1
    assert not steps.threads["prepare"] & steps.threads["finish"]


def test_while_the_network_runs_the_next_item_is_prepared_and_the_last_one_finished():
    steps = Steps()
    # Each of these would wait in vain if the steps took turns.
    steps.gates = {("infer", n): steps.begins("prepare", n + 1) for n in range(4)}
    steps.gates |= {("finish", n): steps.begins("infer", n + 1) for n in range(4)}
    assert [number for number, _ in steps.stream(range(5))] == list(range(5))


def test_a_slow_end_holds_the_network_up_so_that_items_do_not_pile_up():
    steps = Steps()
    release = threading.Event()
    steps.gates = {("finish", 0): release}
    results = []
    reader = threading.Thread(target=lambda: results.extend(steps.stream(range(20))))
    reader.start()
    # All that there is room for: one that is being finished, those that wait for it, and one more in the network's
    # hands; then those prepared.
    assert steps.begins("prepare", BEHIND + AHEAD + 1).wait(WAIT)
    reader.join(0.2)
    assert max(steps.ran("infer")) == BEHIND + 1
    assert max(steps.ran("prepare")) <= BEHIND + AHEAD + 2
    release.set()
    reader.join(WAIT)
    assert [number for number, _ in results] == list(range(20))
    assert steps.most_alive <= BEHIND + AHEAD + 3


def test_a_slow_network_holds_preparing_up():
    steps = Steps()
    release = threading.Event()
    steps.gates = {("infer", 0): release}
    reader = threading.Thread(target=lambda: list(steps.stream(range(20))))
    reader.start()
    assert steps.begins("prepare", AHEAD).wait(WAIT)
    reader.join(0.2)
    assert max(steps.ran("prepare")) == AHEAD
    release.set()
    reader.join(WAIT)
    assert max(steps.ran("finish")) == 19


def test_items_are_asked_for_only_when_there_is_room_for_them():
    taken = []

    def endless():
        for number in count():
            taken.append(number)
            yield number

    stream = Steps().stream(endless())
    assert [number for number, _ in islice(stream, 3)] == [0, 1, 2]
    stream.close()
    assert len(taken) <= 3 + AHEAD + BEHIND + 1


def test_a_result_that_is_ready_is_handed_over_before_the_next_item_enters_the_network():
    steps = Steps()

    def infer(volume):
        if volume.number == 1:
            assert steps.begins("finish", 0).wait(WAIT)
            time.sleep(0.2)  # what is left of it takes no time
        return steps.infer(volume)

    stream = overlap(range(9), prepare=steps.prepare, infer=infer, finish=steps.finish)
    assert next(stream)[0] == 0
    assert max(steps.ran("infer")) <= 1
    stream.close()


@pytest.mark.parametrize("name", ["prepare", "infer", "finish"])
@pytest.mark.parametrize("bad", [{0}, {2, 3}, {5}, {0, 1, 2, 3, 4, 5}])
def test_the_error_of_a_bad_item_takes_its_place_and_the_others_go_on(name, bad):
    steps = Steps(errors={(name, number): ScanError(f"{number} is bad") for number in bad})
    outcomes = dict(steps.stream(range(6)))
    assert list(outcomes) == list(range(6))
    for number, outcome in outcomes.items():
        if number in bad:
            assert isinstance(outcome, ScanError)
            assert str(outcome) == f"{number} is bad"
        else:
            assert outcome == (number, -number)


@pytest.mark.parametrize("name", ["prepare", "infer", "finish"])
def test_no_item_lives_on_after_its_end_even_if_every_result_and_error_is_kept(name):
    steps = Steps(errors={(name, 1): ScanError("bad")})
    kept = []
    gc.disable()  # a cycle would keep volumes until some later collection
    try:
        for item in steps.stream(range(8)):
            kept.append(item)
        assert len(steps.alive) == 0
    finally:
        gc.enable()
    assert steps.most_alive <= AHEAD + BEHIND + 3


@pytest.mark.parametrize("name", ["prepare", "infer", "finish"])
@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a fault of ours"), BundleError("no weights"), KeyboardInterrupt()]
)
def test_what_is_no_fault_of_an_item_ends_the_stream(name, error):
    steps = Steps(errors={(name, 2): error})
    with pytest.raises(type(error)):
        list(steps.stream(range(9)))
    assert max(steps.ran("prepare")) <= 2 + AHEAD + BEHIND + 1


def test_an_interrupt_lets_the_step_that_runs_come_to_its_end_and_starts_no_other():
    steps = Steps()
    interrupted = threading.Event()
    steps.gates = {("infer", 2): steps.begins("finish", 0), ("finish", 0): interrupted}
    steps.errors = {("infer", 2): KeyboardInterrupt()}

    def items():
        yield from range(3)
        # Asked for by nobody after the interrupt, while the step that runs is waited for.
        yield from range(3, 9)

    release = threading.Timer(0.2, interrupted.set)
    release.start()
    with pytest.raises(KeyboardInterrupt):
        list(steps.stream(items()))
    release.join()
    assert ("finish", 0, "ends") in steps.events
    assert steps.ran("finish") == [0]


def test_an_exception_of_the_consumer_ends_the_stream_and_its_threads():
    steps = Steps()

    def consume():
        for number, _ in steps.stream(range(50)):
            if number == 3:
                raise RuntimeError("had enough")

    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="had enough"):
        consume()
    assert set(threading.enumerate()) <= before
    assert max(steps.ran("prepare")) < 10


def test_an_exception_of_the_items_ends_the_stream():
    def items():
        yield from range(3)
        raise RuntimeError("no more of them")

    with pytest.raises(RuntimeError, match="no more of them"):
        list(Steps().stream(items()))


# --- cases -------------------------------------------------------------------------------------------


def test_cases_become_what_each_becomes_alone(make_predictor, make_nifti, anatomy, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr("pipeline.stream.keep_memory", lambda: kept.append("memory"))
    predictor = make_predictor()
    volume, _ = anatomy
    other = volume.copy()
    other[16:21, 20:27, 3:5] = 900  # a second lesion, so the masks are not equal
    scans = [make_nifti("a.nii.gz", volume=volume), make_nifti("b.nii.gz", orientation="LPS", volume=other)]
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"nothing")
    cases = [Case(scan, tmp_path / "many" / scan.name, with_probabilities=True) for scan in (scans[0], bad, scans[1])]
    progress = []
    outcomes = list(segment_cases(predictor, cases, on_progress=lambda done, total: progress.append((done, total))))

    assert kept == ["memory"]
    assert [case for case, _ in outcomes] == cases
    assert isinstance(outcomes[1][1], AR2UNetError)
    assert "bad.nii.gz" in str(outcomes[1][1])
    assert not (tmp_path / "many" / "bad.nii.gz").exists()
    assert sum(done == total for done, total in progress) == 2
    for scan, (_, result) in zip(scans, outcomes[::2], strict=True):
        alone = segment_case(predictor, scan, tmp_path / "alone" / scan.name, with_probabilities=True)
        assert result.measurements == alone.measurements
        for ours, theirs in ((result.mask, alone.mask), (result.probabilities, alone.probabilities)):
            assert ours.parent.parent == tmp_path / "many"
            assert ours.read_bytes() == theirs.read_bytes()
        assert result.overlay.read_bytes() == alone.overlay.read_bytes()
        reports = [json.loads(report.read_text()) for report in (result.report, alone.report)]
        for report in reports:
            seconds = report.pop("seconds")
            assert seconds["total"] == pytest.approx(sum(seconds.values()) - seconds["total"], abs=0.01)
        assert reports[0] == reports[1]
    masks = [np.asarray(nib.load(result.mask).dataobj) for _, result in outcomes[::2]]
    assert 0 < masks[0].sum() < masks[1].sum()


def test_an_interrupted_stream_leaves_whole_files_only(make_predictor, make_nifti, anatomy, tmp_path):
    cases = [Case(make_nifti(f"{n}.nii.gz", volume=anatomy[0]), tmp_path / "out" / str(n)) for n in range(4)]

    def stop(done, total):
        if (tmp_path / "out").exists():  # the first is being written
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(segment_cases(make_predictor(), cases, on_progress=stop))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) in (["0"], ["0", "1"])
    for folder in (tmp_path / "out").iterdir():
        names = {path.name for path in folder.iterdir()}
        assert names == {f"{folder.name}_mask.nii.gz", "overlay.png", "report.html", "report.json"}


@pytest.mark.skipif(not platform.libc_ver()[0].startswith("glibc"), reason="the C library is not glibc")
def test_glibc_takes_every_setting_and_hands_nothing_back_afterwards(tmp_path):
    code = (
        "import numpy as np; from pathlib import Path; from pipeline.stream import keep_memory\n"
        "pages = lambda: int(Path('/proc/self/statm').read_text().split()[1])\n"
        "assert keep_memory()\n"
        "arrays = [np.ones(2**20) for _ in range(20)]\n"  # 8 MiB each
        "full = pages()\n"
        "del arrays\n"
        "assert pages() > 0.95 * full, (pages(), full)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert result.returncode == 0, result.stderr


def test_the_stream_itself_loads_neither_torch_nor_monai_nor_matplotlib(tmp_path):
    code = (
        "import sys; import pipeline.stream; "
        "heavy = {'torch', 'monai', 'matplotlib'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert result.returncode == 0, result.stderr
