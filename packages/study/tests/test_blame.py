import json

import pytest
from modelfix import blame, cells, tables
from modelfix.catalogue import Catalogue
from modelfix_core import ModelfixError
from modelfix_core import job as job_module
from modelfix_core.job import run_job
from modelfix_core.record import Record
from modelfix_core.subjects.planted import prepare_planted
from modelfix_metrics.attacks import AttackOptions
from modelfix_metrics.cell import evaluate_record
from modelfix_testing import tiny_subject


@pytest.fixture
def scored(tmp_path, monkeypatch, shift):
    """Score the stand-in on a planted fault, with its processes run in this one."""

    class Stub:
        def load(self, name):
            return shift

    def fix(home, runtimes, job):
        record, reused = run_job(job)
        return cells.Cell(job.record, record, reused)

    def evaluate(runtimes, records, subject, arguments=()):
        assert "--no-attack" in arguments
        for record in records:
            evaluate_record(record, subject, attack=AttackOptions(metrics=()))
        return [Record.load(record) for record in records]

    monkeypatch.setattr(job_module, "Registry", Stub)
    monkeypatch.setattr(cells, "fix", fix)
    monkeypatch.setattr(cells, "evaluate", evaluate)
    home = cells.Home(tmp_path / "home")
    base = tiny_subject(home.subjects)

    def score(**changes):
        planted = prepare_planted(base, **changes).subject
        return blame.score(home, None, planted, "arachne"), planted

    return score


def test_score_of_a_run_on_a_planted_fault(scored, capsys):
    row, planted = scored(size=2, seed=3)
    assert row["outcome"] == "FIXED"
    assert row["score"]["kind"] == "weight"
    assert (row["score"]["blamed"], row["score"]["planted"]) == (1, 2)
    assert 0 <= row["repair_rate"] <= 1
    assert json.loads(json.dumps(row))["record"].endswith("/arachne/1")
    tables.blame([row, {**row, "score": None, "reason": "it fits not"}], planted.card)
    out = capsys.readouterr().out
    assert "2 disturbed weights" in out
    assert "precision@10" in out
    assert "it fits not" in out


def test_only_approaches_that_localise_are_scored():
    catalogue = Catalogue()
    names = {info.name for info in blame.localising(catalogue)}
    assert {"arachne", "care", "inner", "hudd"} <= names
    assert not names & {"apricot", "fsgmix", "reassure"}
    assert [info.name for info in blame.localising(catalogue, ["AR"])] == ["arachne"]
    with pytest.raises(ModelfixError, match="apricot: does not say what is to blame"):
        blame.localising(catalogue, ["apricot"])
