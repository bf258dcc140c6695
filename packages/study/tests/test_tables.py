import json

import pytest
from modelfix import tables
from modelfix.cells import Cell, entrant_name
from modelfix_core.approach import Outcome
from modelfix_core.record import Entrant, Record


def record(repetition=1, after=0.9, **changes):
    entrant = Entrant(
        approach="a", abbreviation="A", category="layer", preset="default", config={}, version="1"
    )
    value = {"value": after, "warnings": [], "metric": "accuracy"}
    fields = {
        "cell": "c",
        "entrant": entrant,
        "subject": "s",
        "repetition": repetition,
        "seed": 0,
        "outcome": Outcome.FIXED,
        "evaluation": {
            "metrics": {
                "accuracy": value,
                "aaod": {"value": None, "warnings": [], "metric": "aaod"},
                "asr": {"value": 0.5, "warnings": ["it is masked"], "metric": "asr"},
            },
            "original": {"accuracy": value | {"value": 0.8}},
        },
        "seconds": {"fixing": 1.23},
    }
    return Record(**(fields | changes))


def printed(capsys, cells):
    tables.comparison(cells)
    return capsys.readouterr().out


def test_before_and_after_and_what_is_absent(capsys, tmp_path):
    out = printed(capsys, [Cell(tmp_path, record(), reused=True)])
    assert "80.00% -> 90.00%" in out
    assert "complete already, reused" in out
    assert "it is masked" in out
    assert "mean" not in out


def test_mean_and_deviation_over_repetitions(capsys, tmp_path):
    cells = [Cell(tmp_path, record(i, value), False) for i, value in enumerate((0.8, 0.9))]
    out = printed(capsys, cells)
    assert "85.00% ± 7.07%" in out


@pytest.mark.parametrize("outcome", [Outcome.UNADAPTABLE, Outcome.FAILURE])
def test_outcomes_without_a_model(capsys, tmp_path, outcome):
    failed = record(outcome=outcome, reason="it has no dense layer", evaluation=None)
    out = printed(capsys, [Cell(tmp_path, failed, False)])
    assert outcome in out
    assert "it has no dense layer" in out
    assert "fixed model" not in out


def test_entrants_have_names_of_their_own():
    assert entrant_name("arachne", "default", {}) == "arachne"
    assert entrant_name("arachne", "study", {}) == "arachne-study"
    first = entrant_name("arachne", "default", {"alpha": 1})
    assert first != entrant_name("arachne", "default", {"alpha": 2})
    assert first == entrant_name("arachne", "default", json.loads('{"alpha": 1}'))
