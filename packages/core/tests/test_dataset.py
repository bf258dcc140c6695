import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfix_core import Dataset, ModelfixError, Split
from modelfix_core.dataset import stratified
from PIL import Image


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 6, 6), dtype=np.uint8)


def test_bytes_are_read_as_shares():
    split = Split(images(5), np.zeros(5, np.int64))
    x = split.images(slice(1, 3))
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, split.x[1:3] / 255, rtol=1e-6)


def test_saved_splits_are_memory_mapped(tmp_path):
    split = Split(images(5), np.arange(5), group=np.ones(5, np.int64), ids=np.arange(5) + 7)
    dataset = Dataset({"train": split}, list("abcde"), risks={0: 2.0}, group_name="colour")
    dataset.save(tmp_path)
    again = Dataset.load(tmp_path)
    assert isinstance(again["train"].x, np.memmap)
    for name in ("x", "y", "group", "ids"):
        np.testing.assert_array_equal(getattr(again["train"], name), getattr(split, name))
    assert (again.classes, again.risks, again.group_name) == (list("abcde"), {0: 2.0}, "colour")
    with pytest.raises(ModelfixError, match="no test split"):
        again["test"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=20, max_size=200), st.integers(0, 1000))
def test_stratified_parts_are_disjoint_and_fair(labels, seed):
    y = np.array(labels)
    fractions = {"a": 0.5, "b": 0.3, "c": 0.2}
    parts = stratified(y, fractions, seed)
    everything = np.concatenate(list(parts.values()))
    np.testing.assert_array_equal(np.sort(everything), np.arange(len(y)))
    for name, share in fractions.items():
        assert abs(len(parts[name]) - share * len(y)) <= 1
        for label in np.unique(y):
            expected = share * np.sum(y == label)
            assert abs(np.sum(y[parts[name]] == label) - expected) <= 3
    for name, part in stratified(y, fractions, seed).items():
        np.testing.assert_array_equal(part, parts[name])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((0, 1, 2, 2), np.uint8), np.zeros(0, np.int64), "empty"),
        (images(3), np.array([0, 1, 5]), "label 5"),
        (images(3), np.array([0, -1, 1]), "label -1"),
        (np.full((3, 1, 2, 2), np.nan, np.float32), np.zeros(3, np.int64), "NaN"),
        (np.full((3, 1, 2, 2), 7.0, np.float32), np.zeros(3, np.int64), "expected 0 to 1"),
    ],
)
def test_bad_splits_are_named(x, y, message):
    with pytest.raises(ModelfixError, match=f"the repair split.*{message}"):
        Split(x, y).validate("repair", 3)


def test_first_bad_image_is_named():
    x = np.zeros((10, 1, 2, 2), np.float32)
    x[6, 0, 1, 1] = np.inf
    with pytest.raises(ModelfixError, match="image 6"):
        Split(x, np.zeros(10, np.int64)).validate("train", 2)


def test_missing_or_damaged_files_are_named(tmp_path):
    dataset = Dataset({"train": Split(images(5), np.arange(5))}, list("abcde"))
    with pytest.raises(ModelfixError, match=r"dataset\.json.*missing"):
        Dataset.load(tmp_path)
    dataset.save(tmp_path)
    (tmp_path / "train" / "x.npy").write_bytes(b"broken")
    with pytest.raises(ModelfixError, match=r"x\.npy.*not a readable"):
        Dataset.load(tmp_path)
    (tmp_path / "train" / "x.npy").unlink()
    with pytest.raises(ModelfixError, match="train split is missing"):
        Dataset.load(tmp_path)


def test_pickled_arrays_are_never_loaded(tmp_path):
    folder = tmp_path / "train"
    Dataset({"train": Split(images(2), np.arange(2))}, ["a", "b"]).save(tmp_path)
    np.save(folder / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ModelfixError, match="not a readable NumPy array"):
        Dataset.load(tmp_path)


def write_folder(root, sizes, shape=(6, 6), mode="L"):
    rng = np.random.default_rng(0)
    for name, size in sizes.items():
        (root / name).mkdir(parents=True)
        for i in range(size):
            pixels = rng.integers(0, 256, shape if mode == "L" else (*shape, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_class_folders(tmp_path, mode, channels):
    write_folder(tmp_path, {"cat": 20, "dog": 40}, mode=mode)
    dataset = Dataset.from_folder(tmp_path)
    assert dataset.classes == ["cat", "dog"]
    assert sum(len(split) for split in dataset.splits.values()) == 60
    ids = np.concatenate([split.ids for split in dataset.splits.values()])
    assert len(np.unique(ids)) == 60
    assert dataset["repair"].x.shape[1:] == (channels, 6, 6)
    whole = Dataset.whole(tmp_path)["whole"]
    np.testing.assert_array_equal(whole.x[dataset["test"].ids], dataset["test"].x)


def test_folders_that_are_wrong(tmp_path):
    with pytest.raises(ModelfixError, match="no images found"):
        Dataset.from_folder(tmp_path)
    write_folder(tmp_path, {"cat": 3})
    (tmp_path / "cat" / "x.png").write_bytes(b"no image")
    with pytest.raises(ModelfixError, match=r"x\.png.*not a readable image"):
        Dataset.from_folder(tmp_path)
    (tmp_path / "cat" / "x.png").unlink()
    Image.new("L", (9, 9)).save(tmp_path / "cat" / "large.png")
    with pytest.raises(ModelfixError, match="one size"):
        Dataset.from_folder(tmp_path)


def test_npz(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=images(50)[:, 0], y=np.arange(50) % 5, group=np.arange(50) % 2)
    dataset = Dataset.from_npz(path)
    assert dataset["train"].x.shape[1:] == (1, 6, 6)
    assert dataset["train"].group is not None
    np.savez(path, images=images(5))
    with pytest.raises(ModelfixError, match="named x"):
        Dataset.from_npz(path)
    np.savez(path, x=images(5), y=np.linspace(0, 1, 5))
    with pytest.raises(ModelfixError, match="expected one integer"):
        Dataset.from_npz(path)
    path.write_bytes(b"no zip")
    with pytest.raises(ModelfixError, match="not a readable NPZ"):
        Dataset.from_npz(path)
