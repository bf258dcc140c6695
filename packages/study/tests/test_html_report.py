"""The HTML report of record folders: pages, pictures, and what is said of damaged records."""

import base64
import io
import json

import numpy as np
import pytest
from modelfix import html_report, records
from modelfix.cli import main
from modelfix_core import ModelfixError
from modelfix_core.record import Record
from modelfix_metrics.predictions import Predictions
from PIL import Image


@pytest.fixture
def content(tmp_path):
    """Return a function that gives the content of the report of all records."""

    def make():
        return html_report.content(*records.find([tmp_path / "home" / "runs"]))

    return make


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["modelfix", "study", "report", *map(str, arguments)])
    return main()


def test_a_page_holds_metrics_pictures_curve_and_origin(make_record, content):
    folder = make_record(1)
    (page,) = content().pages
    record, stored = Record.load(folder), Predictions.load(folder / "predictions.parquet")
    assert (page.subject, page.entrant, page.repetition) == ("tiny-lenet5", "arachne", 1)
    metrics, facts = page.tables
    accuracy = record.evaluation["metrics"]["accuracy"]
    (row,) = [r for r in metrics.texts() if r[0] == "accuracy"]
    assert f"{accuracy['numerator']} / {accuracy['denominator']}" in row[2]
    assert any("ABSENT (no_sensitive_attribute)" in note for note in metrics.notes)
    assert ["SHA-256, fixed", record.hashes["fixed"]] in facts.texts()
    right, wrong = page.sheets
    newly_wrong = np.flatnonzero(stored.right_before & ~stored.right_after)
    assert wrong.title.startswith(f"Newly wrong: {len(newly_wrong)} of {len(stored)} test inputs")
    assert len(wrong.pictures) == min(len(newly_wrong), html_report.SHOWN)
    assert right.better
    assert not wrong.better
    assert len(page.curve) == record.candidates
    assert page.original_accuracy == record.validation_accuracy["before"]


def test_pictures_are_the_inputs_and_kept_once(make_record, content):
    first, _ = make_record(1), make_record(2)
    found = content()
    stored = Predictions.load(first / "predictions.parquet")
    broken = np.flatnonzero(stored.right_before & ~stored.right_after)[0]
    picture = found.pages[0].sheets[1].pictures[0]
    assert picture.lines[2] == f"input {stored.ids[broken]}"
    shown = [p.image for page in found.pages for sheet in page.sheets for p in sheet.pictures]
    assert len(set(shown)) < len(shown)
    assert set(shown) == set(found.images)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 24)])
def test_small_pictures_are_exact(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    kind, _, text = html_report.encoded(image).partition(",")
    assert kind == "data:image/webp;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    np.testing.assert_array_equal(pixels, np.broadcast_to(image.transpose(1, 2, 0), pixels.shape))


def test_large_pictures_are_reduced():
    text = html_report.encoded(np.zeros((3, 300, 200), np.float32)).partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(text))).size == (64, 96)


def test_candidates_are_read_line_by_line(tmp_path):
    path = tmp_path / "candidates.jsonl"
    lines = ['{"step": 2, "validation_accuracy": 0.5, "seconds": 1}', "{", "[]", '{"step": "x"}',
             '{"step": 9, "validation_accuracy": NaN}']  # fmt: skip
    path.write_text("\n".join(lines))
    points, (sentence,) = html_report.candidates(path)
    assert [(p.step, p.accuracy, p.seconds) for p in points] == [
        (2, 0.5, 1), (3, None, None), (9, None, None),
    ]  # fmt: skip
    assert "2 of 5 lines are damaged" in sentence
    assert html_report.candidates(tmp_path / "none") == ([], [])


def test_the_command_writes_one_file(make_record, tmp_path, monkeypatch, capsys):
    make_record(1)
    make_record(1, entrant="other", unadaptable=True)
    make_record(3, evaluated=False)
    damaged = make_record(2) / "record.json"
    damaged.write_text(damaged.read_text()[:100])
    path = tmp_path / "report.html"
    assert run(monkeypatch, tmp_path / "home" / "runs", "--html", path) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{path}\n"
    assert f"warning: {damaged}" in printed.err
    text = path.read_text()
    assert "record.json: is damaged" in text
    assert "Not evaluated, which `modelfix evaluate` does: tiny-lenet5/arachne/3." in text
    assert "UNADAPTABLE" in text
    assert "it has no square layer" in text


def test_a_selection_reports_on_itself_alone(make_record, tmp_path, monkeypatch):
    make_record(1)
    make_record(1, entrant="other", size=0.2)
    path = tmp_path / "report.html"
    runs = tmp_path / "home" / "runs"
    assert run(monkeypatch, runs, "--html", path, "-a", "other") == 0
    assert "1 record of 1 entrant on 1 subject" in path.read_text()


def test_a_foreign_file_is_named(make_record, tmp_path, content):
    folder = make_record(1)
    record = json.loads((folder / "record.json").read_text())
    strange = folder.parent / "2"
    strange.mkdir()
    (strange / "record.json").write_text(json.dumps({"name": "somebody's", **record}))
    assert any(str(strange) in sentence for sentence in content().problems)


def _missing(folder):
    (folder / "predictions.parquet").unlink()


def _truncated(folder):
    path = folder / "predictions.parquet"
    path.write_bytes(path.read_bytes()[:500])


def _anothers(folder):
    path = folder / "predictions.parquet"
    stored = Predictions.load(path)
    Predictions(stored.ids, stored.y, None, stored.before, stored.after, fixed="x").save(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_missing, "is missing"), (_truncated, "is not a readable"), (_anothers, "of another fixed")],
)
def test_damaged_predictions_cost_the_pictures_only(make_record, content, damage, message):
    damage(make_record(1))
    found = content()
    (page,) = found.pages
    assert not page.sheets
    assert any(message in note for note in page.notes)
    assert (found.frame["metric"] == "accuracy").any()


def test_a_missing_subject_is_said_once(make_record, tmp_path, content):
    for repetition in (1, 2):
        (make_record(repetition) / "job.json").unlink()
    (tmp_path / "home" / "subjects").rename(tmp_path / "elsewhere")
    found = content()
    assert not found.images
    (sentence,) = found.problems
    assert "is no prepared subject" in sentence


def test_records_of_other_definitions_are_said(make_record, tmp_path):
    make_record(1)
    path = make_record(1, entrant="other") / "record.json"
    path.write_text(path.read_text().replace("nfr/1", "nfr/2"))
    text = html_report.html(*records.find([tmp_path / "home" / "runs"]))
    assert "NFR on tiny-lenet5 is left out: " in text


def test_the_same_cell_twice_and_mixed_options_are_refused(
    make_record, tmp_path, monkeypatch, capsys
):
    folder = make_record(1)
    copy = tmp_path / "copy" / "arachne" / "1"
    copy.mkdir(parents=True)
    (copy / "record.json").write_bytes((folder / "record.json").read_bytes())
    found, _ = records.find([folder, copy])
    with pytest.raises(ModelfixError, match="records of the same cell"):
        html_report.html(found)
    path = tmp_path / "report.html"
    assert run(monkeypatch, folder, "--html", path, "-f", "csv") == 2
    assert "--html writes the whole report" in capsys.readouterr().err
    assert not path.exists()
