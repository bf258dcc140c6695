import csv
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfix.gate import Answers, Inputs, Limits, judge, parse_share
from modelfix.gate_report import junit, write_folder
from modelfix_core import ModelfixError, Split
from modelfix_metrics.fairness import aaod_values
from modelfix_testing import mlp
from PIL import Image

CLASSES = 3
NAMES = ["cat", "dog", "owl"]


def answering(answers):
    """Return a model that answers image i, one-hot in pixel i, with answers[i]."""
    weight = np.zeros((CLASSES, len(answers)), np.float32)
    weight[answers, np.arange(len(answers))] = 1
    return mlp([weight], [np.zeros(CLASSES)], (1, 1, len(answers)))


def images(labels, **further):
    x = np.eye(len(labels), dtype=np.float32).reshape(-1, 1, 1, len(labels))
    group = further.pop("group", None)
    group = None if group is None else np.array(group)
    return Inputs(Split(x, np.array(labels), group), NAMES, **further)


def asked(labels, old, new, **further):
    return Answers.ask(answering(old), answering(new), images(labels, **further))


label = st.integers(0, CLASSES - 1)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(label, label, label, st.integers(0, 1)), min_size=2, max_size=12))
def test_counts_are_those_of_a_plain_count(rows):
    labels, old, new, group = (list(column) for column in zip(*rows, strict=True))
    answers = asked(labels, old, new, group=group)
    verdict = judge(answers, Limits())
    broken = [i for i, (y, a, b, _) in enumerate(rows) if a == y != b]
    fixed = [i for i, (y, a, b, _) in enumerate(rows) if a != y == b]
    wrong = sum(a != y for y, a, _, _ in rows)
    assert verdict.passed
    assert (verdict.newly_broken, verdict.newly_fixed) == (broken, fixed)
    assert verdict.nfr == pytest.approx(len(broken) / len(rows))
    if wrong:
        assert verdict.repair_rate == pytest.approx(len(fixed) / wrong)
    else:
        assert np.isnan(verdict.repair_rate)
    assert verdict.accuracy_after == pytest.approx(
        verdict.accuracy_before + len(fixed) / len(rows) - verdict.nfr
    )
    for part in verdict.slices:
        if part.kind == "class":
            inside = [row for row in rows if NAMES[row[0]] == part.name]
        else:
            inside = [row for row in rows if str(row[3]) == part.name]
        assert part.inputs == len(inside)
        assert part.newly_broken == sum(a == y != b for y, a, b, _ in inside)
        assert part.newly_fixed == sum(a != y == b for y, a, b, _ in inside)
        right = sum(b == y for y, _, b, _ in inside)
        assert part.accuracy_after == pytest.approx(right / len(inside))
    assert len(verdict.slices) == len(set(labels)) + len(set(group))
    values = [
        aaod_values(np.array(labels), logits, np.array(group))[0].value
        for logits in (answers.before, answers.after)
    ]
    assert verdict.aaod == (None if np.isnan(values).any() else tuple(values))
    json.dumps(verdict.as_dict(), allow_nan=False)


def test_limits_close_the_gate():
    labels, old, new = [0, 1, 2, 0], [0, 1, 0, 1], [0, 0, 2, 1]
    answers = asked(labels, old, new)
    assert judge(answers, Limits(accuracy_loss=0.0)).passed
    assert not judge(answers, Limits(nfr=0.1)).passed
    assert judge(answers, Limits(nfr=0.25, accuracy_loss=0.0)).passed
    one_class = judge(answers, Limits(slice_loss=0.5))
    assert one_class.reasons == ["accuracy on class dog fell by 100.00%, more than 50.00%"]
    worse = judge(asked(labels, new, [1, 0, 2, 1]), Limits(accuracy_loss=0.0))
    assert not worse.passed
    assert "accuracy fell by 25.00%" in worse.reasons[0]
    assert [check.name for check in worse.checks] == ["accuracy"]


def test_fairness_closes_the_gate():
    labels, old = [0, 0, 1, 1], [0, 0, 1, 1]
    unfair = asked(labels, old, [0, 1, 1, 1], group=[0, 1, 0, 1])
    verdict = judge(unfair, Limits(aaod_rise=0.1))
    assert not verdict.passed
    assert verdict.reasons[0].startswith("AAOD rose by")
    with pytest.raises(ModelfixError, match="give them with --group-column"):
        judge(asked(labels, old, old), Limits(aaod_rise=0.1))


def test_a_model_that_knows_its_classes_may_have_them_in_another_order():
    labels, answers = [0, 1, 2], [2, 0, 1]  # cat, dog, owl, as the outputs owl, cat, dog count them
    turned = answering([1, 2, 0]).with_metadata(labels=json.dumps(["owl", "cat", "dog"]))
    found = Answers.ask(answering(labels), turned, images(labels))
    np.testing.assert_array_equal(found.new, labels)
    foreign = answering(answers).with_metadata(labels=json.dumps(["car", "cat", "dog"]))
    with pytest.raises(ModelfixError, match="car, cat, dog but those of the data"):
        Answers.ask(foreign, turned, images(labels))


@pytest.fixture
def compared():
    files = [f"{i}.png" for i in range(4)]
    answers = asked(
        [0, 1, 2, 0], [0, 1, 0, 1], [0, 0, 2, 1],
        group=[0, 1, 0, 1], groups=["old", "young"], files=files,
    )  # fmt: skip
    return judge(answers, Limits(nfr=0.1, accuracy_loss=0.0)), answers


def test_what_is_left_in_the_folder(compared, tmp_path):
    verdict, answers = compared
    written = write_folder(tmp_path / "gate", verdict, answers)
    assert {path.name for path in written} == {
        "comparison.json", "flips.csv", "newly-broken.png", "newly-fixed.png",
    }  # fmt: skip
    with (tmp_path / "gate" / "flips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["change"] for row in rows] == ["broken", "fixed"]
    assert rows[0] == {
        "id": "1", "file": "1.png", "change": "broken", "label": "dog", "old": "dog", "new": "cat",
        "group": "young",
    }  # fmt: skip
    assert json.loads((tmp_path / "gate" / "comparison.json").read_text())["passed"] is False
    with Image.open(tmp_path / "gate" / "newly-broken.png") as sheet:
        assert np.asarray(sheet).std() > 0
    same = judge(asked([0, 1], [0, 1], [0, 1]), Limits())
    write_folder(tmp_path / "gate", same, answers)
    assert not (tmp_path / "gate" / "newly-broken.png").exists(), "the sheet of an earlier run"


def test_junit_has_a_case_per_limit(compared, tmp_path):
    verdict, answers = compared
    junit(tmp_path / "gate.xml", verdict, answers, "a & b -> c")
    (suite,) = ElementTree.parse(tmp_path / "gate.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    failed, passed = suite.findall("testcase")
    assert failed.get("classname") == "a & b -> c"
    assert failed.find("failure").get("message") == verdict.reasons[0]
    assert "1.png: dog, now cat" in failed.find("failure").text
    assert passed.find("failure") is None


@pytest.mark.parametrize(("text", "value"), [("0.5%", 0.005), ("0.005", 0.005), ("0%", 0.0)])
def test_shares(text, value):
    assert parse_share(text, "--max-nfr") == pytest.approx(value)


@pytest.mark.parametrize("text", ["lots", "-1%", "101%", "2", ""])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(ModelfixError, match="--max-nfr"):
        parse_share(text, "--max-nfr")
