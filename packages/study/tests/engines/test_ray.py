"""A real Ray cluster of two nodes on one machine."""

import contextlib
import subprocess
import time

import pytest
from modelfix.environments import clean_environ
from modelfix_core.record import Record

# Runs where the stub is installed: Ray's workers take the Python of who started their node.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 10**8}
cluster = Cluster(initialize_head=True, head_node_args=node)
second = cluster.add_node(**node)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "kill\\n":
        cluster.remove_node(second, allow_graceful=False)
        print("killed", flush=True)
cluster.shutdown()
"""


class Cluster:
    """Two nodes of one core each."""

    def __init__(self, python):
        self.process = subprocess.Popen(
            [python, "-c", CLUSTER],
            env=clean_environ() | {"RAY_raylet_start_wait_time_s": "60"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.address = self.process.stdout.readline().strip()

    def kill_a_node(self):
        self.process.stdin.write("kill\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "killed\n"

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(120)


@pytest.fixture
def cluster(stub_python):
    for _ in range(3):  # a node gives itself a fixed time to start, too short on a busy machine
        cluster = Cluster(stub_python)
        if cluster.address:
            break
        cluster.close()
    yield cluster
    cluster.close()


def on_both_nodes(home):
    """Whether two cells have begun: each node has one core."""
    return len(list(home.runs.glob("*/*.partial/candidates.jsonl"))) >= 2


def test_a_node_is_lost_and_the_study_completes_with_the_same_records(cluster, make_home):
    here, there = make_home("here"), make_home("there")
    for home in (here, there):
        home.write([{"approach": "stub", "config": {"seconds": 6.0}}], repetitions=4)
    study = there.start("--engine", "ray", "--address", cluster.address)
    deadline = time.monotonic() + 300
    while not on_both_nodes(there) and study.poll() is None:
        assert time.monotonic() < deadline, "no cell began"
        time.sleep(0.2)
    cluster.kill_a_node()
    out, errors = study.communicate(timeout=500)
    assert study.returncode == 0, (out, errors)
    assert here.run().returncode == 0
    assert there.records() == here.records()
    assert len(there.records()) == 4
    assert there.leftovers() == []


def test_no_cluster_is_one_sentence(study_home):
    study_home.write()
    done = study_home.run("--engine", "ray", "--address", "127.0.0.1:1")
    assert done.returncode == 2
    assert "there is no Ray cluster at 127.0.0.1:1" in done.err
    assert "ray start --head" in done.err
    assert "Traceback" not in done.err


def test_records_come_back_by_way_of_a_store(cluster, make_home, tmp_path):
    home = make_home("one")
    home.write(repetitions=2)
    store = f"file://{tmp_path / 'store'}"
    done = home.run("--engine", "ray", "--address", cluster.address, "--store", store)
    assert done.returncode == 0, (done.out, done.err)
    stored = sorted((tmp_path / "store" / "runs" / home.subject / "stub").glob("*/record.json"))
    assert len(stored) == 2
    for path in stored:
        assert Record.load(path.parent) == Record.load(home.runs / "stub" / path.parent.name)
