"""A subject of image files with pretrained weights, prepared and used without holding images."""

import hashlib

import numpy as np
import pytest
import torch
from modelfix_core import ModelfixError
from modelfix_core.images import ImageFiles
from modelfix_core.subject import Subject
from modelfix_core.subjects import CATALOGUE, prepare, pretrained
from modelfix_core.subjects.architectures import densenet121
from modelfix_core.subjects.pretrained import WEIGHTS, Weights
from modelfix_core.subjects.sources import SOURCES
from modelfix_core.subjects.sources.imagenet import ImageNetSource
from modelfix_core.torch.training import Feed
from PIL import Image

WNIDS = ("n01440764", "n02687172", "n04612504")
TINY = ImageNetSource(
    name="tiny-net",
    title="Tiny",
    classes=("tench", "aircraft carrier", "yawl"),
    sizes={"train": 24, "val": 12},
    shape=(3, 64, 64),
    wnids=WNIDS,
    licence="none",
    homepage="https://example.org/",
)
SUBJECT = CATALOGUE["imagenet-densenet121"].model_copy(
    update={
        "name": "tiny-densenet121",
        "source": "tiny-net",
        "sizes": {"train": {"train": 18, "validation": 6}, "val": {"repair": 6, "test": 6}},
        "risks": {"yawl": 1.0},
    }
)
FILE = WEIGHTS["densenet121-imagenet"].file


def old_names(state):
    """Return a state dict with the names of torchvision's file, which are of another age."""
    parts = ("norm1", "norm2", "conv1", "conv2")
    renamed = {}
    for key, value in state.items():
        for part in parts:
            if f".{part}." in key and "denselayer" in key:
                key = key.replace(part, f"{part[:-1]}.{part[-1]}")
        renamed[key] = value
    return renamed


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for label, wnid in enumerate(WNIDS):
            folder = data / "tiny-net" / part / wnid
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(label * 80, label * 80 + 90, (90, 120, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.JPEG")
    torch.manual_seed(0)
    (data / "weights").mkdir()
    torch.save(old_names(densenet121(3).state_dict()), data / "weights" / FILE)
    return data


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "tiny-net", TINY)
    monkeypatch.delenv("MODELFIX_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def subject(data, tmp_path_factory) -> Subject:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "tiny-net", TINY)
        return prepare(SUBJECT, tmp_path_factory.mktemp("subjects"), data=data).subject


def test_the_images_stay_where_they_are(subject, data):
    assert subject.problems() == []
    assert subject.card.recipe["pretrained"] == "densenet121-imagenet"
    assert subject.history == []
    assert subject.card.risks == {2: 1.0}
    assert not list(subject.folder.rglob("x.npy"))
    dataset = subject.dataset()
    assert {name: len(split) for name, split in dataset.splits.items()} == SUBJECT.splits
    for split in dataset.splits.values():
        assert isinstance(split.x, ImageFiles)
        assert split.x.root == data / "tiny-net"
        np.testing.assert_array_equal(np.bincount(split.y), np.full(3, len(split) // 3))
    assert subject.model.predict(dataset["test"]).shape == (6, 3)


def test_the_weights_are_those_of_the_file(subject, data):
    state = torch.load(data / "weights" / FILE, weights_only=True)
    weights = subject.model.weights
    old = state["features.denseblock2.denselayer3.norm.1.weight"]
    new = weights["features.denseblock2.denselayer3.norm1.weight"]
    np.testing.assert_array_equal(new, old.numpy())
    assert len(weights) == sum(v.dtype == torch.float32 for v in state.values()) + 2  # mean, std


def test_a_changed_index_is_noticed(data, tmp_path):
    folder = prepare(SUBJECT, tmp_path, data=data).subject.folder
    index = folder / "repair" / "x.arrow"
    index.write_bytes((folder / "test" / "x.arrow").read_bytes())
    assert any("has changed" in problem for problem in Subject.load(folder).problems())
    index.unlink()
    with pytest.raises(ModelfixError, match="is missing from the prepared subject"):
        Subject.load(folder)


@pytest.mark.parametrize("memory", [0, 2**30])
def test_training_reads_them_in_its_order(subject, memory):
    split = subject.dataset()["train"]
    order = np.random.default_rng(0).permutation(len(split))
    batches = list(Feed(split, "cpu", memory).batches(order, 5))
    x, y = (torch.cat(tensors).numpy() for tensors in zip(*batches, strict=True))
    np.testing.assert_array_equal(x, split.images(order))
    np.testing.assert_array_equal(y, split.y[order])


def test_a_broken_image_ends_the_reading(data, subject, tmp_path):
    split = subject.dataset()["train"]
    path = split.x.root / split.x.paths[7].as_py()
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))
    try:
        with pytest.raises(ModelfixError, match="is not a readable image"):
            list(Feed(split, "cpu", 0).batches(np.arange(18), 5))
    finally:
        path.write_bytes(content)


class TestWeights:
    def test_missing(self, tmp_path, monkeypatch):
        def offline(*_, **__):
            raise OSError("no network")

        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
        with pytest.raises(ModelfixError, match=f"fetch https.*{FILE} and put it into .*weights"):
            pretrained.load(densenet121(3), "densenet121-imagenet", tmp_path)

    def test_damaged_or_hostile(self, tmp_path):
        import os
        import pickle

        class Hostile:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path / 'witness'}",)

        for content in (b"", b"no weights", pickle.dumps(Hostile())):
            (tmp_path / FILE).write_bytes(content)
            with pytest.raises(ModelfixError, match="is not a readable file of weights"):
                pretrained.load(densenet121(3), "densenet121-imagenet", tmp_path)
        assert not (tmp_path / "witness").exists()

    def test_of_another_network(self, tmp_path):
        torch.save(densenet121(4).state_dict(), tmp_path / FILE)
        with pytest.raises(ModelfixError, match="does not fit the architecture"):
            pretrained.load(densenet121(3), "densenet121-imagenet", tmp_path)

    def test_a_download_is_checked_and_kept(self, tmp_path, monkeypatch):
        def network():
            return densenet121(3, blocks=(1, 1, 1, 1), growth=4, stem=8)

        def offer(digest):
            """Make the file a download, as if its name promised that digest."""
            server = tmp_path / f"net-{digest}.pth"
            server.write_bytes(content)
            weights = Weights(server.name, server.as_uri(), ("", ""))
            monkeypatch.setitem(WEIGHTS, digest, weights)
            return weights

        torch.save(network().state_dict(), tmp_path / "net.pth")
        content = (tmp_path / "net.pth").read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:8]
        offered = offer(digest)
        pretrained.load(network(), digest, tmp_path / "data")
        kept = tmp_path / "cache" / "modelfix" / "data" / "weights" / offered.file
        assert pretrained.find(offered) == kept
        offer("00000000")
        with pytest.raises(ModelfixError, match="could not be downloaded"):
            pretrained.load(network(), "00000000", tmp_path / "data")
