"""The Slurm engine on submitit's local executor, which runs jobs as processes here."""

import sys
import time

import pytest
from modelfix.grid.engines import LOST, Started, Work
from modelfix.grid.engines import make as make_engine
from modelfix.grid.engines.slurm import Slurm
from modelfix_core import ModelfixError


@pytest.fixture
def slurm(tmp_path):
    engine = Slurm(str(tmp_path), cluster="local")
    yield engine
    engine.close()


def work(name, code, **changes):
    return Work(name=name, arguments=("-c", code), memory=10**8, **changes)


def ends(engine, count):
    """Return the last events of so many works, by name."""
    found, started = {}, set()
    deadline = time.monotonic() + 200
    while len(found) < count:
        assert time.monotonic() < deadline
        for event in engine.wait(0.5):
            if isinstance(event, Started):
                started.add(event.work.name)
            else:
                found[event.work.name] = event
    return found


def test_works_end_with_their_code_and_last_words(slurm):
    slurm.submit(work("good", "print('done')"))
    slurm.submit(work("bad", "import sys; sys.exit('no: 7')"))
    slurm.submit(work("killed", "import os; os.kill(os.getpid(), 9)"))
    found = ends(slurm, 3)
    assert (found["good"].code, found["good"].output) == (0, "done\n")
    assert (found["bad"].code, found["bad"].output) == (1, "no: 7\n")
    assert found["killed"].code == -9


def test_a_lost_job_is_told_as_one(slurm):
    slurm.submit(work("lost", "import os; os.kill(os.getppid(), 9)"))
    assert ends(slurm, 1)["lost"].code == LOST


def test_no_slurm_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ModelfixError, match="no Slurm on this machine"):
        make_engine("slurm", folder=str(tmp_path))


@pytest.mark.parametrize(("engine", "library"), [("ray", "ray"), ("slurm", "submitit")])
def test_what_is_not_installed_is_said_with_what_to_do(engine, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModelfixError, match=rf"pip install 'modelfix\[{engine}\]'"):
        make_engine(engine)
