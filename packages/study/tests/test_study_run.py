"""Studies on one machine: run as a user runs them, with real processes."""

import contextlib
import itertools
import os
import random
import resource
import signal
import threading
import time

import psutil
import pytest
from modelfix_core.record import Record

ALL_ENDS = {"well": "FIXED", "error": "FAILURE", "crash": "FAILURE", "unadaptable": "UNADAPTABLE"}


def ends(*names, **config):
    """Return one entrant for each way in which the stub can end."""
    return [{"approach": "stub", "config": {"ends": name, **config}} for name in names]


def by_end(home):
    """Return the standing of each entrant by how it was told to end."""
    found = {}
    for row in home.standings().values():
        found[Record.load(row["record"]).entrant.config["ends"]] = row
    return found


def test_every_cell_ends_with_its_outcome_and_the_rest_completes(study_home):
    study_home.write(ends(*ALL_ENDS), repetitions=1)
    done = study_home.run()
    assert done.returncode == 0, done.err
    found = by_end(study_home)
    assert {end: row["state"] for end, row in found.items()} == ALL_ENDS
    assert "ZeroDivisionError: nothing to divide by" in found["error"]["reason"]
    assert "signal 11" in found["crash"]["reason"]
    assert "3 times" in found["crash"]["reason"]
    assert found["crash"]["reason"] in done.out
    assert "1 FIXED" in done.out
    record = Record.load(found["well"]["record"])
    assert record.evaluation["metrics"]["accuracy"]["denominator"] == 300
    assert study_home.leftovers() == []
    assert "stub" in (study_home.home / "studies" / "tiny" / "study.yaml").read_text()


def test_same_command_reuses_and_more_repetitions_run_only_what_is_new(study_home):
    study_home.write(repetitions=1)
    assert study_home.run().returncode == 0
    before = (study_home.runs / "stub" / "1" / "record.json").read_text()
    again = study_home.run()
    assert again.returncode == 0
    assert "running" not in again.err
    study_home.write(repetitions=2)
    more = study_home.run()
    assert more.returncode == 0
    assert "stub/2 running" in more.err
    assert "stub/1 running" not in more.err
    assert (study_home.runs / "stub" / "1" / "record.json").read_text() == before


def test_retry_runs_failures_again_and_nothing_else(study_home):
    study_home.write(ends("well", "error"))
    assert study_home.run().returncode == 0
    before = {path: path.read_text() for path in study_home.runs.rglob("record.json")}
    done = study_home.run("--retry", "failure")
    assert done.returncode == 0, done.err
    assert done.err.count("running") == 1
    changed = [path for path, text in before.items() if path.read_text() != text]
    assert len(changed) == 1
    assert Record.load(changed[0].parent).outcome == "FAILURE"
    wrong = study_home.run("--retry", "failur")
    assert wrong.returncode == 2
    assert wrong.err == (
        "error: --retry 'failur': choose from fixed, corrupted, failure, unadaptable.\n"
    )


def test_limits_end_cells_that_leak_or_hang(study_home):
    limits = {"seconds": 1.0, "memory": 0.4}
    study_home.write(ends("leak", "hang", "clock"), limits=limits)
    done = study_home.run()
    assert done.returncode == 0, done.err
    found = by_end(study_home)
    states = {end: row["state"] for end, row in found.items()}
    assert states == {"leak": "FAILURE", "hang": "FAILURE", "clock": "FIXED"}
    assert "memory limit" in found["leak"]["reason"]
    assert "time limit" in found["hang"]["reason"]


def test_full_disk_is_the_trouble_of_the_cell_that_met_it(study_home):
    """As a quota on the size of a file: only what writes much meets it."""
    study_home.write(ends("full", "well"))

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 1024**2, 2 * 1024**2))

    done = study_home.run(preexec_fn=small_disk)
    assert done.returncode == 1
    states = sorted(row["state"] for row in study_home.standings().values())
    assert states == ["FIXED", "no record"]
    assert "the disk is full (File too large)" in done.out
    assert study_home.run().returncode == 0  # with room, the same command makes the rest
    assert {row["state"] for row in study_home.standings().values()} == {"FIXED"}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_disk_that_is_full_for_everybody(study_home, tmp_path):
    study_home.write(ends("full", "well"))
    study_home.runs.parent.mkdir(parents=True)
    if os.system(f"mount -t tmpfs -o size=600k none {study_home.runs.parent} 2>/dev/null"):
        pytest.skip("nothing can be mounted here")
    try:
        done = study_home.run()
        assert done.returncode == 1
        assert "the disk is full" in done.out
        assert "Traceback" not in done.out + done.err
    finally:
        os.system(f"umount {study_home.runs.parent}")


def test_folder_that_cannot_be_written(study_home):
    """A file in the way of one entrant's folder: as root, permissions refuse nothing."""
    study_home.write(["stub", *ends("error")])
    study_home.runs.mkdir(parents=True)
    (study_home.runs / "stub").write_text("in the way")
    done = study_home.run()
    assert done.returncode == 1
    assert "stub/1: no record: " in done.out
    assert "cannot be written" in done.out
    assert "1 FAILURE" in done.out
    (study_home.home / "studies").rename(study_home.home / "s")
    (study_home.home / "studies").write_text("in the way")
    done = study_home.run()
    assert done.returncode == 2
    assert "cannot be written" in done.err
    assert "Traceback" not in done.err


def test_subject_that_cannot_be_prepared_is_the_trouble_of_its_cells(study_home):
    study_home.write(subjects=[study_home.subject, "utkface-facenet"])
    done = study_home.run()
    assert done.returncode == 1
    assert "utkface-facenet/stub/1: no record: subject utkface-facenet cannot be" in done.out
    assert "1 FIXED" in done.out


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def processes_of(home):
    """Return the processes that work on this home."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(home.home) in line and process.pid != os.getpid():
            found.append(process)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_runs_on_when_the_study_is_ended(study_home, number):
    study_home.write(ends("well", seconds=60.0))
    process = study_home.start(
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    )
    wait_for(lambda: list(study_home.runs.glob("*/1.partial/candidates.jsonl")))
    running = study_home.standings()
    assert {row["state"] for row in running.values()} == {"running"}
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "the same command goes on from here" in errors
    wait_for(lambda: not processes_of(study_home), 30)
    assert not list(study_home.runs.rglob("record.json"))
    assert {row["state"] for row in study_home.standings().values()} == {"waiting"}


def test_two_runs_at_once_share_the_cells(study_home):
    study_home.write(ends("well", "error", seconds=1.0), repetitions=2)
    both = [study_home.start(), study_home.start()]
    texts = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    states = [row["state"] for row in study_home.standings().values()]
    assert sorted(states) == ["FAILURE", "FAILURE", "FIXED", "FIXED"]
    assert study_home.leftovers() == []


def kill_at_a_random_moment(home, rng, span, one_first):
    """Start the study and kill it; before that perhaps one of its processes, which it survives.

    Returns whether it was running still.
    """
    process = home.start(start_new_session=True)
    reader = threading.Thread(target=process.communicate, daemon=True)
    reader.start()
    end = time.monotonic() + rng.uniform(0, span)
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    victims = [one for one in processes_of(home) if one.pid != process.pid]
    if one_first and victims:
        with contextlib.suppress(psutil.Error):
            rng.choice(victims).kill()
        time.sleep(rng.uniform(0, 1))
    running = process.poll() is None
    process.kill()
    reader.join()
    return running


@pytest.mark.parametrize(
    "kills", [pytest.param(5, id="few"), pytest.param(100, id="100", marks=pytest.mark.slow)]
)
def test_killed_at_random_moments_the_records_are_those_of_an_undisturbed_run(make_home, kills):
    """Each home is killed until it is complete, then the next one."""
    repetitions = 1 if kills < 100 else 4
    undisturbed = make_home("undisturbed")
    undisturbed.write(ends("well", "error"), repetitions=repetitions)
    started = time.monotonic()
    assert undisturbed.run().returncode == 0
    span = (time.monotonic() - started) / repetitions
    rng, done = random.Random(0), 0
    for number in itertools.count():
        home, seen, running = make_home(f"killed-{number}"), set(), True
        home.write(ends("well", "error"), repetitions=repetitions)
        while running and done < kills:
            running = kill_at_a_random_moment(home, rng, span, one_first=done % 2 == 1)
            done += running
            there = set(home.runs.glob("*/*/record.json")) - set(home.runs.glob("*/*.*/*"))
            assert seen <= there, "a record was lost"
            for path in there:
                Record.load(path.parent)  # never half of one
            seen = there
        last = home.run()
        assert last.returncode == 0, last.err
        assert home.records() == undisturbed.records()
        assert home.leftovers() == []
        if done >= kills:
            return
