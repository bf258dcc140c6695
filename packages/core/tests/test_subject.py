"""A prepared subject read back: what is there, and what is said when something is wrong."""

import shutil

import numpy as np
import pytest
from modelfix_core import Dataset, ModelfixError, Split
from modelfix_core.subject import Subject, prepared_subjects
from modelfix_core.subjects.own import prepare_own


@pytest.fixture
def npz(tmp_path, model):
    """Images that the small model of conftest labels itself."""
    x = np.random.default_rng(3).integers(0, 256, (90, *model.input_shape), dtype=np.uint8)
    y = model.predict(x.astype(np.float32) / 255).argmax(axis=1)
    path = tmp_path / "data.npz"
    np.savez(path, x=x, y=y, classes=["a", "b", "c"], side=np.arange(90) % 2)
    return path


@pytest.fixture
def subject(tmp_path, model, npz) -> Subject:
    model.save(tmp_path / "model.onnx")
    history = tmp_path / "epochs"
    model.save(history / "1.onnx")
    model.with_metadata(epoch="2").save(history / "2.onnx")
    return prepare_own(
        "mine",
        tmp_path / "model.onnx",
        npz,
        tmp_path / "subjects",
        risks={"c": 2.0},
        history=history,
        group_column="side",
    ).subject


def test_opens_with_card_model_history_and_splits(subject, model):
    opened = Subject.load(subject.folder, verify=True)
    assert opened.card == subject.card
    assert opened.card.splits == {"train": 54, "validation": 9, "repair": 13, "test": 14}
    assert opened.card.validation_accuracy == 1.0
    assert opened.card.sensitive_attribute == "side"
    assert opened.card.model_hash == opened.model.hash
    assert opened.model.labels == ["a", "b", "c"]
    assert [path.name for path in opened.history] == ["epoch-01.onnx", "epoch-02.onnx"]
    dataset = opened.dataset(["train", "repair"])
    assert set(dataset.splits) == {"train", "repair"}
    assert isinstance(dataset["repair"].x, np.memmap)
    assert dataset.risks == {2: 2.0}
    assert opened.problems() == []


def test_a_folder_that_is_no_subject(tmp_path):
    with pytest.raises(
        ModelfixError, match=r"nothing: is no prepared subject .*prepare the subject"
    ):
        Subject.load(tmp_path / "nothing")


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "x"}', "\xff\xfe"])
def test_a_damaged_card(subject, content):
    (subject.folder / "subject.json").write_text(content, encoding="latin-1")
    with pytest.raises(ModelfixError, match=r"subject\.json: (is damaged|cannot be read)"):
        Subject.load(subject.folder)


@pytest.mark.parametrize("name", ["model.onnx", "dataset.json", "repair/x.npy", "test/y.npy"])
def test_a_missing_file_is_named(subject, name):
    (subject.folder / name).unlink()
    with pytest.raises(ModelfixError, match=rf"{name}: is missing .*prepare it again"):
        Subject.load(subject.folder)
    assert len(subject.problems()) == 1


def test_a_missing_split_is_named(subject):
    shutil.rmtree(subject.folder / "validation")
    with pytest.raises(ModelfixError, match=r"validation/x\.npy: is missing"):
        Subject.load(subject.folder)


def test_another_model_is_detected(subject):
    bias = subject.model.layers("dense")[-1].bias
    changed = subject.model.with_weights({bias: subject.model.weights[bias] + 1})
    changed.save(subject.folder / "model.onnx")
    opened = Subject.load(subject.folder)
    with pytest.raises(ModelfixError, match=r"model\.onnx: has changed since it was prepared"):
        opened.model  # noqa: B018
    assert len(opened.problems()) == 1


def test_a_damaged_model_is_detected(subject):
    path = subject.folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:50])
    assert any("model.onnx" in problem for problem in Subject.load(subject.folder).problems())


def test_changed_labels_are_detected_on_verification_only(subject):
    path = subject.folder / "test" / "y.npy"
    y = np.load(path)
    y[0] = (y[0] + 1) % 3
    np.save(path, y)
    Subject.load(subject.folder)
    with pytest.raises(ModelfixError, match="has changed since it was prepared"):
        Subject.load(subject.folder, verify=True)


def test_changed_risks_are_detected(subject):
    dataset = subject.dataset()
    Dataset(dataset.splits, dataset.classes, {0: 9.0}, dataset.group_name).save(subject.folder)
    assert len(subject.problems()) == 1


def test_a_truncated_array_is_named(subject):
    path = subject.folder / "train" / "x.npy"
    path.write_bytes(path.read_bytes()[:-10])
    assert any("train" in problem for problem in subject.problems())


def test_a_smaller_split_is_counted(subject):
    split = subject.dataset()["test"]
    Split(np.array(split.x[:5]), split.y[:5], split.group[:5], split.ids[:5]).save(
        subject.folder / "test"
    )
    assert "holds 5 images but 14 were prepared" in subject.problems()[0]


def test_a_lost_and_a_changed_epoch_are_detected(subject):
    first, last = subject.history
    first.write_bytes(last.read_bytes())
    assert "epoch-01.onnx: has changed" in subject.problems()[0]
    last.unlink()
    assert "holds 1 models but 2 were prepared" in subject.problems()[0]


def test_listing_separates_the_broken_from_the_good(subject):
    root = subject.folder.parent
    shutil.copytree(subject.folder, root / "broken")
    (root / "broken" / "model.onnx").unlink()
    shutil.copytree(subject.folder, root / ".hidden.partial")
    (root / "notes").mkdir()
    subjects, broken = prepared_subjects(root)
    assert [found.card.name for found in subjects] == ["mine"]
    assert len(broken) == 1
    assert "broken/model.onnx" in broken[0]


def test_listing_nothing(tmp_path):
    assert prepared_subjects(tmp_path / "missing") == ([], [])
