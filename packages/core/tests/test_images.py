"""Images that stay files: the same pixels as decoded at once, and every damage named."""

import io

import numpy as np
import pytest
from modelfix_core import Dataset, ModelfixError, Split
from modelfix_core.images import INDEX_FILE, ImageFiles, decode
from PIL import Image

SIZES = [(40, 30), (30, 40), (32, 32), (90, 31), (33, 70), (16, 20)]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth coloured picture with some noise, as a photograph has."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + c) + seed) + np.cos(y / (4 + c)) for c in range(3)]
    pixels = 128 + 40 * np.stack(waves, axis=-1) + rng.normal(0, 8, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture
def images(tmp_path) -> ImageFiles:
    for number, size in enumerate(SIZES):
        picture(*size, seed=number).save(tmp_path / f"{number}.JPEG")
    paths = [f"{number}.JPEG" for number in range(len(SIZES))]
    return ImageFiles.of(tmp_path, paths, side=24, resize=28)


def reference(path) -> np.ndarray:
    """Resize the whole picture, then cut out the middle, as torchvision does for ImageNet."""
    image = Image.open(path).convert("RGB")
    short = min(image.size)
    wide, high = (int(28 * length / short) for length in image.size)
    image = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - 24) / 2), round((high - 24) / 2)
    return np.asarray(image.crop((left, top, left + 24, top + 24))).transpose(2, 0, 1)


class TestArray:
    def test_it_looks_like_one(self, images):
        assert images.shape == (6, 3, 24, 24)
        assert images.ndim == 4
        assert images.dtype == np.uint8
        assert images.nbytes == np.array(images).nbytes

    def test_pixels_are_those_of_resizing_and_cutting(self, images):
        expected = np.stack([reference(images.root / f"{k}.JPEG") for k in range(6)])
        np.testing.assert_array_equal(images[:], expected)

    @pytest.mark.parametrize(
        "index",
        [
            0,
            -1,
            np.int64(3),
            slice(1, 5, 2),
            slice(None),
            np.array([4, 0, 4]),
            [5, 1],
            np.arange(6) % 2 == 0,
            np.array([], dtype=int),
        ],
    )
    def test_every_index_means_what_it_does_for_an_array(self, images, index):
        whole = np.array(images)
        np.testing.assert_array_equal(images[index], whole[index])
        if not isinstance(index, int | np.integer):
            np.testing.assert_array_equal(np.array(images.select(index)), whole[index])

    @pytest.mark.parametrize("index", [6, -7])
    def test_a_position_too_far(self, images, index):
        with pytest.raises(IndexError):
            images[index]

    def test_other_modes_become_colour(self, tmp_path):
        for mode in ("L", "CMYK", "1", "P", "RGBA"):
            name = f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
            picture(40, 40).convert(mode).save(tmp_path / name)
            assert ImageFiles.of(tmp_path, [name], 24, 28)[:].shape == (1, 3, 24, 24)


class TestFiles:
    def test_a_missing_file(self, images):
        (images.root / "3.JPEG").unlink()
        with pytest.raises(ModelfixError, match=r"3\.JPEG: cannot be read"):
            images[:]
        with pytest.raises(ModelfixError, match=r"9\.JPEG: cannot be read"):
            ImageFiles.of(images.root, ["9.JPEG"], 24, 28)

    def test_a_file_that_changed(self, images):
        picture(50, 50).save(images.root / "2.JPEG")
        with pytest.raises(ModelfixError, match=r"2\.JPEG: has .* bytes where .* were found"):
            images[2]
        images[3]

    @pytest.mark.parametrize(
        "damage", [lambda c: b"", lambda c: c[: len(c) // 2], lambda c: b"GIF89a" + c[6:]]
    )
    def test_a_broken_image(self, tmp_path, damage):
        buffer = io.BytesIO()
        picture(40, 30).save(buffer, "JPEG")
        with pytest.raises(ModelfixError, match=r"broken\.JPEG: is not a readable image"):
            decode(damage(buffer.getvalue()), tmp_path / "broken.JPEG", 24, 28)


class TestSplit:
    @pytest.fixture
    def split(self, images) -> Split:
        return Split(images, np.array([0, 1, 0, 1, 0, 1]), ids=np.arange(10, 16))

    def test_images_are_between_0_and_1(self, split):
        x = split.images(slice(1, 3))
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, np.array(split.x)[1:3].astype(np.float32) / 255)

    def test_selecting_decodes_nothing(self, split):
        chosen = split.select(split.y == 1)
        assert isinstance(chosen.x, ImageFiles)
        np.testing.assert_array_equal(chosen.ids, [11, 13, 15])
        np.testing.assert_array_equal(chosen.images(), split.images()[1::2])

    def test_the_index_is_kept_instead_of_pixels(self, split, tmp_path):
        Dataset({"train": split, "test": split.select([1, 2])}, ["a", "b"]).save(tmp_path / "d")
        assert (tmp_path / "d" / "train" / INDEX_FILE).exists()
        assert not (tmp_path / "d" / "train" / "x.npy").exists()
        again = Dataset.load(tmp_path / "d")
        again.validate()
        np.testing.assert_array_equal(again["train"].images(), split.images())
        np.testing.assert_array_equal(again["test"].ids, [11, 12])

    def test_a_damaged_index(self, split, tmp_path):
        split.save(tmp_path / "train")
        (tmp_path / "train" / INDEX_FILE).write_bytes(b"ARROW1 and then nothing")
        with pytest.raises(ModelfixError, match="is not a readable index of images"):
            Split.load(tmp_path / "train")
