"""CIFAR10, UTKFace and ImageNet in small files of exactly their formats, and what can be wrong."""

import os
import pickle
import struct

import numpy as np
import pytest
from modelfix_core import ModelfixError
from modelfix_core.images import ImageFiles
from modelfix_core.subjects.sources import SOURCES
from modelfix_core.subjects.sources.cifar import CifarSource, read_binary, read_pickled
from modelfix_core.subjects.sources.imagenet import ImageNetSource, imagenet_classes
from modelfix_core.subjects.sources.utkface import UtkFaceSource
from PIL import Image

COMMON = {"licence": "none", "homepage": "https://example.org/", "title": "Tiny"}
CIFAR = CifarSource(
    name="cifar10", classes=tuple("abcdefghij"), sizes={"train": 50, "test": 20}, **COMMON
)
FACES = UtkFaceSource(name="utkface", classes=("male", "female"), sizes={"all": 12}, **COMMON)
WNIDS = ("n01440764", "n02687172", "n04612504")
NET = ImageNetSource(
    name="imagenet",
    classes=("tench", "aircraft carrier", "yawl"),
    sizes={"train": 9, "val": 6},
    shape=(3, 16, 16),
    wnids=WNIDS,
    **COMMON,
)


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    monkeypatch.delenv("MODELFIX_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# -- CIFAR10 ---------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return b"U" + bytes([len(value)]) + value.encode()


def python2_batch(x: np.ndarray, labels: list[int]) -> bytes:
    """Write a batch opcode by opcode as Python 2's cPickle did, protocol 2, with NumPy's array."""
    number = [b"K" + bytes([label]) for label in labels]
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85"
        + text("b")
        + b"tR(K\x01"
        + b"".join(b"M" + struct.pack("<H", n) for n in x.shape)
        + b"\x86cnumpy\ndtype\n("
        + text("u1")
        + b"K\x00K\x01tR(K\x03"
        + text("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T"
        + struct.pack("<i", x.nbytes)
        + x.tobytes()
        + b"tb"
    )
    names = b"".join(text(f"image_s_{k:06}.png") for k in range(len(labels)))
    return (
        b"\x80\x02}("
        + text("batch_label")
        + text("training batch 1 of 5")
        + text("labels")
        + b"]("
        + b"".join(number)
        + b"e"
        + text("data")
        + array
        + text("filenames")
        + b"]("
        + names
        + b"eu."
    )


def batch(seed: int, size: int = 10) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (size, 3, 32, 32), dtype=np.uint8), np.arange(size) % 10


def write_cifar(folder, binary: bool):
    folder.mkdir(parents=True)
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(names):
        x, y = batch(number, 20 if name == "test_batch" else 10)
        if binary:
            records = np.concatenate([y[:, None].astype(np.uint8), x.reshape(len(y), -1)], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            (folder / name).write_bytes(python2_batch(x.reshape(len(y), -1), list(y)))


class TestCifar:
    def test_the_hand_written_pickle_is_what_cifar_readers_read(self):
        x, y = batch(0)
        content = python2_batch(x.reshape(10, -1), list(y))
        theirs = pickle.loads(content, encoding="bytes")  # as CIFAR's own page says
        np.testing.assert_array_equal(theirs[b"data"], x.reshape(10, -1))
        assert theirs[b"labels"] == list(y)
        assert theirs[b"filenames"][3] == b"image_s_000003.png"

    @pytest.mark.parametrize("binary", [False, True])
    @pytest.mark.parametrize("place", ["cifar10", "", "cifar10/"])
    def test_both_formats_at_every_place(self, tmp_path, binary, place):
        inner = f"cifar-10-batches-{'bin' if binary else 'py'}"
        folder = tmp_path / (place if place == "cifar10" else f"{place}{inner}")
        write_cifar(folder, binary)
        parts = CIFAR.read(tmp_path)
        expected = [batch(number) for number in range(5)]
        np.testing.assert_array_equal(parts["train"].x, np.concatenate([x for x, _ in expected]))
        np.testing.assert_array_equal(parts["train"].y, np.tile(np.arange(10), 5))
        np.testing.assert_array_equal(parts["test"].x, batch(5, 20)[0])
        np.testing.assert_array_equal(parts["test"].ids, np.arange(50, 70))

    @pytest.mark.parametrize(
        "reduce", [(os.system, ("touch {}",)), (eval, ("open('{}', 'w')",))], ids=["system", "eval"]
    )
    def test_a_hostile_pickle_runs_nothing(self, tmp_path, reduce):
        witness = tmp_path / "witness"

        class Hostile:
            def __reduce__(self):
                function, (command,) = reduce
                return function, (command.format(witness),)

        path = tmp_path / "data_batch_1"
        path.write_bytes(pickle.dumps({b"labels": [1], b"data": Hostile()}, protocol=2))
        with pytest.raises(ModelfixError, match="holds numbers alone, so this file is not read"):
            read_pickled(path)
        assert not witness.exists()

    def test_an_attribute_of_something_allowed_is_foreign_too(self, tmp_path):
        path = tmp_path / "data_batch_1"
        path.write_bytes(b"\x80\x02cnumpy\nload\n.")
        with pytest.raises(ModelfixError, match=r"refers to numpy\.load"):
            read_pickled(path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is cut short or no batch"),
            (b"<html>not found</html>", "is cut short or no batch"),
            (python2_batch(batch(0)[0].reshape(10, -1), [0] * 10)[:-5000], "is cut short"),
            (python2_batch(batch(0)[0].reshape(10, -1), [0] * 9), "10, 3072. and 9 labels"),
            (python2_batch(np.zeros((10, 100), np.uint8), [0] * 10), "expected 10 x 3072"),
            (pickle.dumps([1, 2], protocol=3), "holds no labels and images"),
            (pickle.dumps({b"labels": [1]}, protocol=3), "holds no labels and images"),
            (pickle.dumps({b"labels": [1], b"data": [3]}, protocol=3), "holds no labels and"),
        ],
    )
    def test_damaged_batches(self, tmp_path, content, message):
        path = tmp_path / "data_batch_1"
        path.write_bytes(content)
        with pytest.raises(ModelfixError, match=message) as error:
            read_pickled(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("content", [b"", bytes(3072), bytes(3073 * 2 - 1)])
    def test_truncated_binary_batches(self, tmp_path, content):
        (tmp_path / "b.bin").write_bytes(content)
        with pytest.raises(ModelfixError, match=r"no multiple of an image's 3,073"):
            read_binary(tmp_path / "b.bin")

    def test_wrong_counts_and_labels(self, tmp_path):
        write_cifar(tmp_path / "cifar10", binary=True)
        path = tmp_path / "cifar10" / "data_batch_3.bin"
        whole = path.read_bytes()
        path.write_bytes(whole[: 3073 * 4])
        with pytest.raises(ModelfixError, match=r"data_batch_3\.bin: holds 4 images; Tiny has 10"):
            CIFAR.read(tmp_path)
        path.write_bytes(b"\x0b" + whole[1:])
        with pytest.raises(ModelfixError, match=r"data_batch_3\.bin: has label 11"):
            CIFAR.read(tmp_path)

    def test_a_missing_batch_is_not_found_and_said(self, tmp_path):
        write_cifar(tmp_path / "cifar10", binary=False)
        (tmp_path / "cifar10" / "data_batch_2").unlink()
        with pytest.raises(ModelfixError, match=r"fetch cifar-10-python.tar.gz .* into .*cifar10"):
            CIFAR.read(tmp_path)


# -- UTKFace ---------------------------------------------------------------------------------------

NAMES = [
    f"{20 + k}_{k % 2}_{k % 5}_2017010915040800{k}.jpg{'.chip.jpg' if k % 3 else ''}"
    for k in range(10)
] + ["1_0_0_20161219140623097.jpg.chip.jpg", "110_1_3_20170109.jpg.chip.jpg"]


def write_faces(folder, names=NAMES):
    folder.mkdir(parents=True)
    for k, name in enumerate(names):
        Image.new("RGB", (200, 200), (k * 20, 0, 100)).save(folder / name, "JPEG")


class TestUtkFace:
    @pytest.mark.parametrize("place", ["utkface", "UTKFace", "utkface/UTKFace"])
    def test_names_tell_class_and_group(self, tmp_path, place):
        write_faces(tmp_path / place)
        faces = FACES.read(tmp_path)["all"]
        names = sorted(NAMES)
        assert faces.x.shape == (12, 3, 64, 64)
        np.testing.assert_array_equal(faces.y, [int(name.split("_")[1]) for name in names])
        np.testing.assert_array_equal(faces.group, [name.split("_")[2] != "0" for name in names])
        reds = [NAMES.index(name) * 20 for name in names]
        np.testing.assert_allclose(faces.x[:, 0].mean(axis=(1, 2)), reds, atol=3)
        assert FACES.group_name == "race"

    def test_broken_names_are_left_out_and_counted(self, tmp_path, capsys):
        broken = ["39_1_20170116174525125.jpg.chip.jpg", "61_3_20170109150557335.jpg.chip.jpg"]
        broken += ["44_2_1_20170116.jpg", "20_0_7_20170116.jpg.chip.jpg", "face.jpg"]
        write_faces(tmp_path / "utkface", NAMES + broken)
        assert len(FACES.read(tmp_path)["all"]) == 12
        said = capsys.readouterr().err
        assert "5 of the images are left out" in said
        assert broken[0] in said
        assert "and 2 more" in said

    def test_too_few(self, tmp_path):
        write_faces(tmp_path / "utkface", NAMES[:7])
        with pytest.raises(ModelfixError, match=r"holds 7 images named .*; Tiny has 12"):
            FACES.read(tmp_path)

    def test_a_broken_image(self, tmp_path):
        write_faces(tmp_path / "utkface")
        (tmp_path / "utkface" / NAMES[4]).write_bytes(b"\xff\xd8\xff and no more")
        with pytest.raises(ModelfixError, match=f"{NAMES[4]}: is not a readable image"):
            FACES.read(tmp_path)

    def test_missing(self, tmp_path):
        with pytest.raises(ModelfixError, match=r"UTKFace.tar.gz.*put them into .*utkface") as e:
            FACES.read(tmp_path)
        assert "\n" not in str(e.value)


# -- ImageNet --------------------------------------------------------------------------------------


def write_net(root, flat=None):
    folder = root / "imagenet"
    for part, count in (("train", 3), ("val", 2)):
        for label, wnid in enumerate(WNIDS):
            for k in range(count):
                name = f"ILSVRC2012_val_{label * 2 + k + 1:08}" if part == "val" else f"{wnid}_{k}"
                place = folder / part if part == "val" and flat else folder / part / wnid
                place.mkdir(parents=True, exist_ok=True)
                colour = (label * 100, k * 50, 9)
                Image.new("RGB", (300, 280), colour).save(place / f"{name}.JPEG")
    lines = [(f"ILSVRC2012_val_{k + 1:08}", k // 2) for k in range(6)][::-1]
    if flat == "LOC_val_solution.csv":
        rows = [f"{name},{WNIDS[label]} 85 1 499 272 {WNIDS[0]} 1 1 2 2" for name, label in lines]
        (folder / flat).write_text("\n".join(["ImageId,PredictionString", *rows]) + "\n")
    if flat == "val.txt":
        (folder / flat).write_text("".join(f"{name}.JPEG {label}\n" for name, label in lines))
    return folder


class TestImageNet:
    @pytest.mark.parametrize("flat", [None, "LOC_val_solution.csv", "val.txt"])
    def test_images_stay_files(self, tmp_path, flat):
        write_net(tmp_path, flat)
        parts = NET.read(tmp_path)
        assert isinstance(parts["train"].x, ImageFiles)
        assert parts["train"].x.shape == (9, 3, 16, 16)
        np.testing.assert_array_equal(parts["train"].y, [0, 0, 0, 1, 1, 1, 2, 2, 2])
        np.testing.assert_array_equal(parts["val"].y, [0, 0, 1, 1, 2, 2])
        np.testing.assert_array_equal(parts["val"].ids, np.arange(9, 15))
        np.testing.assert_allclose(
            parts["val"].x[:][:, 0].mean(axis=(1, 2)), parts["val"].y * 100, atol=3
        )

    def test_flat_images_without_labels(self, tmp_path):
        folder = write_net(tmp_path, "val.txt")
        lines = (folder / "val.txt").read_text().splitlines()
        (folder / "val.txt").write_text("\n".join(lines[1:]))
        with pytest.raises(ModelfixError, match=r"ILSVRC2012_val_00000006\.JPEG: has no label"):
            NET.read(tmp_path)
        (folder / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 3")
        with pytest.raises(ModelfixError, match=r"val\.txt: is no list of labels"):
            NET.read(tmp_path)
        (folder / "val.txt").unlink()
        with pytest.raises(ModelfixError, match="neither class folders nor a list of labels"):
            NET.read(tmp_path)

    def test_missing_and_empty_classes(self, tmp_path):
        folder = write_net(tmp_path)
        for path in (folder / "train" / WNIDS[1]).iterdir():
            path.unlink()
        with pytest.raises(ModelfixError, match=f"{WNIDS[1]}: holds no images"):
            NET.read(tmp_path)
        (folder / "train" / WNIDS[1]).rmdir()
        with pytest.raises(ModelfixError, match=f"lacks 1 of the 3 .* the first is {WNIDS[1]}"):
            NET.read(tmp_path)

    def test_wrong_counts(self, tmp_path):
        folder = write_net(tmp_path)
        next((folder / "train" / WNIDS[0]).iterdir()).unlink()
        with pytest.raises(ModelfixError, match=r"train: holds 8 images; Tiny has 9"):
            NET.read(tmp_path)

    def test_missing(self, tmp_path):
        with pytest.raises(ModelfixError, match=r"train/<WordNet id>/\*\.JPEG .* into .*imagenet"):
            NET.read(tmp_path)

    def test_the_classes(self):
        classes = imagenet_classes()
        wnids = [c.wnid for c in classes]
        assert len(classes) == len({c.name for c in classes}) == 1000
        assert wnids == sorted(wnids)  # labels follow the order of the ids
        vehicles = {c.name for c in classes if c.vehicle}
        assert len(vehicles) == 67
        assert {"minivan", "airliner", "trailer truck", "container ship", "canoe"} <= vehicles
        assert not {"tench", "bassinet", "car mirror", "car wheel", "packet"} & vehicles
        assert SOURCES["imagenet"].classes[403] == "aircraft carrier"
