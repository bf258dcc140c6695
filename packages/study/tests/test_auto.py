"""`--approach auto`: what is tried, what is rejected and why, and which model is chosen."""

import pytest
from modelfix import auto, cells
from modelfix.auto import known, limits_for, order, search
from modelfix.environments import EnvironmentFailed
from modelfix.gate import Keep, Limits
from modelfix_core import ModelfixError, Outcome
from modelfix_core.job import Job, run_job
from modelfix_core.subject import Subject
from modelfix_testing import tiny_subject

# What the stand-in approach does under the name of each of these.
ENTRANTS = {
    "harmless": {"size": 0.05},
    "strong": {"size": 0.6},
    "destructive": {"size": 60.0},
    "unfit": {"unadaptable": True},
    "idle": {"size": -0.0001},
}


class Trying:
    """The search over stand-ins on the tiny subject, in this process; counts what is run."""

    def __init__(self, home, subject):
        self.home, self.subject, self.ran = home, subject, []

    def job(self, approach, seconds):
        return Job(
            approach=approach,
            config=ENTRANTS.get(approach, {}),
            subject=self.subject.folder,
            record=self.home.record(self.subject.card.name, approach, 1),
            seconds=seconds,
        )

    def fix(self, home, runtimes, job):
        self.ran.append(job.approach)
        if job.approach == "broken":
            raise EnvironmentFailed("no network")
        if job.approach == "refusing":
            raise cells.AlreadySaid
        record, reused = run_job(job)
        return cells.Cell(job.record, record, reused)

    def __call__(self, names, limits=None, seconds=None):
        limits = Limits(accuracy_loss=0.0) if limits is None else limits
        return search(self.home, None, self.subject, names, limits, self.job, seconds)


@pytest.fixture
def trying(make_record, tmp_path, monkeypatch):
    """`make_record` puts the stand-in in the place of every approach."""
    home = cells.Home(tmp_path / "auto")
    subject = Subject.load(tiny_subject(home.subjects).folder)
    found = Trying(home, subject)
    monkeypatch.setattr(cells, "fix", found.fix)
    return found


def accuracies(trying, found):
    """Accuracy on validation of every model, from the models alone."""
    validation = trying.subject.dataset(("validation",))["validation"]
    from modelfix_core import Model

    return {
        trial.approach: Model.load(trial.folder / "fixed.onnx").accuracy(validation)
        for trial in found.trials
        if trial.verdict is not None
    }


def test_the_most_accurate_model_that_passes_is_chosen(trying):
    found = trying(list(ENTRANTS))
    assert [trial.approach for trial in found.trials] == list(ENTRANTS)
    measured = accuracies(trying, found)
    for trial in found.trials:
        if trial.verdict is not None:
            assert trial.verdict.accuracy_after == pytest.approx(measured[trial.approach])
    passing = {t.approach for t in found.trials if t.rejected is None}
    assert passing
    assert measured[found.best.approach] == max(measured[name] for name in passing)
    reasons = {trial.approach: trial.rejected for trial in found.trials}
    assert "accuracy fell by" in reasons["destructive"]
    assert reasons["unfit"] == "it has no square layer"
    assert reasons["idle"].startswith("it repairs none of the validation inputs")


def test_no_model_passes(trying):
    found = trying(["destructive", "unfit"])
    assert found.best is None
    assert all(trial.rejected for trial in found.trials)


def test_the_test_split_is_never_read(trying, monkeypatch):
    read = Subject.dataset

    def guarded(self, splits=("train", "validation", "repair", "test")):
        assert "test" not in splits
        return read(self, splits)

    monkeypatch.setattr(Subject, "dataset", guarded)
    assert trying(["strong", "harmless"]).trials


def test_the_same_search_again_runs_nothing(trying):
    first = trying(list(ENTRANTS), seconds=600)
    ran = list(trying.ran)
    again = trying(list(ENTRANTS), seconds=600)
    assert trying.ran == ran
    assert all(trial.reused for trial in again.trials)
    assert again.best.approach == first.best.approach
    assert [t.rejected for t in again.trials] == [t.rejected for t in first.trials]


def test_a_record_holds_for_other_time_limits_unless_it_was_cut_short(trying):
    cells.fix(trying.home, None, trying.job("strong", None))
    assert known(trying.job("strong", 5.0), trying.subject) is not None
    record = trying.job("strong", None).record
    job = trying.job("strong", 5.0)
    assert known(job.model_copy(update={"seed": 3}), trying.subject) is None
    cut = cells.Record.load(record).model_copy(update={"reason": "the time limit was reached"})
    cut.save(record)
    (record / "job.json").write_text(trying.job("strong", 5.0).model_dump_json())
    assert known(trying.job("strong", 4.0), trying.subject) is not None
    assert known(trying.job("strong", 6.0), trying.subject) is None
    assert known(trying.job("strong", None), trying.subject) is None


def test_one_that_cannot_run_does_not_end_the_search(trying):
    found = trying(["broken", "refusing", "strong"])
    assert [trial.rejected for trial in found.trials[:2]] == [
        "no network", "it refused the task, with the message above",
    ]  # fmt: skip
    assert found.trials[2].record.outcome in (Outcome.FIXED, Outcome.CORRUPTED)


def test_when_the_time_is_up_only_records_count(trying):
    cells.fix(trying.home, None, trying.job("harmless", None))
    trying.ran.clear()
    found = trying(["strong", "harmless"], seconds=1e-9)
    assert found.trials[0].rejected == "not tried: the time was up"
    assert found.trials[1].reused
    assert trying.ran == []


def test_an_approach_gets_two_even_shares_of_the_time_left(trying, monkeypatch):
    given = []
    job = trying.job
    monkeypatch.setattr(
        trying, "job", lambda name, seconds: given.append(seconds) or job(name, None)
    )
    trying(["strong", "harmless", "unfit"], seconds=300)
    assert given[0] == pytest.approx(200, abs=1)
    assert 200 < given[2] <= given[1] <= 300


def test_limits_of_what_is_to_be_kept(trying):
    subject = trying.subject
    assert limits_for([Keep.ACCURACY], Limits(), subject) == Limits(accuracy_loss=0.0)
    kept = limits_for([Keep.ACCURACY, Keep.COMPATIBILITY], Limits(accuracy_loss=0.02), subject)
    assert kept == Limits(nfr=auto.NFR, accuracy_loss=0.02)
    with pytest.raises(ModelfixError, match="has no groups"):
        limits_for([Keep.FAIRNESS], Limits(), subject)
    grouped = Subject(
        subject.folder, subject.card.model_copy(update={"sensitive_attribute": "hue"})
    )
    assert limits_for([Keep.FAIRNESS], Limits(), grouped) == Limits(aaod_rise=0.0)


def test_the_order_rests_on_other_subjects_only(trying, monkeypatch):
    asked = {}

    def advise(runs, **further):
        asked.update(further, runs=[run.name for run in runs])
        return type("Advice", (), {"approaches": ["strong"], "left_out": []})()

    monkeypatch.setattr(auto, "advise", advise)
    for name in ("other", trying.subject.card.name):
        (trying.home.root / "runs" / name).mkdir(parents=True)
    names, left_out = order(trying.home, trying.subject, [Keep.ACCURACY])
    assert (names, left_out) == (["strong"], [])
    assert asked["runs"] == ["other"]
    assert asked["priorities"] == ["repair", Keep.ACCURACY]
    order(trying.home, trying.subject, [], hurry=True)
    assert asked["priorities"] == ["repair", "time"]
