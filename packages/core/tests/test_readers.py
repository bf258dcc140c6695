"""One's own data in every form, read alike; what is wrong is named."""

import csv
import io
import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from modelfix_core import Dataset, ModelfixError
from modelfix_core.readers import find
from PIL import Image

NAMES = ["cat", "dog", "owl"]


@pytest.fixture
def x():
    return np.random.default_rng(0).integers(0, 256, (60, 5, 4), dtype=np.uint8)


@pytest.fixture
def y():
    return np.arange(60) % 3


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_csv(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def class_folders(root, x, y, names=NAMES, split=None):
    for index, (pixels, label) in enumerate(zip(x, y, strict=True)):
        place = root / (split[index] if split is not None else "") / names[label]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:03}.png").write_bytes(png(pixels))
    return root


def sources(folder, x, y):
    """The same images and labels in every form, with the options to read them."""
    (folder / "flat").mkdir()
    for index, pixels in enumerate(x):
        (folder / "flat" / f"{index:03}.png").write_bytes(png(pixels))
    labels = write_csv(
        folder / "labels.csv",
        ["file", "label"],
        [(f"{i:03}.png", NAMES[k]) for i, k in enumerate(y)],
    )
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    np.savez_compressed(folder / "d.npz", x=x, y=y, classes=NAMES)
    images, names = [png(pixels) for pixels in x], [NAMES[k] for k in y]
    pq.write_table(pa.table({"image": images, "label": names}), folder / "plain.parquet")
    structs = [{"bytes": image, "path": None} for image in images]
    table = pa.table({"image": structs, "label": y})
    feature = {"info": {"features": {"label": {"names": NAMES}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(feature)})
    pq.write_table(table, folder / "hub.parquet", row_group_size=7)
    return {
        "folder and CSV": (folder / "flat", {"labels": labels}),
        "NPY and NPY": (folder / "x.npy", {"labels": folder / "y.npy", "classes": NAMES}),
        "NPY and CSV": (folder / "x.npy", {"labels": labels}),
        "NPZ": (folder / "d.npz", {}),
        "Parquet": (folder / "plain.parquet", {}),
        "Parquet of Hugging Face": (folder / "hub.parquet", {}),
    }


def test_every_form_gives_the_same_images_and_labels(tmp_path, x, y):
    for form, (path, options) in sources(tmp_path, x, y).items():
        dataset = Dataset.whole(path, **options)
        assert list(dataset.classes) == NAMES, form
        np.testing.assert_array_equal(dataset["whole"].x, x[:, None], err_msg=form)
        np.testing.assert_array_equal(dataset["whole"].y, y, err_msg=form)


def test_splits_are_written_as_they_are_read_into_memory(tmp_path, x, y):
    for form, (path, options) in sources(tmp_path, x, y).items():
        listing = find(path, **options)
        written = listing.write(tmp_path / form, seed=1)
        for name, split in listing.divided(seed=1).splits.items():
            np.testing.assert_array_equal(np.load(tmp_path / form / name / "x.npy"), split.x)
            np.testing.assert_array_equal(written[name].x, split.x)
            np.testing.assert_array_equal(written[name].ids, split.ids)


@pytest.mark.parametrize("order", ["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64])
def test_arrays_of_any_order_and_type(tmp_path, order, dtype):
    colour = np.random.default_rng(0).integers(0, 2, (12, 3, 5, 4)).astype(dtype)
    stored = colour.transpose(0, 2, 3, 1) if order == "NHWC" else colour
    np.savez(tmp_path / "d.npz", x=stored, y=np.arange(12) % 2)
    whole = Dataset.whole(tmp_path / "d.npz")["whole"]
    np.testing.assert_array_equal(whole.x, colour)
    assert whole.x.dtype == (np.float32 if dtype == np.float64 else np.uint8)


def test_given_splits_are_respected(tmp_path, x, y):
    given = np.array(["train", "val", "repair", "test"])[np.arange(60) // 3 % 4]
    dataset = Dataset.read(class_folders(tmp_path, x, y, split=given))
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 15, "validation": 15, "repair": 15, "test": 15,
    }  # fmt: skip
    np.testing.assert_array_equal(
        np.sort(dataset["repair"].x, axis=0), np.sort(x[given == "repair"][:, None], axis=0)
    )


def test_missing_splits_come_from_the_test_split(tmp_path, x, y):
    given = np.array(["train", "test"])[np.arange(60) // 3 % 2]
    rows = [(k, s) for k, s in zip(y, given, strict=True)]
    np.save(tmp_path / "x.npy", x)
    labels = write_csv(tmp_path / "l.csv", ["label", "split"], rows)
    listing = find(tmp_path / "x.npy", labels=labels)
    parts = listing.parts(0)
    np.testing.assert_array_equal(parts["train"], np.flatnonzero(given == "train"))
    drawn = np.concatenate([parts[name] for name in ("validation", "repair", "test")])
    np.testing.assert_array_equal(np.sort(drawn), np.flatnonzero(given == "test"))
    assert listing.notes == [
        "validation and repair were drawn from the given test split, stratified"
    ]


def test_a_class_called_train_is_no_split(tmp_path, x, y):
    listing = find(class_folders(tmp_path, x, y, ["car", "plane", "train"]))
    assert listing.classes == ["car", "plane", "train"]
    assert listing.split is None


def test_numbered_class_folders_are_in_the_order_of_numbers(tmp_path, x):
    y = np.arange(60) % 12
    listing = find(class_folders(tmp_path, x, y, [str(number) for number in range(12)]))
    assert listing.classes == [str(number) for number in range(12)]
    assert np.bincount(listing.y).tolist() == [5] * 12


def test_groups_are_stratified(tmp_path, x, y):
    rows = [(k, ["old", "young"][i // 30]) for i, k in enumerate(y)]
    np.save(tmp_path / "x.npy", x)
    labels = write_csv(tmp_path / "l.csv", ["label", "age"], rows)
    listing = find(tmp_path / "x.npy", labels=labels, group_column="age")
    assert listing.group_values == ["old", "young"]
    for split in listing.divided(0).splits.values():
        assert abs(split.group.mean() - 0.5) < 0.1
    assert find(tmp_path / "x.npy", labels=labels).group is None


def test_shards_named_by_split(tmp_path, x, y):
    for name, part in {"train": slice(0, 30), "test": slice(30, 60)}.items():
        table = pa.table({"image": [png(p) for p in x[part]], "label": y[part]})
        pq.write_table(table, tmp_path / f"{name}-00000-of-00001.parquet")
    dataset = Dataset.read(tmp_path)
    assert len(dataset["train"]) == 30
    assert sum(len(split) for split in dataset.splits.values()) == 60


def test_grey_images_among_coloured_ones(tmp_path):
    Image.new("RGB", (4, 4), (10, 20, 30)).save(tmp_path / "0.png")
    Image.new("L", (4, 4), 7).save(tmp_path / "1.png")
    labels = write_csv(tmp_path / "l.csv", ["file", "label"], [("0.png", "a"), ("1.png", "b")])
    whole = Dataset.whole(tmp_path, labels=labels)["whole"]
    assert whole.x[:, :, 0, 0].tolist() == [[10, 20, 30], [7, 7, 7]]


class TestWhatIsWrong:
    def refused(self, words, path, **options):
        with pytest.raises(ModelfixError, match=words) as error:
            Dataset.whole(path, **options)
        assert "\n" not in str(error.value)

    def test_paths(self, tmp_path, x):
        self.refused("missing: does not exist", tmp_path / "missing")
        (tmp_path / "x.tar").write_bytes(b"")
        self.refused("is of no kind that can be read", tmp_path / "x.tar")
        np.save(tmp_path / "x.npy", x)
        self.refused("holds images only; give their labels", tmp_path / "x.npy")

    def test_pickles(self, tmp_path, x, y):
        objects = np.array([{"a": 1}] * 60, dtype=object)
        np.save(tmp_path / "x.npy", objects, allow_pickle=True)
        np.save(tmp_path / "y.npy", y)
        self.refused("without pickled objects", tmp_path / "x.npy", labels=tmp_path / "y.npy")
        np.savez(tmp_path / "d.npz", x=objects, y=y)
        self.refused("x holds pickled objects", tmp_path / "d.npz")
        np.savez(tmp_path / "d.npz", x=x, y=objects)
        self.refused("without pickled objects", tmp_path / "d.npz")

    def test_an_archive_that_would_fill_the_disk(self, tmp_path, monkeypatch):
        np.savez_compressed(tmp_path / "d.npz", x=np.zeros((999, 99, 99), np.uint8), y=np.zeros(9))
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
        self.refused(r"would unpack to [\d,]+ bytes", tmp_path / "d.npz")

    def test_an_archive_whose_header_lies(self, tmp_path, x, y):
        np.savez(tmp_path / "d.npz", x=x, y=y)
        with zipfile.ZipFile(tmp_path / "d.npz") as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content[:-100] if name == "x.npy" else content)
        self.refused("x is cut short", tmp_path / "d.npz")

    def test_images(self, tmp_path, x, y):
        folder = class_folders(tmp_path / "a", x, y)
        (folder / "cat" / "000.png").write_bytes(b"no image")
        self.refused(r"000\.png: is not a readable image", folder)
        folder = class_folders(tmp_path / "b", x, y)
        (folder / "dog" / "001.png").write_bytes(png(np.zeros((9, 9), np.uint8)))
        self.refused(r"001\.png: has shape \[1, 9, 9\].*one size", folder)
        folder = class_folders(tmp_path / "c", x, y)
        (folder / "dog" / "001.png").write_bytes(png(np.zeros((5, 4), np.uint16)))
        self.refused("more than 8 bits", folder)

    def test_an_image_that_unpacks_to_too_much(self, tmp_path, monkeypatch):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "0.png").write_bytes(png(np.zeros((50, 50), np.uint8)))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        self.refused("not a readable image", tmp_path)

    @pytest.mark.parametrize(
        ("header", "row", "words"),
        [
            (["file", "class"], ("000.png", "cat"), "has no column 'label'"),
            (["file", "label"], ("nowhere.png", "cat"), "does not exist, but .* names it"),
            (["file", "label"], ("../../x.png", "cat"), "lies outside the folder"),
            (["file", "label"], ("000.png", ""), "some images have no label"),
            (["file", "label"], ("000.png",), "line 2 has another number of values"),
            (["file", "label", "split"], ("000.png", "cat", "holdout"), "has the split 'holdout'"),
            (["file", "label", "group"], ("000.png", "cat", ""), "some images have no group"),
        ],
    )
    def test_labels(self, tmp_path, x, header, row, words):
        (tmp_path / "000.png").write_bytes(png(x[0]))
        labels = write_csv(tmp_path / "l.csv", header, [row])
        self.refused(words, tmp_path, labels=labels)

    def test_label_files(self, tmp_path, x, y):
        np.save(tmp_path / "x.npy", x)
        (tmp_path / "l.csv").write_bytes(b"\xff\xfe\x00")
        self.refused("no readable CSV", tmp_path / "x.npy", labels=tmp_path / "l.csv")
        np.save(tmp_path / "y.npy", y[:50])
        self.refused("60 images but 50 labels", tmp_path / "x.npy", labels=tmp_path / "y.npy")
        np.save(tmp_path / "y.npy", y)
        self.refused(
            "label 2; labels must lie in 0 to 1",
            tmp_path / "x.npy", labels=tmp_path / "y.npy", classes=["a", "b"],
        )  # fmt: skip
        self.refused("has no column 'age'", tmp_path / "x.npy",
                     labels=write_csv(tmp_path / "l.csv", ["label"], [[k] for k in y]),
                     group_column="age")  # fmt: skip
        np.savez(tmp_path / "d.npz", x=x, y=y)
        self.refused("holds its own labels", tmp_path / "d.npz", labels=tmp_path / "y.npy")

    def test_names_that_are_no_class(self, tmp_path, x, y):
        self.refused("label 'owl'; the classes are cat, dog", class_folders(tmp_path, x, y),
                     classes=["cat", "dog"])  # fmt: skip

    def test_parquet(self, tmp_path):
        pq.write_table(pa.table({"picture": [1]}), tmp_path / "d.parquet")
        self.refused("has the columns picture; expected image and label", tmp_path / "d.parquet")
        pq.write_table(pa.table({"image": ["a"], "label": [0]}), tmp_path / "d.parquet")
        self.refused("image 0: is str; expected the bytes", tmp_path / "d.parquet")
        (tmp_path / "d.parquet").write_bytes(b"PAR1 no")
        self.refused("is not readable Parquet", tmp_path / "d.parquet")
