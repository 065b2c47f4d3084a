"""Workers on a cluster: the results of one machine, whoever dies on the way."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from pipeline.cohort import ray_workers
from pipeline.cohort.finding import find_cases
from pipeline.cohort.folder import open_folder
from pipeline.cohort.keys import Settings
from pipeline.cohort.ray_workers import (
    LOOPBACK,
    OFFLINE,
    RETRIES,
    Worker,
    bind_processors,
    connect,
    environment,
    segment_on_ray,
)
from pipeline.cohort.running import run_cohort
from pipeline.cohort.segmenting import Segmenter
from pipeline.errors import AR2UNetError, BundleError
from pipeline.predictor import Predictor

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")
from ray._private import ray_constants  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

WAIT = 60  # seconds until a test that would hang fails instead
SMALL = {"object_store_memory": 100 * 2**20}


class TroubledWorker(Worker):
    """Dies of a scan named deadly, and holds the first scan that it gets on a node that is to be killed."""

    def segment(self, found):
        notes = self._folder.out.parent / "notes"
        node = ray.get_runtime_context().get_node_id()
        if found.name.endswith("deadly"):
            with (notes / "deaths").open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        if (notes / f"hold-{node}").exists():
            (notes / "held.part").write_text(found.name)
            (notes / "held.part").rename(notes / "held")
            time.sleep(WAIT)
        deadline = time.monotonic() + WAIT
        while not (notes / "held").exists() and time.monotonic() < deadline:
            time.sleep(0.01)  # else one node may be done with all before the other one has begun
        return super().segment(found)


@pytest.fixture
def notes(tmp_path):
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes on the loopback of this machine, the first of which is ours."""
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)  # read when ray was imported
    # Workers do not have the folder of the tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with environment(OFFLINE | LOOPBACK):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **SMALL})
        try:
            cluster.second = cluster.add_node(num_cpus=1, **SMALL)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_cluster_that_loses_a_node_gives_the_results_of_one_machine(
    cluster, notes, scans, write_scan, exported_bundle, results_of, tmp_path, monkeypatch
):
    monkeypatch.setattr(ray_workers, "Worker", TroubledWorker)
    settings = Settings(exported_bundle)
    write_scan(scans / "site1" / "deadly.nii.gz")
    for number in range(5, 9):
        write_scan(scans / "site2" / f"p{number}.nii.gz", number)
    lines, outcomes = [], []

    def note(line):
        lines.append(line)

    assert cluster.address.startswith("127.0.0.1:")
    with connect(cluster.address) as connected, open_folder(tmp_path / "many") as folder:
        (notes / f"hold-{cluster.second.node_id}").touch()
        cases = find_cases(scans, tmp_path / "many")

        def work(cases, receive):
            def kill_when_held(outcome):
                outcomes.append(outcome.found.name)
                if (notes / "held").exists() and cluster.second in cluster.worker_nodes:
                    cluster.remove_node(cluster.second, allow_graceful=False)
                receive(outcome)

            segment_on_ray(connected, folder, settings, cases, kill_when_held, on_note=note)

        summary = run_cohort(folder, cases, work)
    assert (summary.total, summary.segmented, summary.failed) == (12, 9, 3)
    held = (notes / "held").read_text()
    assert sorted(outcomes) == sorted(case.name for case in cases), "each case has one outcome"
    place = next(case.place for case in cases if case.name == held)
    assert any(line.startswith(f"{place}: its worker died") for line in lines)
    assert (notes / "deaths").read_text() == "x" * (1 + RETRIES)
    assert b'site1/deadly.nii.gz,failed,"the worker that had it died, 3 times"' in summary.table.read_bytes()

    # The same without a cluster; only there the deadly scan is one as others.
    (scans / "site1" / "deadly.nii.gz").unlink()
    with open_folder(tmp_path / "one") as folder:
        work = Segmenter(folder, settings, Predictor(exported_bundle)).segment_all
        run_cohort(folder, find_cases(scans, tmp_path / "one"), work)
    many, one = results_of(tmp_path / "many"), results_of(tmp_path / "one")
    many["table"] = b"\n".join(line for line in many["table"].splitlines() if b"deadly" not in line)
    assert many == one


class Remote:
    """Stands for Ray: actors are plain objects, answers are ready at once."""

    def __init__(self, nodes):
        self.cpus = nodes
        self.made = 0

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": cpus} if cpus else {}} for cpus in self.cpus]

    def remote(self, **options):
        assert (options["max_restarts"], options["max_task_retries"]) == (0, 0)
        return lambda kind: Maker(self, kind)

    def wait(self, answers, num_returns, timeout):
        return answers[:1], answers[1:]

    def get(self, answer):
        return answer.content


class Maker:
    def __init__(self, stand_in, kind):
        self.stand_in, self.kind = stand_in, kind

    def remote(self, *arguments):
        self.stand_in.made += 1
        return Actor(self.kind(*arguments))


class Actor:
    def __init__(self, worker):
        self._worker = worker

    def __getattr__(self, name):
        return Call(getattr(self._worker, name))


class Call:
    def __init__(self, method):
        self._method = method

    def remote(self, *arguments):
        return Answer(self._method(*arguments))


class Answer:
    def __init__(self, content):
        self.content = content


class PlainWorker(Worker):
    def start(self):
        return None

    def segment(self, found):
        return found


@pytest.fixture
def crew(monkeypatch, bundle, tmp_path):
    """Give cases to a cluster of nodes with so many processors; what is received comes back, and workers made."""
    monkeypatch.setattr(ray_workers, "Worker", PlainWorker)

    def run(nodes, cases, *, num_cpus=1, receive=None):
        stand_in, received = Remote(nodes), []
        with open_folder(tmp_path / "out") as folder:
            segment_on_ray(stand_in, folder, Settings(bundle), cases, receive or received.append, num_cpus=num_cpus)
        return received, stand_in.made

    return run


@pytest.mark.parametrize(("nodes", "num_cpus", "workers"), [([8, 3, 0], 2, 5), ([8, 3], 1, 11), ([4.0, 3], 4, 1)])
def test_there_are_as_many_workers_as_the_nodes_have_room_for(crew, nodes, num_cpus, workers):
    received, made = crew(nodes, range(100), num_cpus=num_cpus)
    assert sorted(received) == list(range(100))
    assert made == workers


def test_cases_are_taken_only_as_workers_become_free(crew):
    taken, received = 0, 0

    def cases():
        nonlocal taken
        for number in range(50):
            taken += 1
            assert taken - received <= 3 + 1
            yield number

    def receive(outcome):
        nonlocal received
        received += 1

    crew([3], cases(), receive=receive)
    assert received == 50


def test_a_worker_larger_than_every_node_is_refused(crew):
    with pytest.raises(AR2UNetError, match="asks for 8 CPUs, but no node of the cluster has more than 4"):
        crew([4, 2], range(3), num_cpus=8)


def test_a_worker_whose_bundle_is_another_one_says_so(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_workers, "bind_processors", lambda count: [])
    with open_folder(tmp_path / "out") as folder:
        error = Worker(folder, Settings(bundle), 1, "another hash").start()
    assert isinstance(error, BundleError)
    assert "is another bundle than here" in str(error)


def test_an_address_without_a_cluster_is_refused_in_a_line():
    with pytest.raises(AR2UNetError, match="expected a running Ray cluster"), connect("auto"):
        pass


def test_workers_of_a_node_take_processors_of_their_own_as_far_as_there_are_any(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_workers, "CPU_LOCKS", tmp_path)
    available = os.sched_getaffinity(0)
    try:
        first = bind_processors(1)
        assert os.sched_getaffinity(0) == set(first)
        os.sched_setaffinity(0, available)
        second = bind_processors(1)
        assert len(second) == 1 if len(available) > 1 else set(second) == available
        assert len(available) == 1 or not set(first) & set(second)
        os.sched_setaffinity(0, available)
        assert set(bind_processors(len(available))) == available, "too few are left, so all are shared"
    finally:
        os.sched_setaffinity(0, available)


def test_variables_for_other_processes_are_taken_back(monkeypatch):
    monkeypatch.setenv("http_proxy", "before")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    with environment(OFFLINE):
        assert os.environ["http_proxy"].startswith("http://127.0.0.1:")
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["http_proxy"] == "before"
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ
