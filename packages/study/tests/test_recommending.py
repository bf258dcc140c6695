import json

import pytest
from modelfix import recommending
from modelfix.catalogue import Catalogue
from modelfix.cli import main
from modelfix.recommending import advise, parse_duration
from modelfix_core import ModelfixError, Need, Unadaptable
from modelfix_core.subject import Subject


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["modelfix", "recommend", *map(str, arguments)])
    return main()


def rename(folder, subject):
    """Make a record one of another subject, as if it had been run there."""
    path = folder / "record.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "subject": subject}))


def test_order_without_any_record():
    order = advise(priorities=["fairness"]).approaches
    assert order[0] == "inner"
    assert len(order) == len(set(order)) == 14  # REASSURE and VeRe have no AAOD in the study


def test_records_come_first_and_planted_ones_do_not_count(make_record, tmp_path):
    make_record(1)
    rename(make_record(1, entrant="arachne-planted"), "tiny-lenet5-planted-fc3-1-0")
    result = advise([tmp_path / "home" / "runs", tmp_path / "none"], subjects=["tiny-lenet5"])
    assert result.choices[0].approach == "arachne"
    assert result.choices[0].evidence == "1 record of tiny-lenet5"
    assert "arachne-planted" not in [choice.entrant for choice in result.choices]


def test_a_prepared_subject_is_asked_what_can_be_applied(make_record, shift, tmp_path):
    class Refusing(shift):
        def check(self, task):
            raise Unadaptable(f"it dislikes {len(task.repair)} faults")

    class Stub:
        def load(self, name):
            return Refusing if name == "care" else shift

    make_record(1)
    home = tmp_path / "home"
    subject = Subject.load(home / "subjects" / "tiny-lenet5")
    catalogue = Catalogue()
    catalogue.registry, catalogue.installed = Stub(), {"care", "inner"}
    result = advise([home / "runs"], subject=subject, categories=["neuron"], catalogue=catalogue)
    (care,) = result.left_out
    assert care.approach == "care"
    assert care.reason.startswith("UNADAPTABLE on tiny-lenet5 (it dislikes ")
    assert result.approaches[0] == "arachne"  # has a record here
    assert len(result.choices) == 7
    assert all(choice.category == "neuron" for choice in result.choices)


def test_records_of_an_approach_that_is_not_known_are_named(make_record, tmp_path):
    path = make_record(1) / "record.json"
    content = json.loads(path.read_text())
    content["entrant"]["approach"] = "homemade"
    path.write_text(json.dumps(content))
    result = advise([tmp_path / "home" / "runs"])
    assert result.notes == ("Not ranked, for nothing is known of them here: homemade.",)
    assert "homemade" not in result.approaches


def test_what_every_subject_has_is_not_asked_for():
    result = advise(given={Need.REPAIR, Need.TRAIN})
    assert {own.approach for own in result.left_out} == {"neurecover", "distrrep"}
    assert len(advise(given={Need.REPAIR, Need.TRAIN, Need.HISTORY, Need.RISKS}).choices) == 16


def test_the_command_says_what_each_line_rests_on(make_record, tmp_path, monkeypatch, capsys):
    make_record(1)
    damaged = make_record(2) / "record.json"
    damaged.write_text("{")
    options = ["--home", tmp_path / "home", "-p", "repair,time", "-s", "tiny-lenet5"]
    assert run(monkeypatch, *options, "--needs", "repair,train") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1 record of tiny-lenet5" in out
    assert "tables 3 and 6 of the study on MNIST" in out
    assert "needs history, which is not given" in out
    assert "is damaged; delete its folder" in out
    assert "Taken as given: gradients, images, repair, train, validation." in out


def test_json(make_record, tmp_path, monkeypatch, capsys):
    make_record(1)
    assert run(monkeypatch, "--home", tmp_path / "home", "--json", "--max-nfr", "2%") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["approaches"][0] == content["choices"][0]["approach"]
    assert {"entrant", "values", "source", "evidence"} <= content["choices"][0].keys()
    assert any("is over 2.00 %" in own["reason"] for own in content["left_out"])


def test_a_subject_that_is_not_prepared(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "--home", tmp_path, "-s", "mnist-lenet5") == 0
    out = capsys.readouterr().out
    assert "mnist-lenet5 is not prepared here" in out
    assert "UNADAPTABLE in the study on MNIST" in " ".join(out.split())


def test_nothing_to_recommend_is_said(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "--home", tmp_path, "--time", "1s") == 0
    assert "Nothing can be recommended" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "speed"], "--priority 'speed': choose from accuracy, repair"),
        (["--needs", "luck"], "--needs 'luck': choose from train"),
        (["--category", "all"], "--category 'all': choose from model"),
        (["--time", "soon"], "--time 'soon': expected a duration"),
        (["--max-nfr", "much"], "--max-nfr 'much': expected a share"),
        (["nowhere"], "nowhere: does not exist"),
    ],
)
def test_wrong_options(tmp_path, monkeypatch, capsys, arguments, message):
    assert run(monkeypatch, "--home", tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("0.5h", 1800), ("1m30", 90)],
)
def test_durations(text, seconds):
    assert parse_duration(text, "--time") == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "m", "10 minutes", "1m2h"])
def test_no_durations(text):
    with pytest.raises(ModelfixError, match="expected a duration"):
        parse_duration(text, "--time")


def test_validation_gradients_and_images_are_implied():
    assert {need for need in Need if need not in recommending.IMPLIED} == {
        Need.TRAIN,
        Need.REPAIR,
        Need.HISTORY,
        Need.RISKS,
    }
