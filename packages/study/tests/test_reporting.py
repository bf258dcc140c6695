import json

import pytest
from modelfix import records, reporting
from modelfix.cli import main
from modelfix.reporting import BEGIN, END
from modelfix_core import ModelfixError


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["modelfix", "study", "report", *map(str, arguments)])
    return main()


def rename(folder, subject):
    """Make a record one of another subject, as if it had been run there."""
    path = folder / "record.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "subject": subject}))


def test_frame_holds_what_the_records_say(make_record, tmp_path):
    folders = [make_record(1), make_record(2)]
    unfit = make_record(1, entrant="other", unadaptable=True)
    found, broken = records.find([tmp_path / "home" / "runs"])
    assert not broken
    assert {item.folder for item in found} == {*folders, unfit}
    frame = records.frame(found)
    one = frame[(frame.entrant == "arachne") & (frame.repetition == 1)].set_index("metric")
    metrics = found[0].record.evaluation["metrics"]
    for name in ("accuracy", "repair_rate", "nfr"):
        assert one.loc[name, "value"] == metrics[name]["value"]
        assert one.loc[name, "numerator"] == metrics[name]["numerator"]
    before = found[0].record.evaluation["comparisons"]["accuracy"]["before"]
    assert one.loc["accuracy", "original"] == before
    assert one.loc["seconds", "value"] == found[0].record.seconds["fixing"]
    other = frame[frame.entrant == "other"]
    assert set(other.outcome) == {"UNADAPTABLE"}
    assert other["value"].isna().all()
    assert {"accuracy", "repair_rate", "nfr", "asr", "seconds"} <= set(other.metric)


def test_tables_beside_the_study(make_record, tmp_path, monkeypatch, capsys):
    for repetition in (1, 2):
        rename(make_record(repetition), "mnist-lenet5")
    assert (
        run(monkeypatch, tmp_path / "home" / "runs", "--against", "icse26", "-f", "markdown") == 0
    )
    out = capsys.readouterr().out
    assert "| neuron | AR | mnist-lenet5 |" in out
    assert "| neuron | AR | study, MNIST | 97.90 -> 97.75 ± " in out
    assert "(d)" in out  # the stand-in's accuracy is far from the study's


@pytest.mark.parametrize("format_", ["terminal", "markdown", "latex", "csv"])
def test_every_table_in_every_format(make_record, tmp_path, monkeypatch, capsys, format_):
    make_record(1)
    make_record(1, entrant="other", unadaptable=True)
    assert run(monkeypatch, tmp_path / "home" / "runs", "-f", format_) == 0
    out = capsys.readouterr().out
    assert "UNADAPTABLE" in out
    assert "UNAD." in out
    if format_ == "latex":
        assert out.count(r"\toprule") == 4


@pytest.mark.parametrize("format_", ["terminal", "markdown", "latex", "csv"])
def test_the_findings_in_every_format(make_record, tmp_path, monkeypatch, capsys, format_):
    rename(make_record(1), "mnist-lenet5")
    make_record(1, entrant="other", unadaptable=True)
    where = [tmp_path / "home" / "runs", "--table", "findings", "-f", format_]
    assert run(monkeypatch, *where) == 0
    plain = " ".join(capsys.readouterr().out.split())
    assert "not enough records" in plain
    assert "does not hold" not in plain
    assert run(monkeypatch, *where, "--against", "icse26") == 0
    beside = " ".join(capsys.readouterr().out.split())
    assert "does not hold" in beside  # the study's own tables, on robustness
    assert "study's tables" in beside


def test_records_of_several_definitions_silence_their_findings(make_record, tmp_path):
    folders = [make_record(1), make_record(1, entrant="arachne-study", size=0.2)]
    found, _ = records.find(folders)
    frame = records.frame(found)
    other = frame["entrant"] == "arachne-study"
    frame.loc[other, "definition"] = frame.loc[other, "definition"] + "-other"
    with pytest.raises(ModelfixError, match="cannot stand in one table"):
        reporting.make(frame, [reporting.Layout.EFFECTIVENESS])
    (table,) = reporting.make(frame, [reporting.Layout.FINDINGS])
    assert set(table.to_frame()["verdict"]) == {"not enough records"}


def test_planted_subjects_are_no_column_unless_named(make_record, tmp_path, monkeypatch, capsys):
    make_record(1)
    planted = "tiny-lenet5-planted-fc3-1-0"
    rename(make_record(2), planted)
    runs = tmp_path / "home" / "runs"
    assert run(monkeypatch, runs, "--table", "times") == 0
    assert "planted" not in capsys.readouterr().out
    assert run(monkeypatch, runs, "--table", "times", "-s", planted) == 0
    assert "planted" in capsys.readouterr().out


def test_what_is_no_record_is_a_sentence(make_record, tmp_path):
    whole = make_record(1)
    runs = tmp_path / "home" / "runs"
    contents = {
        "truncated": (whole / "record.json").read_bytes()[:300],
        "foreign": b'{"accuracy": 0.9}',
        "list": b"[]",
        "noise": bytes(range(128, 256)),
    }
    for name, content in contents.items():
        (runs / name).mkdir()
        (runs / name / "record.json").write_bytes(content)
    (runs / "folder" / "record.json").mkdir(parents=True)
    found, broken = records.find([runs])
    assert [item.folder for item in found] == [whole]
    said = {sentence.split("/record.json: ")[0].rpartition("/")[2]: sentence for sentence in broken}
    assert "is damaged" in said["truncated"]
    assert "is damaged" in said["noise"]
    assert "is no record that this version reads (cell: Field required)" in said["foreign"]
    assert "is no record that this version reads" in said["list"]
    assert "cannot be read (Is a directory)" in said["folder"]


def test_selection_and_damage(make_record, tmp_path, monkeypatch, capsys):
    make_record(1)
    damaged = make_record(2) / "record.json"
    damaged.write_text("{")
    assert run(monkeypatch, tmp_path / "home" / "runs", "--subject", "nowhere") == 2
    err = capsys.readouterr().err
    assert f"warning: {damaged}" in err
    assert "no record is of the subject nowhere; there are tiny-lenet5" in err
    assert run(monkeypatch, tmp_path / "home" / "runs", "-a", "AR", "--table", "times") == 0
    assert "Average time cost" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "icse27"], "only icse26"),
        (["--format", "pdf"], "choose from terminal"),
        (["--table", "everything"], "choose from effectiveness"),
    ],
)
def test_wrong_options(make_record, tmp_path, monkeypatch, capsys, arguments, message):
    make_record(1)
    assert run(monkeypatch, tmp_path / "home" / "runs", *arguments) == 2
    assert message in capsys.readouterr().err


def test_no_records_is_said(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, tmp_path) == 2
    assert "there are no records here" in capsys.readouterr().err
    assert run(monkeypatch, tmp_path / "none") == 2
    assert "does not exist" in capsys.readouterr().err


def test_the_same_cell_twice_is_refused(make_record, tmp_path):
    folder = make_record(1)
    copy = tmp_path / "copy" / "arachne" / "1"
    copy.mkdir(parents=True)
    (copy / "record.json").write_bytes((folder / "record.json").read_bytes())
    found, _ = records.find([folder, copy])
    with pytest.raises(ModelfixError, match="records of the same cell"):
        records.frame(found)


def test_output_keeps_what_stands_around_the_markers(tmp_path):
    page = tmp_path / "page.md"
    reporting.write("one\n", page)
    page.write_text(f"# Title\n{page.read_text()}An explanation.\n")
    reporting.write("two\n", page)
    assert page.read_text() == f"# Title\n{BEGIN}\ntwo\n{END}\nAn explanation.\n"
    page.write_text("mine")
    with pytest.raises(ModelfixError, match="exists and has no lines"):
        reporting.write("three\n", page)
    assert page.read_text() == "mine"
    reporting.write("a,b\n", tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == "a,b\n"


def test_a_name_is_the_default_entrant_and_an_abbreviation_all(make_record, tmp_path):
    make_record(1)
    make_record(1, entrant="arachne-study", size=0.2)
    found, _ = records.find([tmp_path / "home" / "runs"])

    def chosen(*names):
        return {item.entrant for item in records.choose(found, (), names)}

    assert chosen("arachne") == {"arachne"}
    assert chosen("AR") == chosen() == {"arachne", "arachne-study"}
    assert chosen("arachne-study") == {"arachne-study"}
