import json
import os
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from modelfix_core import Evidence, Model, ModelfixError, Outcome
from modelfix_core import job as job_module
from modelfix_core.job import Job, record_failure, run_job
from modelfix_core.record import Record, load_evidence
from modelfix_core.subject import Subject, SubjectCard, data_hash


@pytest.fixture
def subject(tmp_path, model, dataset) -> Subject:
    folder = tmp_path / "subjects" / "small"
    dataset.save(folder)
    model.save(folder / "model.onnx")
    SubjectCard(
        name="small",
        summary="A test.",
        dataset="random",
        architecture="dense",
        classes=list(dataset.classes),
        input_shape=model.input_shape,
        splits={name: len(split) for name, split in dataset.splits.items()},
        attack_epsilon=0.1,
        seed=0,
        validation_accuracy=model.accuracy(dataset["validation"]),
        model_hash=model.hash,
        data_hash=data_hash(folder),
        identity="small",
    ).save(folder)
    return Subject.load(folder)


@pytest.fixture
def make_job(tmp_path, subject, nudge, monkeypatch):
    """Return a function that makes a job for the stand-in approach."""

    class Stub:
        def load(self, name):
            assert name == "nudge"
            return nudge

    monkeypatch.setattr(job_module, "Registry", Stub)

    def make(**changes):
        fields = {
            "approach": "nudge",
            "subject": subject.folder,
            "record": tmp_path / "runs" / "small" / "nudge" / "1",
        }
        return Job(**{**fields, **changes})

    return make


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_record_folder_is_complete(make_job, subject):
    job = make_job()
    record, reused = run_job(job)
    assert not reused
    files = "candidates.jsonl fixed.onnx job.json localisation.parquet log.txt record.json"
    assert names(job.record) == files.split()
    assert names(job.record.parent) == ["1"]
    assert Record.load(job.record) == record
    fixed = Model.load(job.record / "fixed.onnx")
    assert record.hashes == {
        "original": subject.card.model_hash, "data": subject.card.data_hash, "fixed": fixed.hash,
    }  # fmt: skip
    assert fixed.metadata["modelfix.fixed_from"] == subject.card.model_hash
    lines = (job.record / "candidates.jsonl").read_text().splitlines()
    assert len(lines) == record.candidates == 3
    assert json.loads(lines[0])["step"] == 1
    table = pq.read_table(job.record / "localisation.parquet").to_pylist()
    assert table == [{"kind": "neuron", "layer": "fc2", "index": 0, "score": 1.0, "rank": 1}]
    assert record.provenance["versions"]["numpy"]


def test_evidence_is_stored_and_read_back(make_job, nudge, monkeypatch):
    shown = Evidence("clusters", "Failures alike.", {"cluster": [0, 0, 1], "sample": [4, 7, 9]})

    class Showing(nudge):
        def candidates(self, task):
            yield shown
            yield from super().candidates(task)

    monkeypatch.setattr(job_module.Registry, "load", lambda self, name: Showing)
    job = make_job()
    run_job(job)
    (again,) = load_evidence(job.record)
    assert (again.name, again.summary) == (shown.name, shown.summary)
    assert {name: list(column) for name, column in again.columns.items()} == shown.columns
    (job.record / "evidence" / "clusters.parquet").write_bytes(b"broken")
    with pytest.raises(ModelfixError, match=r"clusters\.parquet.*damaged"):
        load_evidence(job.record)


def test_same_command_reuses_and_a_changed_one_does_not(make_job):
    first, _ = run_job(make_job())
    again, reused = run_job(make_job())
    assert reused
    assert again == first
    for change in ({"seed": 1}, {"config": {"steps": 2}}, {"repetition": 2}, {"seconds": 100.0}):
        other, reused = run_job(make_job(**change))
        assert not reused
        assert other.cell != first.cell


def test_a_failure_can_be_recorded_without_running_anything(make_job):
    job = make_job()
    record = record_failure(job, "killed by signal 9, 3 times")
    assert record.outcome is Outcome.FAILURE
    assert Record.load(job.record) == record
    assert record.reason == "killed by signal 9, 3 times"
    assert names(job.record) == ["job.json", "record.json"]
    again, reused = run_job(job)
    assert reused
    assert again == record


def test_what_killed_writers_left_is_not_in_the_record(make_job):
    job = make_job()
    job.save()
    for name in (".fixed.onnx.a1b2c3_d", ".job.json.abcdefgh"):
        (job.partial / name).write_text("half")
    run_job(job)
    assert not [path for path in job.record.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("damage", ["fixed.onnx", "record.json"])
def test_damaged_records_are_made_again(make_job, damage):
    job = make_job()
    first, _ = run_job(job)
    (job.record / damage).write_bytes(b"{}")
    again, reused = run_job(job)
    assert not reused
    assert again.hashes["fixed"] == first.hashes["fixed"]


@pytest.mark.parametrize(
    ("fail", "outcome"), [("unadaptable", Outcome.UNADAPTABLE), ("crash", Outcome.FAILURE)]
)
def test_other_outcomes_are_records_too(make_job, fail, outcome):
    job = make_job(config={"fail": fail})
    record, _ = run_job(job)
    assert record.outcome is outcome
    assert record.reason
    assert not (job.record / "fixed.onnx").exists()
    assert run_job(job)[1]
    if outcome is Outcome.FAILURE:
        assert "ZeroDivisionError" in (job.record / "log.txt").read_text()


def test_a_job_never_sees_the_test_split(make_job, subject):
    for path in (subject.folder / "test").iterdir():
        path.write_bytes(b"poison")
    record, _ = run_job(make_job())
    assert record.outcome is Outcome.FIXED


def test_changed_original_model_is_noticed(make_job, subject, model, nudge, monkeypatch):
    class Meddling(nudge):
        def candidates(self, task):
            model.with_weights({"fc2.bias": [0, 0, 0]}).save(subject.folder / "model.onnx")
            yield from super().candidates(task)

    job = make_job()
    monkeypatch.setattr(job_module.Registry, "load", lambda self, name: Meddling)
    with pytest.raises(ModelfixError, match="was changed while"):
        run_job(job)
    assert not job.record.exists()


def test_user_mistakes_record_nothing(make_job, tmp_path):
    job = make_job(config={"stepps": 1})
    with pytest.raises(ModelfixError, match="no option 'stepps'"):
        run_job(job)
    assert not job.record.exists()
    with pytest.raises(ModelfixError, match="no prepared subject"):
        run_job(make_job(subject=tmp_path / "nowhere"))


def test_unwritable_output(make_job, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelfixError, match="cannot be written"):
        run_job(make_job(record=tmp_path / "file" / "1"))


def test_job_files_are_checked(tmp_path):
    path = tmp_path / "job.json"
    with pytest.raises(ModelfixError, match="does not exist"):
        Job.load(path)
    path.write_text('{"approach": "a", "subject": "s", "record": "r", "colour": 1}')
    with pytest.raises(ModelfixError, match=r"job\.json: colour"):
        Job.load(path)
    path.write_text("{")
    with pytest.raises(ModelfixError, match=r"job\.json"):
        Job.load(path)


# -- as a process --

PLUGIN = """
import time
import numpy as np
from modelfix_core import *

class Slow(Approach):
    info = ApproachInfo(
        "slow", "SL", "Slow", Category.NEURON, Framework.NONE, "p", "s.", frozenset()
    )

    class Config(ApproachConfig):
        sleep: float = 0.0
        hold: int = 0
        deaf: bool = False

    def check(self, task): ...

    def candidates(self, task):
        held = np.ones(self.config.hold, np.uint8)
        yield Candidate(weights={})
        print("working", flush=True)
        end = time.monotonic() + self.config.sleep
        while time.monotonic() < end:
            time.sleep(0.05)
            if not self.config.deaf:
                task.progress(1, 2)
        yield Candidate(weights={}, step=len(held[:1]))
"""


def listen_to_interrupts():
    """A test run in the background ignores interrupts; what it starts would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path, subject):
    """Return a function that starts a job of an installed approach as a process."""
    site = tmp_path / "site"
    info = site / "slow_plugin-0.1.dist-info"
    info.mkdir(parents=True)
    (site / "slow_plugin.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-plugin\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[modelfix.approaches]\nslow = slow_plugin:Slow\n")
    started = []

    def run(job):
        process = subprocess.Popen(
            [sys.executable, "-m", "modelfix_core.job", str(job.save())],
            env=os.environ | {"PYTHONPATH": str(site)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=listen_to_interrupts,
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def slow_job(tmp_path, subject):
    def make(**changes):
        fields = {"approach": "slow", "subject": subject.folder, "record": tmp_path / "runs" / "1"}
        return Job(**{**fields, **changes})

    return make


def test_process_says_its_outcome(start, slow_job):
    output, _ = start(slow_job()).communicate()
    assert output.splitlines()[-1] == "FIXED"
    output, _ = start(slow_job()).communicate()
    assert output.splitlines()[-1] == "FIXED (complete already)"


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_process_leaves_no_record_and_the_next_run_goes_on(start, slow_job, kill):
    job = slow_job(config={"sleep": 60.0})
    process = start(job)
    assert process.stdout.readline() == "working\n"
    process.send_signal(kill)
    _, errors = process.communicate()
    assert process.returncode != 0
    assert "Traceback" not in errors
    assert not job.record.exists()
    output, _ = start(slow_job()).communicate()
    assert output.splitlines()[-1] == "FIXED"
    assert names(job.record.parent) == ["1"]


def test_second_process_on_the_same_cell_is_refused(start, slow_job):
    first = start(slow_job(config={"sleep": 60.0}))
    assert first.stdout.readline() == "working\n"
    second = start(slow_job(config={"sleep": 60.0}))
    _, errors = second.communicate()
    assert second.returncode == 2
    assert "another process is working on this cell" in errors


def test_memory_limit_is_a_failure_not_a_crash(start, slow_job):
    job = slow_job(config={"hold": 700 * 1024**2, "sleep": 60.0}, memory=500 * 1024**2)
    process = start(job)
    process.communicate()
    assert process.returncode == 0
    record = Record.load(job.record)
    assert record.outcome is Outcome.FAILURE
    assert "memory limit of 524,288,000 bytes" in record.reason


def test_time_limit_of_a_job_that_does_not_listen(start, slow_job):
    job = slow_job(config={"sleep": 300.0, "deaf": True}, seconds=0.5)
    process = start(job)
    process.communicate()
    assert process.returncode == 0
    record = Record.load(job.record)
    assert record.outcome is Outcome.FAILURE
    assert "time limit" in record.reason


def test_mistakes_are_one_sentence_and_exit_code_2(start, slow_job):
    process = start(slow_job(approach="slw"))
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors == "error: there is no approach 'slw'; did you mean slow?\n"
