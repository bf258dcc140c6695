"""The main job on real images, as a user runs it: prepare, fix, evaluate, compare."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from modelfix_core import Model
from modelfix_core.record import Record
from modelfix_core.subject import Subject

SUBJECT = "fashion-mini-lenet5"
QUICK = {
    "arachne": [],
    "fsgmix": ["--set", "epochs=1", "--set", "learning_rates=[0.001]"],
    "i-repair": ["--set", "iterations=100", "--set", "gamma=[2]"],
    "reassure": ["--set", "faults=[10]", "--set", "n=[10]"],
}


@pytest.fixture(scope="module")
def subject(modelfix, home):
    done = modelfix("prepare", SUBJECT)
    assert done.returncode == 0, done.stderr
    return Subject.load(home / "subjects" / SUBJECT)


def test_subject_has_history_and_disjoint_splits(subject):
    assert len(subject.history) > 1
    assert subject.problems() == []
    splits = subject.dataset().splits
    ids = np.concatenate([split.ids for split in splits.values()])
    assert len(np.unique(ids)) == len(ids) == 10_000
    assert subject.model.accuracy(splits["test"]) > 0.75


@pytest.mark.parametrize("approach", QUICK)
def test_fix(modelfix, home, subject, approach):
    command = [
        "fix",
        "--approach",
        approach,
        "--subject",
        SUBJECT,
        "--attacked",
        100,
        *QUICK[approach],
    ]
    done = modelfix(*command)
    assert done.returncode == 0, done.stderr
    (folder,) = (home / "runs" / SUBJECT).glob(f"{approach}*/1")
    for part in ("fixed.onnx", "record.json", "predictions.parquet"):
        assert str(folder / part) in done.stdout
    record = Record.load(folder)
    assert record.outcome in ("FIXED", "CORRUPTED")
    assert record.outcome in done.stdout

    test = subject.dataset(("test",))["test"]
    before = subject.model.predict(test).argmax(axis=1) == test.y
    after = Model.load(folder / "fixed.onnx").predict(test).argmax(axis=1) == test.y
    metrics = record.evaluation["metrics"]
    expected = {
        "accuracy": (after.sum(), len(test)),
        "repair_rate": ((~before & after).sum(), (~before).sum()),
        "nfr": ((before & ~after).sum(), len(test)),
    }
    for name, (numerator, denominator) in expected.items():
        value = metrics[name]
        assert (value["numerator"], value["denominator"]) == (numerator, denominator), name
    table = pq.read_table(folder / "predictions.parquet")
    assert table.num_rows == len(test)

    again = modelfix(*command, "--json")
    assert again.returncode == 0
    (cell,) = json.loads(again.stdout)
    assert cell["reused"]
    assert cell["evaluation"]["metrics"]["accuracy"]["value"] == pytest.approx(after.mean())


@pytest.mark.slow
def test_auto(modelfix, home, subject):
    """What is chosen passes on validation, by a count of its own, and is evaluated on test."""
    command = ["fix", "-a", "auto", "-s", SUBJECT, "--keep", "accuracy,compatibility"]
    command += ["--max-nfr", "5%", "--time-limit", "3m", "--no-attack", "--json"]
    done = modelfix(*command)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert (found["best"] is None) == (done.returncode == 1)
    validation = subject.dataset(("validation",))["validation"]
    before = subject.model.predict(validation).argmax(axis=1) == validation.y
    passing = {}
    for trial in found["trials"]:
        if trial["validation"] is None:
            assert trial["rejected"]
            continue
        model = Model.load(f"{trial['folder']}/fixed.onnx")
        after = model.predict(validation).argmax(axis=1) == validation.y
        good = after.sum() >= before.sum() and (before & ~after).mean() <= 0.05
        assert (trial["rejected"] is None) == (good and (~before & after).any())
        if trial["rejected"] is None:
            passing[trial["folder"]] = after.mean()
    if passing:
        assert passing[found["best"]["folder"]] == max(passing.values())
        assert found["best"]["evaluation"]["metrics"]["accuracy"]["split"] == "test"


def test_check_says_what_applies(modelfix, subject):
    done = modelfix("check", "--subject", SUBJECT, "--json")
    rows = {row["approach"]: row for row in json.loads(done.stdout)}
    assert all(rows[name]["applicable"] for name in QUICK)


@pytest.mark.slow
def test_reassure_cannot_take_a_resnet(modelfix, home):
    """Decided from the graph alone: three dense layers are needed."""
    done = modelfix("check", "--subject", "fashion-mini-s-resnet8", "--approach", "RA", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["applicable"] is False
    assert re.search(r"dense|fully.connected", row["reason"])


@pytest.fixture(scope="module")
def own(tmp_path_factory, subject):
    """A user's own model and data: those of the subject, in the user's files."""
    folder = tmp_path_factory.mktemp("own")
    test = subject.dataset(("test",))["test"]
    subject.model.save(folder / "my.onnx")
    np.savez(folder / "data.npz", x=np.asarray(test.x), y=test.y)
    return folder


def test_own_model_and_data(modelfix, home, own):
    done = modelfix(
        "fix", "-a", "IR", "--model", own / "my.onnx", "--data", own / "data.npz", "--name", "mine",
        "--no-attack", *QUICK["i-repair"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = (home / "runs" / "mine").glob("i-repair*/1")
    assert Record.load(folder).evaluation is not None


def test_release_gate(modelfix, home, own, subject):
    layer = subject.model.layers("dense")[-1]
    bias = subject.model.weights[layer.bias]
    subject.model.with_weights({layer.bias: bias + np.eye(10, dtype=np.float32)[6] * 2}).save(
        own / "worse.onnx"
    )
    same = modelfix("compare", own / "my.onnx", own / "my.onnx", "--data", own / "data.npz")
    assert same.returncode == 0
    assert "passed" in same.stdout
    worse = modelfix(
        "compare", own / "my.onnx", own / "worse.onnx", "--data", own / "data.npz",
        "--max-nfr", "0.5%", "--json", "--output", own / "gate", "--junit", own / "gate.xml",
    )  # fmt: skip
    assert worse.returncode == 1
    verdict = json.loads(worse.stdout)
    assert not verdict["passed"]
    assert len(verdict["newly_broken"]) == pytest.approx(verdict["nfr"] * verdict["inputs"])
    flips = (own / "gate" / "flips.csv").read_text().splitlines()[1:]
    assert len(flips) == len(verdict["newly_broken"]) + len(verdict["newly_fixed"])
    assert (own / "gate" / "newly-broken.png").stat().st_size > 0
    assert 'name="nfr"' in (own / "gate.xml").read_text()
    by_subject = modelfix(
        "compare", own / "my.onnx", own / "worse.onnx", "--subject", SUBJECT, "--max-nfr", "0.5%",
        "--json",
    )  # fmt: skip
    named = json.loads(by_subject.stdout)
    for part in [*named["slices"], *verdict["slices"]]:
        del part["name"]  # the subject names its classes, the NPZ numbers them
    assert named == verdict, "the same images"
