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


@pytest.fixture
def cluster(stub_python):
    process = subprocess.Popen(
        [stub_python, "-c", CLUSTER],
        env=clean_environ() | {"RAY_raylet_start_wait_time_s": "300"},  # on busy machines
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.wait(120)


def on_both_nodes(home):
    """Whether two cells have begun: each node has one core."""
    return len(list(home.runs.glob("*/*.partial/candidates.jsonl"))) >= 2


def test_a_node_is_lost_and_the_study_completes_with_the_same_records(cluster, make_home):
    here, there = make_home("here"), make_home("there")
    for home in (here, there):
        home.write([{"approach": "stub", "config": {"seconds": 6.0}}], repetitions=4)
    address = cluster.stdout.readline().strip()
    study = there.start("--engine", "ray", "--address", address)
    deadline = time.monotonic() + 300
    while not on_both_nodes(there) and study.poll() is None:
        assert time.monotonic() < deadline, "no cell began"
        time.sleep(0.2)
    cluster.stdin.write("kill\n")
    cluster.stdin.flush()
    assert cluster.stdout.readline() == "killed\n"
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
    address = cluster.stdout.readline().strip()
    store = f"file://{tmp_path / 'store'}"
    done = home.run("--engine", "ray", "--address", address, "--store", store)
    assert done.returncode == 0, (done.out, done.err)
    stored = sorted((tmp_path / "store" / "runs" / home.subject / "stub").glob("*/record.json"))
    assert len(stored) == 2
    for path in stored:
        assert Record.load(path.parent) == Record.load(home.runs / "stub" / path.parent.name)
