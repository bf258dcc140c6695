"""A subject from one's own model and data."""

import json

import numpy as np
import pytest
from filelock import FileLock
from modelfix_core import Model, ModelfixError
from modelfix_core.subjects.__main__ import main
from modelfix_core.subjects.own import prepare_own
from PIL import Image


@pytest.fixture
def model_path(tmp_path, model):
    model.save(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def save_npz(path, x, y, **more):
    np.savez(path, x=x, y=y, **more)
    return path


def pixels(count, shape=(1, 4, 4)):
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture
def npz(tmp_path):
    return save_npz(tmp_path / "data.npz", pixels(60), np.arange(60) % 3)


def image_folder(root, names, count=20, size=(4, 4)):
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("L", size, 80 * number + index).save(root / name / f"{index}.png")
    return root


def test_from_a_folder_of_class_images(tmp_path, model_path):
    images = image_folder(tmp_path / "images", ["cat", "dog", "owl"])
    prepared = prepare_own("pets", model_path, images, tmp_path / "subjects")
    card = prepared.subject.card
    assert not prepared.reused
    assert card.classes == ["cat", "dog", "owl"]
    assert sum(card.splits.values()) == 60
    assert card.recipe is None
    assert prepared.subject.history == []
    assert prepared.subject.problems() == []


def test_labels_follow_the_order_of_the_models_logits(tmp_path, model):
    model.with_metadata(labels=json.dumps(["owl", "cat", "dog"])).save(tmp_path / "named.onnx")
    images = image_folder(tmp_path / "images", ["cat", "dog", "owl"])
    prepared = prepare_own("pets", tmp_path / "named.onnx", images, tmp_path / "subjects")
    test = prepared.subject.dataset()["test"]
    assert prepared.subject.card.classes == ["owl", "cat", "dog"]
    # Grey levels rise with the name of the class: cat from 0, dog from 80, owl from 160.
    by_level = np.array([1, 2, 0])[test.x[:, 0, 0, 0] // 80]
    np.testing.assert_array_equal(test.y, by_level)


def test_names_that_the_model_does_not_know_need_an_order(tmp_path, model):
    model.with_metadata(labels=json.dumps(["ant", "bee", "cow"])).save(tmp_path / "named.onnx")
    images = image_folder(tmp_path / "images", ["cat", "dog", "owl"])
    with pytest.raises(ModelfixError, match=r"its classes are ant, bee, cow but .* --classes"):
        prepare_own("pets", tmp_path / "named.onnx", images, tmp_path / "subjects")
    order = ["dog", "owl", "cat"]
    prepared = prepare_own(
        "pets", tmp_path / "named.onnx", images, tmp_path / "subjects", classes=order
    )
    assert prepared.subject.card.classes == order


def test_risks_may_name_classes_by_number(tmp_path, model_path, npz):
    prepared = prepare_own("mine", model_path, npz, tmp_path / "s", risks={"1": 2.0})
    assert prepared.subject.card.risks == {1: 2.0}


def test_notes_and_groups_stand_in_the_card(tmp_path, model_path):
    side = np.array(["left", "right"])[np.arange(60) // 3 % 2]
    data = save_npz(tmp_path / "d.npz", pixels(60), np.arange(60) % 3, side=side)
    prepared = prepare_own("mine", model_path, data, tmp_path / "s", group_column="side")
    card = prepared.subject.card
    assert (card.sensitive_attribute, card.provenance["groups"]) == ("side", ["left", "right"])
    assert set(np.unique(prepared.subject.dataset()["test"].group)) == {0, 1}


def test_reuse_and_renewal(tmp_path, model_path, npz):
    root = tmp_path / "subjects"
    first = prepare_own("mine", model_path, npz, root)
    assert prepare_own("mine", model_path, npz, root).reused
    assert not prepare_own("mine", model_path, npz, root, seed=1).reused
    save_npz(npz, pixels(60)[::-1], np.arange(60) % 3)
    renewed = prepare_own("mine", model_path, npz, root, seed=1)
    assert not renewed.reused
    assert renewed.subject.card.data_hash != first.subject.card.data_hash


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (pixels(60), np.arange(60) % 2, "predicts 3 classes but the data have 2"),
        (pixels(60), np.arange(60) % 4, "predicts 3 classes but the data have 4"),
        (pixels(60, (3, 4, 4)), np.arange(60) % 3, r"images of shape \[1, 4, 4\]"),
        (pixels(60, (1, 5, 5)), np.arange(60) % 3, r"\[1, 4, 4\] but the data have \[1, 5, 5\]"),
        (pixels(60), np.arange(60) / 3, "labels are float64"),
        (pixels(60) / 100.0, np.arange(60) % 3, "pixels from 0 to 2.5"),
        (pixels(4), np.arange(4) % 3, "split is empty"),
    ],
)
def test_data_that_do_not_fit_are_refused(tmp_path, model_path, x, y, message):
    data = save_npz(tmp_path / "bad.npz", x, y)
    with pytest.raises(ModelfixError, match=message):
        prepare_own("mine", model_path, data, tmp_path / "subjects")
    assert not (tmp_path / "subjects" / "mine").exists()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "fashion-mini-lenet5"])
def test_names_that_would_mislead_are_refused(tmp_path, model_path, npz, name):
    with pytest.raises(ModelfixError, match="cannot be the name of your subject"):
        prepare_own(name, model_path, npz, tmp_path / "subjects")


def test_risks_and_epsilon_are_checked(tmp_path, model_path, npz):
    with pytest.raises(ModelfixError, match=r"no class 'x' .* the classes are 0, 1, 2"):
        prepare_own("mine", model_path, npz, tmp_path, risks={"x": 1.0})
    with pytest.raises(ModelfixError, match="risk of '0' is -1"):
        prepare_own("mine", model_path, npz, tmp_path, risks={"0": -1.0})
    with pytest.raises(ModelfixError, match="epsilon is 8; it must lie in 0 to 1"):
        prepare_own("mine", model_path, npz, tmp_path, attack_epsilon=8)


def test_history_must_come_from_the_same_training(tmp_path, model_path, npz, make_proto):
    from onnx import helper

    history = tmp_path / "epochs"
    history.mkdir()
    with pytest.raises(ModelfixError, match="epochs: holds no ONNX files"):
        prepare_own("mine", model_path, npz, tmp_path / "s", history=history)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["out"], transB=1),
    ]
    other = make_proto(nodes, {"w": np.zeros((3, 16), np.float32)})
    Model(other).save(history / "1.onnx")
    with pytest.raises(ModelfixError, match=r"1\.onnx: its weights differ in name or shape"):
        prepare_own("mine", model_path, npz, tmp_path / "s", history=history)


def test_a_folder_with_other_content_is_left_alone(tmp_path, model_path, npz):
    precious = tmp_path / "subjects" / "mine" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(ModelfixError, match="holds files but no prepared subject"):
        prepare_own("mine", model_path, npz, tmp_path / "subjects")
    assert precious.read_text() == "years of work"


class TestCommandLine:
    def run(self, tmp_path, model_path, data, *more):
        arguments = ["own", "--name", "mine", "--model", str(model_path), "--data", str(data)]
        return main([*arguments, "--root", str(tmp_path / "subjects"), *more])

    def test_prepares_then_reuses(self, tmp_path, model_path, npz, capsys):
        assert self.run(tmp_path, model_path, npz, "--risk", "1=0.5") == 0
        assert "mine: prepared in" in capsys.readouterr().out
        assert self.run(tmp_path, model_path, npz, "--risk", "1=0.5") == 0
        assert "mine: complete already" in capsys.readouterr().out

    def test_an_error_is_one_sentence_on_stderr(self, tmp_path, model_path, capsys):
        assert self.run(tmp_path, model_path, tmp_path / "missing.npz") == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert "missing.npz" in captured.err
        assert captured.err.count("\n") == 1

    @pytest.mark.parametrize("damage", ["truncated", "corrupt", "plain array"])
    def test_a_broken_npz_is_an_error(self, tmp_path, model_path, npz, capsys, damage):
        if damage == "truncated":
            npz.write_bytes(npz.read_bytes()[:200])
        elif damage == "corrupt":
            content = bytearray(npz.read_bytes())
            content[300:340] = bytes(40)
            npz.write_bytes(content)
        else:
            with npz.open("wb") as file:
                np.save(file, pixels(3))
        assert self.run(tmp_path, model_path, npz) == 2
        assert "not a readable NPZ file" in capsys.readouterr().err

    def test_a_bad_risk_is_refused(self, tmp_path, model_path, npz, capsys):
        assert self.run(tmp_path, model_path, npz, "--risk", "much") == 2
        assert "CLASS=WEIGHT" in capsys.readouterr().err


def test_a_complete_subject_is_reused_while_another_process_looks_at_it(tmp_path, model_path, npz):
    root = tmp_path / "subjects"
    first = prepare_own("mine", model_path, npz, root)
    with FileLock(root / ".mine.lock"):
        assert prepare_own("mine", model_path, npz, root).reused
        with pytest.raises(ModelfixError, match="another process is preparing"):
            prepare_own("mine", model_path, npz, root, seed=1)
    assert first.subject.problems() == []
