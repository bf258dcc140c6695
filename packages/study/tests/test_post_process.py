"""Post-processing and fix cards by the command, on the tiny subject and without the attack."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from modelfix import records, reporting, side_effects, tables
from modelfix.cells import evaluate
from modelfix.cli import main
from modelfix.explanation import Explanation
from modelfix.fix_card import FILE, write
from modelfix.runtimes import Runtimes
from modelfix_core import ModelfixError
from modelfix_core.record import Record
from modelfix_metrics import Predictions
from PIL import Image

METHODS = ("sv", "hv", "us", "us-weight")  # what needs no PyTorch runs here


@pytest.fixture
def command(monkeypatch):
    """Return a function that runs `modelfix`; the evaluation's environment is this one."""
    monkeypatch.setattr(Runtimes, "metrics", lambda self: Path(sys.executable))

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["modelfix", *map(str, arguments)])
        return main()

    return run


def chosen(methods=METHODS):
    return [part for method in methods for part in ("--method", method)]


def test_a_record_a_card_and_a_line_per_method(make_record, command, capsys, tmp_path):
    run = make_record()
    assert command("post-process", run, *chosen(), "--no-attack") == 0
    out = capsys.readouterr().out
    entrants = run.parent.parent
    for method in METHODS:
        folder = entrants / f"arachne+{method}" / "1"
        assert f"record: {folder / 'record.json'}" in out
        assert (folder / "fixed.onnx").exists()
        assert "post-processing" in (folder / FILE).read_text()
        Explanation(folder)  # it can be explained as any other
    assert "T = " in out
    with Image.open(run.parent / side_effects.PICTURE) as image:
        assert np.asarray(image.convert("L")).std() > 5, "an empty picture"
    # The report takes them as entrants of their own.
    found, broken = records.find([tmp_path / "home" / "runs"])
    assert not broken
    frame = records.frame(found)
    assert set(frame.entrant) == {"arachne", *(f"arachne+{method}" for method in METHODS)}
    for table in reporting.make(frame, [reporting.Layout.EFFECTIVENESS, reporting.Layout.BESIDE]):
        assert "arachne+sv" in table.to_markdown()
    assert "study, " not in table.to_markdown()


def test_repetitions_are_drawn_together(make_record, command, capsys):
    runs = [make_record(1), make_record(2), make_record(3)]
    assert command("post-process", *runs, "-m", "sv", "--no-attack", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert [len(found) for found in content.values()] == [3, 3]
    assert [found["repetition"] for found in content["SV"]] == [1, 2, 3]


def test_other_entrants_are_not_drawn_together(make_record, command, capsys):
    runs = [make_record(1), make_record(1, entrant="other")]
    assert command("post-process", *runs, "-m", "sv") == 2
    assert "not repetitions of one entrant" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "predictions.parquet").unlink(), "evaluate the record first"),
        (lambda run: (run / "predictions.parquet").write_bytes(b"PAR1"), "not a readable Parquet"),
        (lambda run: (run / "record.json").write_text("{"), "is damaged"),
        (lambda run: shutil.rmtree(run), "is missing; run the fix first"),
        (
            lambda run: change(run, outcome="CORRUPTED"),
            "CORRUPTED; post-processing needs a record that is FIXED",
        ),
    ],
)
def test_bad_input_is_one_sentence(make_record, command, capfd, damage, message):
    run = make_record()
    damage(run)
    assert command("post-process", run, "-m", "sv", "--no-attack") == 2
    err = capfd.readouterr().err
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_wrong_options(make_record, command, capfd):
    run = make_record()
    assert command("post-process", run, "-m", "mean", "--no-attack") == 2
    assert "mean" in capfd.readouterr().err
    assert command("post-process", run, "-m", "up", "--noise=-1") == 2
    assert "noise is -1.0" in capfd.readouterr().err


def change(run, **values):
    path = run / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# -- the picture -----------------------------------------------------------------------------------


def stand_in(metrics, original=None):
    """Return a record that says these values."""
    entrant = {
        "approach": "arachne", "abbreviation": "AR", "category": "neuron", "preset": "default",
        "config": {}, "version": "1",
    }  # fmt: skip
    return Record(
        cell="c", entrant=entrant, subject="s", repetition=1, seed=0, outcome="FIXED",
        evaluation={
            "metrics": {
                name: {"value": value, "interval": [0.9 * value, 1.1 * value]}
                for name, value in metrics.items()
            },
            "original": {name: {"value": v} for name, v in (original or {}).items()},
        },
    )  # fmt: skip


def test_metrics_without_values_have_no_panel(tmp_path):
    columns = {
        "NO": [stand_in({"accuracy": 0.9, "nfr": 0.02}, {"accuracy": 0.88})] * 3,
        "SV": [stand_in({"accuracy": a, "nfr": 0.01}) for a in (0.91, 0.92, 0.9)],
        "UD": [stand_in({})],  # as UNADAPTABLE is
    }
    path = tmp_path / "picture.png"
    side_effects.draw(columns, path)
    two = Image.open(path).width
    for records_ in columns.values():
        for record in records_:
            record.evaluation["metrics"].pop("nfr", None)
    side_effects.draw(columns, path)
    assert Image.open(path).width * 2 == two
    with pytest.raises(ModelfixError, match="none of these records has values"):
        side_effects.draw({"NO": columns["UD"]}, path)


# -- fix cards -------------------------------------------------------------------------------------


def test_evaluation_writes_the_card(make_record, command, monkeypatch):
    run = make_record()
    subject = Explanation(run).subject.folder
    assert not (run / FILE).exists()
    evaluate(Runtimes(), [run], subject, ["--no-attack"])
    assert (run / FILE).exists()


def test_the_card_says_what_record_and_predictions_say(make_record):
    run = make_record()
    card = write(run).read_text()
    record, stored = Record.load(run), Predictions.load(run / "predictions.parquet")
    broken = stored.ids[stored.right_before & ~stored.right_after]
    for heading in (
        "# Fix card: arachne on tiny-lenet5, repetition 1", "## What was fixed", "## How",
        "## Before and after", "## What broke", "## Limits", "## Licence and provenance",
    ):  # fmt: skip
        assert heading in card
    metrics = record.evaluation["metrics"]
    for name in ("accuracy", "repair_rate", "nfr"):
        value = metrics[name]
        assert f"{value['value']:.2%}, {value['numerator']} / {value['denominator']} [" in card
    assert f"{len(broken)} input" in card
    for sample in broken[:100]:
        assert f"| {sample} |" in card
    assert f"`{record.hashes['fixed']}`" in card
    assert f"fix {record.seed}" in card
    assert "AAOD, average absolute odds difference: ABSENT (no_sensitive_attribute)" in card
    assert "option `size`" in card
    assert "/tmp" not in card, "a card travels: it names no folder of this machine"
    assert "1 |" in card
    assert write(run).read_text() == card


def test_a_record_that_was_not_evaluated(make_record, command, capsys):
    run = make_record(evaluated=False)
    assert command("card", run) == 0
    assert capsys.readouterr().out.strip() == str(run / FILE)
    assert "Not evaluated on the test split" in (run / FILE).read_text()


def test_no_card_without_a_fixed_model(make_record, command, capsys):
    run = make_record(unadaptable=True)
    assert command("card", run) == 2
    assert "UNADAPTABLE (it has no square layer)" in capsys.readouterr().err
    assert not (run / FILE).exists()


def test_no_card_from_predictions_of_another_model(make_record, command, capsys):
    run, other = make_record(1), make_record(2)
    shutil.copy(other / "predictions.parquet", run / "predictions.parquet")
    assert command("card", run) == 2
    assert "another fixed model" in capsys.readouterr().err
    (run / "predictions.parquet").write_bytes(b"")
    assert command("card", run) == 2
    assert "not a readable Parquet file" in capsys.readouterr().err


def test_table_of_repetitions(capsys):
    tables.side_effects({
        "NO": [stand_in({"accuracy": 0.9, "nfr": 0.02}, {"accuracy": 0.88})],
        "SV": [stand_in({"accuracy": a}, {"accuracy": 0.88}) for a in (0.9, 0.92)],
    })  # fmt: skip
    out = capsys.readouterr().out
    assert "88.00% -> 90.00%" in out
    assert "88.00% -> 91.00%" in out
