"""The local engine, without any study."""

import time

import psutil
import pytest
from modelfix.grid.engines import Ended, Work
from modelfix.grid.engines.local import Local
from modelfix.grid.plan import finish_time

GIB = 1024**3


def work(name, code="", **changes):
    return Work(name=name, arguments=("-c", code), **changes)


def finish(engine, count):
    """Return how so many works ended, by name."""
    found = {}
    while len(found) < count:
        found |= {e.work.name: e for e in engine.wait(60) if isinstance(e, Ended)}
    return found


@pytest.fixture
def local():
    """Return a function that makes an engine of a machine of that size."""
    made = []

    def make(cores=4, memory=8, gpus=(), **changes):
        made.append(Local(cores=cores, memory=memory * GIB, gpus=gpus, **changes))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def begun(engine, works):
    """Return the names of what starts at once."""
    for one in works:
        engine.submit(one)
    return [event.work.name for event in engine.wait(1)]


def waiting(name, **changes):
    return work(name, "import time; time.sleep(60)", **changes)


def test_codes_and_last_words(local):
    engine = local()
    engine.submit(work("good", "print('x' * 100_000); print('last')"))
    engine.submit(work("bad", "import sys; sys.exit('no')"))
    engine.submit(work("killed", "import os; os.kill(os.getpid(), 9)"))
    found = finish(engine, 3)
    assert {name: end.code for name, end in found.items()} == {"good": 0, "bad": 1, "killed": -9}
    assert found["good"].output.endswith("x\nlast\n")
    assert len(found["good"].output) < 20_000
    assert found["bad"].output == "no\n"


def test_as_many_at_once_as_cores_memory_and_the_user_allow(local):
    works = [waiting(f"w{i}", cores=2, memory=GIB) for i in range(4)]
    assert begun(local(cores=4), works) == ["w0", "w1"]
    assert begun(local(cores=9, memory=3), works) == ["w0", "w1", "w2"]
    assert begun(local(cores=9, parallel=1), works) == ["w0"]
    assert begun(local(cores=1), works) == ["w0"]  # alone, a work of any size may try


def test_small_works_start_beside_one_that_must_wait(local):
    works = [waiting("a", cores=3), waiting("b", cores=3), waiting("c", cores=1)]
    assert begun(local(cores=4), works) == ["a", "c"]


@pytest.mark.parametrize(("share", "expected"), [(1, ["0", "1"]), (0.5, ["0", "0", "1", "1"])])
def test_gpus_are_given_whole_or_in_parts(local, share, expected, tmp_path):
    code = (
        "import os, pathlib, sys, time; place = pathlib.Path(sys.argv[1]);"
        "place.write_text(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(60)"
    )
    engine = local(cores=9, gpus=("0", "1"))
    works = [
        Work(f"w{i}", ("-c", code, str(tmp_path / f"w{i}")), gpus=share)
        for i in range(len(expected) + 1)
    ]
    assert begun(engine, works) == [f"w{i}" for i in range(len(expected))]
    while len(seen := [p.read_text() for p in sorted(tmp_path.iterdir())]) < len(expected) or not (
        all(seen)
    ):
        time.sleep(0.1)
    assert sorted(seen) == expected


def test_close_ends_what_runs_and_what_it_started(local, tmp_path):
    code = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    engine = local()
    engine.submit(work("parent", code))
    engine.wait(1)
    while not (tmp_path / "child").exists() or not (text := (tmp_path / "child").read_text()):
        time.sleep(0.05)
    engine.close()
    assert not psutil.pid_exists(int(text)) or psutil.Process(int(text)).status() == "zombie"


def test_a_clock_that_is_set_back_changes_nothing(local, monkeypatch):
    engine = local()
    monkeypatch.setattr(time, "time", lambda: -1e9)
    engine.submit(work("a"))
    assert finish(engine, 1)["a"].code == 0


def test_longest_first_fills_the_slots():
    assert finish_time([], 2) == 0
    assert finish_time([3, 2, 2, 1], 2) == 4
    assert finish_time([5, 1], 9) == 5
