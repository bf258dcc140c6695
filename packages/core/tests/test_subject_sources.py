"""Where images come from, and what is said of files that are missing or damaged."""

import gzip
import struct
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfix_core import ModelfixError
from modelfix_core.subjects.sources import SOURCES, base
from modelfix_core.subjects.sources.idx import FILES, IdxSource, read_idx

SIZES = {"train": 40, "test": 20}
TINY = IdxSource(
    name="tiny",
    title="Tiny",
    classes=("a", "b"),
    sizes=SIZES,
    licence="none",
    homepage="nowhere",
    files="https://example.org/tiny/",
    torchvision="Tiny",
)


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_source(folder, compressed=True, sizes=SIZES, classes=2):
    folder.mkdir(parents=True)
    for part, size in sizes.items():
        arrays = (np.full((size, 28, 28), 7), np.arange(size) % classes)
        for name, array in zip(FILES[part], arrays, strict=True):
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    """Neither the user's data nor a download may decide a test."""
    monkeypatch.delenv("MODELFIX_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "torchvision", None)


class TestIdx:
    @settings(deadline=None, max_examples=30)
    @given(
        st.integers(1, 5),
        st.integers(1, 4),
        st.integers(1, 4),
        st.booleans(),
    )
    def test_round_trip(self, tmp_path_factory, n, height, width, compressed):
        array = np.arange(n * height * width).reshape(n, height, width) % 256
        path = tmp_path_factory.mktemp("idx") / ("file.gz" if compressed else "file")
        path.write_bytes(gzip.compress(idx(array)) if compressed else idx(array))
        np.testing.assert_array_equal(read_idx(path, 3), array)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "starts with nothing"),
            (b"\x00\x00\x08", "starts with 000008 instead of 00000801"),
            (b"\x89PNG" + bytes(40), "starts with 89504e47"),
            (idx(np.zeros((2, 3))), "starts with 00000802"),
            (b"\x00\x00\x0d\x01" + bytes(8), "starts with 00000d01"),
            (b"\x00\x00\x08\x01\x00", "ends within its header"),
            (idx(np.zeros(9))[:-1], "is cut short of the 9 bytes"),
            (idx(np.zeros(9)) + b"!", "is longer than the 9 bytes"),
            (b"\x00\x00\x08\x01" + bytes(4), "says it is empty"),
            (b"\x00\x00\x08\x01" + b"\xff" * 4, "is cut short of the 4,294,967,295 bytes"),
        ],
    )
    @pytest.mark.parametrize("compressed", [True, False])
    def test_wrong_content_is_named(self, tmp_path, content, message, compressed):
        path = tmp_path / ("labels.gz" if compressed else "labels")
        path.write_bytes(gzip.compress(content) if compressed else content)
        with pytest.raises(ModelfixError, match=message) as error:
            read_idx(path, 1)
        assert str(path) in str(error.value)

    def test_a_truncated_archive(self, tmp_path):
        content = gzip.compress(idx(np.random.default_rng(0).integers(0, 256, 5000)))
        path = tmp_path / "labels.gz"
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ModelfixError, match=r"labels\.gz: cannot be read or is damaged"):
            read_idx(path, 1)

    def test_a_corrupt_archive(self, tmp_path):
        content = bytearray(gzip.compress(idx(np.random.default_rng(0).integers(0, 256, 5000))))
        content[100:140] = bytes(40)
        path = tmp_path / "labels.gz"
        path.write_bytes(content)
        with pytest.raises(ModelfixError, match=r"labels\.gz: cannot be read or is damaged"):
            read_idx(path, 1)

    def test_no_archive_at_all(self, tmp_path):
        path = tmp_path / "labels.gz"
        path.write_text("<html>not found</html>")
        with pytest.raises(ModelfixError, match=r"labels\.gz: cannot be read or is damaged"):
            read_idx(path, 1)


class TestPlaces:
    @pytest.mark.parametrize("layout", ["tiny", "Tiny/raw", "tiny/Tiny/raw"])
    @pytest.mark.parametrize("compressed", [True, False])
    def test_layouts(self, tmp_path, layout, compressed):
        write_source(tmp_path / "data" / layout, compressed)
        parts = TINY.read(tmp_path / "data")
        assert {name: len(part) for name, part in parts.items()} == SIZES
        assert parts["train"].x.shape == (40, 1, 28, 28)
        assert parts["train"].x.dtype == np.uint8
        np.testing.assert_array_equal(parts["test"].ids, np.arange(40, 60))

    def test_the_variable_comes_before_the_cache(self, tmp_path, monkeypatch):
        write_source(tmp_path / "cache" / "modelfix" / "data" / "Tiny" / "raw")
        assert TINY.read()["train"].x[0, 0, 0, 0] == 7
        write_source(tmp_path / "mine" / "tiny")
        images = tmp_path / "mine" / "tiny" / f"{FILES['train'][0]}.gz"
        images.write_bytes(gzip.compress(idx(np.full((40, 28, 28), 9))))
        monkeypatch.setenv("MODELFIX_DATA", str(tmp_path / "mine"))
        assert TINY.read()["train"].x[0, 0, 0, 0] == 9

    def test_an_incomplete_folder_is_passed_over(self, tmp_path):
        write_source(tmp_path / "mine" / "tiny")
        (tmp_path / "mine" / "tiny" / f"{FILES['test'][1]}.gz").unlink()
        write_source(tmp_path / "cache" / "modelfix" / "data" / "tiny")
        assert len(TINY.read(tmp_path / "mine")["test"]) == 20

    def test_missing_data_say_what_to_fetch_and_where_to_put_it(self, tmp_path):
        with pytest.raises(ModelfixError) as error:
            TINY.read(tmp_path / "mine")
        message = str(error.value)
        for name in (name for part in FILES.values() for name in part):
            assert f"{name}.gz" in message
        assert "https://example.org/tiny/" in message
        assert str(tmp_path / "mine" / "tiny") in message
        assert "could not be downloaded" in message
        assert "\n" not in message

    def test_a_failed_download_leaves_nothing(self, tmp_path, monkeypatch):
        def interrupted(root, download):
            raise RuntimeError("Error downloading train-images")

        class Datasets:
            Tiny = staticmethod(interrupted)

        class Torchvision:
            datasets = Datasets

        monkeypatch.setitem(sys.modules, "torchvision", Torchvision)
        with pytest.raises(ModelfixError, match="Error downloading train-images"):
            TINY.read()
        assert list((tmp_path / "cache" / "modelfix" / "data").iterdir()) == []

    def test_a_download_is_kept_for_the_next_time(self, monkeypatch):
        def downloading(root, download):
            write_source(base.Path(root) / "Tiny" / "raw")

        class Torchvision:
            class datasets:
                Tiny = staticmethod(downloading)

        monkeypatch.setitem(sys.modules, "torchvision", Torchvision)
        assert len(TINY.read()["train"]) == 40
        monkeypatch.setitem(sys.modules, "torchvision", None)
        assert len(TINY.read()["train"]) == 40

    @pytest.mark.parametrize(
        ("sizes", "classes", "message"),
        [
            ({"train": 39, "test": 20}, 2, "train-images-idx3-ubyte.gz: holds 39 entries"),
            (SIZES, 3, "train-labels-idx1-ubyte.gz: has label 2"),
        ],
    )
    def test_files_of_another_source_are_refused(self, tmp_path, sizes, classes, message):
        write_source(tmp_path / "tiny", sizes=sizes, classes=classes)
        with pytest.raises(ModelfixError, match=message):
            TINY.read(tmp_path)


def test_the_shipped_images_need_nothing_else():
    part = SOURCES["fashion-mini"].read()["test"]
    assert part.x.shape == (10_000, 1, 28, 28)
    np.testing.assert_array_equal(np.bincount(part.y), np.full(10, 1_000))
    assert len(np.unique(part.ids)) == 10_000


def test_the_shipped_images_are_small_and_carry_their_licence():
    folder = SOURCES["fashion-mini"].find()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    card = (folder / "README.md").read_text()
    assert "MIT License" in card
    assert "Zalando" in card
