"""The options of the user's own model and data, and the doctor of a prepared subject."""

import numpy as np
import pytest
from modelfix.checkup import check_up
from modelfix.own import Own, read_risks
from modelfix_core import ModelfixError
from modelfix_core.subjects.own import prepare_own
from modelfix_testing import mlp

SHAPE = (1, 4, 4)
KNOWING = np.random.default_rng(0).normal(size=(3, 16))
KNOWING -= KNOWING.mean(axis=1, keepdims=True)  # no class gains from bright images


class TestRisks:
    def test_texts_and_files(self, tmp_path):
        path = tmp_path / "risks.yaml"
        path.write_text("cat: 2\n3: 0.5\n")
        found = read_risks(["dog=1.5", str(path), "a=b=4"])
        assert found == [("dog", 1.5), ("cat", 2.0), ("3", 0.5), ("a=b", 4.0)]

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("cat: [1", "no readable YAML"),
            ("- cat", "expected lines `class: weight`"),
            ("cat: high", "the weight of 'cat' is 'high'"),
            ("", "expected lines"),
            ("cat: !!python/object/apply:os.getcwd []", "no readable YAML"),
        ],
    )
    def test_files_that_are_wrong(self, tmp_path, content, words):
        path = tmp_path / "risks.yml"
        path.write_text(content)
        with pytest.raises(ModelfixError, match=words) as error:
            read_risks([str(path)])
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("text", ["much", "cat=much", "none.yaml"])
    def test_texts_that_are_wrong(self, text):
        with pytest.raises(ModelfixError, match=text.replace(".", r"\.")):
            read_risks([text])


def test_names_of_subjects():
    def name(**options):
        return Own(data="d", **options).check()[0]

    assert name(model="a/my.onnx") == "my"
    assert name(model="net.py:Net") == "Net"
    assert name(model="my.onnx", name="mine") == "mine"
    with pytest.raises(ModelfixError, match="both --model"):
        Own(model="my.onnx").check()
    assert not Own().given
    assert Own(scale=255.0).given


@pytest.fixture
def make(tmp_path):
    """Prepare a subject of a dense model that knows the classes of its images, or nearly."""

    def prepare(change=None, weight=None, group=None, noise=0.6, classes=None):
        rng = np.random.default_rng(0)
        weight = KNOWING if weight is None else weight
        x = rng.integers(0, 256, (400, *SHAPE), dtype=np.uint8)
        y = (x.reshape(400, -1) / 255 @ KNOWING.T).argmax(axis=1)
        wrong = rng.random(400) < noise
        y[wrong] = rng.integers(0, 3, wrong.sum())
        if change is not None:
            x, y = change(x, y)
        more = {} if group is None else {"group": group(len(y))}
        np.savez(tmp_path / "d.npz", x=x, y=y, **more)
        mlp([weight], [np.zeros(3)], SHAPE).save(tmp_path / "m.onnx")
        return prepare_own(
            "mine", tmp_path / "m.onnx", tmp_path / "d.npz", tmp_path / "s", classes=classes
        ).subject

    return prepare


def problems(subject):
    return {symptom.what: symptom.detail for symptom in check_up(subject) if not symptom.ok}


def test_a_healthy_subject(make):
    assert problems(make()) == {}


def test_changed_files(make):
    subject = make()
    np.save(subject.folder / "test" / "y.npy", subject.dataset()["test"].y[::-1])
    assert "has changed since it was prepared" in problems(subject)["files"]


def test_labels_out_of_range(make):
    subject = make()
    np.save(subject.folder / "test" / "y.npy", subject.dataset()["test"].y + 5)
    assert "the test split has label" in problems(subject)["labels"]


def test_a_class_that_is_missing(make):
    def keep_one(x, y):
        kept = np.concatenate([np.flatnonzero(y != 2), np.flatnonzero(y == 2)[:1]])
        return x[kept], y[kept]

    assert "has no image of class '2'" in problems(make(keep_one))["classes"]


def test_images_in_two_splits(make):
    def double(x, y):
        return np.concatenate([x, x]), np.concatenate([y, y])

    assert "say too much: remove the copies" in problems(make(double))["duplicates"]


def test_predictions_of_one_class(make):
    weight = np.zeros((3, 16))
    weight[1] = 1
    found = problems(make(weight=weight))
    assert "100.0% of the predictions are '1'" in found["predictions"]
    assert "no better than guessing" in found["accuracy"]


def test_labels_in_another_order(make):
    weight = KNOWING[[2, 0, 1]]
    found = problems(make(weight=weight))
    assert found["accuracy"].endswith("with --classes 2,0,1")
    assert "accuracy" not in problems(make(weight=weight, classes=["2", "0", "1"]))


def test_few_faults(make):
    assert "too few to learn a repair from" in problems(make(noise=0.0))["faults"]


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (lambda n: np.zeros(n, np.int64), "all images have one value of 'group'"),
        (lambda n: (np.arange(n) % 25 == 0).astype(np.int64), "too little to compare groups"),
    ],
)
def test_groups(make, group, words):
    assert words in problems(make(group=group))["groups"]


def test_logits(make, monkeypatch):
    subject = make()
    model = subject.model
    for values, words in ((np.nan, "NaN or infinite"), (1 / 3, "a softmax was left inside")):
        monkeypatch.setattr(
            type(model), "predict", lambda _, x, v=values: np.full((len(x), 3), v, np.float32)
        )
        assert words in problems(subject)["logits"]
