"""The catalogue and the construction of splits, without training anything."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from modelfix_core import ModelfixError, Split
from modelfix_core.subjects import CATALOGUE, DEFAULT, Recipe, named
from modelfix_core.subjects.__main__ import main
from modelfix_core.subjects.availability import availability
from modelfix_core.subjects.catalogue import GARMENT_RISKS
from modelfix_core.subjects.constructions import GREY, TINTED, bring_to, carve, colour_skew, grey
from modelfix_core.subjects.pages import pages
from modelfix_core.subjects.prepare import make_dataset


def test_the_catalogue_is_read_without_a_framework():
    code = (
        "import sys; from modelfix_core.subjects.catalogue import CATALOGUE; "
        "assert len(CATALOGUE) >= 4; "
        "assert not {'torch', 'torchvision', 'tensorflow'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_subject_is_described():
    for name, subject in CATALOGUE.items():
        assert subject.name == name
        assert subject.summary.endswith(".")
        assert set(subject.splits) == {"train", "validation", "repair", "test"}
        for part, sizes in subject.sizes.items():
            assert sum(sizes.values()) <= subject.origin.sizes[part]
    assert DEFAULT in CATALOGUE


def test_split_sizes_follow_the_study():
    study = {"train": 54_000, "validation": 6_000, "repair": 5_000, "test": 5_000}
    assert CATALOGUE["mnist-lenet5"].splits == study
    assert CATALOGUE["fashion-lenet5"].splits == study
    recipe = CATALOGUE["mnist-lenet5"].recipe
    assert (recipe.learning_rate, recipe.batch_size, recipe.epochs) == (1e-4, 128, 20)
    assert CATALOGUE["mnist-lenet5"].attack_epsilon == 0.15
    assert CATALOGUE["fashion-mini-s-resnet8"].attack_epsilon == 0.035


def test_unknown_names_get_suggestions():
    with pytest.raises(ModelfixError, match="did you mean mnist-lenet5"):
        named("mnist-lenet")
    with pytest.raises(ModelfixError, match="there are fashion-mini-lenet5"):
        named("xyz")


def test_identity_follows_what_decides_the_content():
    subject = CATALOGUE[DEFAULT]
    recipe = subject.recipe.model_copy(update={"epochs": 3})
    assert subject.identity(0) != subject.identity(1)
    assert subject.identity(0) != subject.model_copy(update={"recipe": recipe}).identity(0)
    assert subject.identity(0) == subject.model_copy(update={"summary": "Other."}).identity(0)


def test_identities_stay_when_options_are_added():
    # Of what was prepared with the first version; they change only with what is prepared.
    first = {
        "fashion-mini-lenet5": "df3ac3253fe2",
        "fashion-mini-s-resnet8": "ecb02bcb9c7f",
        "mnist-lenet5": "cb9e2c970d36",
        "fashion-lenet5": "290fbd417611",
    }
    assert {name: named(name).identity(0)[:12] for name in first} == first


class TestCifar10s:
    """The construction of Wang et al. on coloured images: 300 per class, as CIFAR10 balanced."""

    @pytest.fixture(scope="class")
    def plain(self):
        rng = np.random.default_rng(0)
        y = rng.permutation(np.repeat(np.arange(10), 300))
        part = Split(rng.integers(0, 256, (3000, 3, 4, 4), dtype=np.uint8), y)
        sizes = {"train": 1800, "validation": 200, "repair": 500, "test": 500}
        return carve({"all": part}, {"all": sizes}, seed=0)

    @pytest.fixture(scope="class")
    def skewed(self, plain):
        return colour_skew(plain, 0.95, seed=0)

    def test_sizes_as_in_the_study(self):
        subject = CATALOGUE["cifar10s-resnet18"]
        study = {"train": 45_000, "validation": 5_000, "repair": 10_000, "test": 10_000}
        assert subject.splits == study
        assert subject.group_name == "colour"
        assert subject.input_shape == (3, 32, 32)

    @pytest.mark.parametrize("name", ["train", "validation"])
    def test_five_classes_are_grey_and_five_coloured_95_to_5(self, skewed, name):
        split = skewed[name]
        for label in range(10):
            greys = np.sum(split.group[split.y == label] == GREY)
            count = np.sum(split.y == label)
            assert greys == round((0.95 if label % 2 == 0 else 0.05) * count)
        assert abs(np.mean(split.group) - 0.5) < 0.01  # both groups are as large

    @pytest.mark.parametrize("name", ["repair", "test"])
    def test_every_image_in_both_versions(self, skewed, plain, name):
        split = skewed[name]
        assert len(split) == 1000
        np.testing.assert_array_equal(split.group, np.tile([TINTED, GREY], 500))
        np.testing.assert_array_equal(split.x[split.group == TINTED], plain[name].x)
        np.testing.assert_array_equal(
            split.x[split.group == GREY], grey(plain[name].x).repeat(3, 1)
        )

    def test_in_colour_images_are_as_they_were(self, skewed, plain):
        train = skewed["train"]
        coloured = train.group == TINTED
        np.testing.assert_array_equal(train.x[coloured], plain["train"].x[coloured])
        np.testing.assert_array_equal(
            train.x[~coloured], grey(plain["train"].x[~coloured]).repeat(3, 1)
        )

    def test_the_seed_decides(self, plain, skewed):
        for seed, same in ((0, True), (1, False)):
            again = colour_skew(plain, 0.95, seed)["train"]
            assert np.array_equal(again.group, skewed["train"].group) == same

    def test_grey_is_pillows(self):
        from PIL import Image

        x = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64), dtype=np.uint8)
        pillow = Image.fromarray(x[0].transpose(1, 2, 0)).convert("L")
        np.testing.assert_array_equal(grey(x)[0, 0], np.asarray(pillow))


def test_the_study_settings():
    study = {
        "utkface-facenet": (2, 17_778, 1_975, 1_976, 1_976, 0.07, "race"),
        "cifar10-vgg16": (10, 45_000, 5_000, 5_000, 5_000, 0.031, None),
        "cifar10s-resnet18": (10, 45_000, 5_000, 10_000, 10_000, 0.035, "colour"),
        "imagenet-densenet121": (1000, 1_231_167, 50_000, 25_000, 25_000, 0.007, None),
    }
    for name, expected in study.items():
        s = named(name)
        found = (len(s.origin.classes), *s.splits.values(), s.attack_epsilon, s.group_name)
        assert found == expected, name
        for part, sizes in s.sizes.items():
            assert sum(sizes.values()) == s.origin.sizes[part]
    vehicles = {"airplane", "automobile", "ship", "truck"}
    assert set(named("cifar10-vgg16").risks) == set(named("cifar10s-resnet18").risks) == vehicles
    assert len(named("imagenet-densenet121").class_risks) == 67
    assert named("utkface-facenet").risks is None


class TestRecipe:
    def test_what_is_at_its_default_is_left_out(self):
        assert Recipe().model_dump().keys() == {"learning_rate", "batch_size", "epochs"}
        assert Recipe(flip=True, momentum=0.9).model_dump()["flip"] is True
        recipe = Recipe(optimizer="sgd", schedule="cosine", crop_padding=4)
        assert Recipe(**recipe.model_dump()) == recipe

    def test_schedules(self):
        rates = {
            schedule: [Recipe(learning_rate=0.1, schedule=schedule).rate(k, 10) for k in range(11)]
            for schedule in ("constant", "cosine", "one-cycle")
        }
        assert rates["constant"] == [0.1] * 11
        np.testing.assert_allclose([rates["cosine"][k] for k in (0, 5, 10)], [0.1, 0.05, 0])
        assert rates["one-cycle"][0] == pytest.approx(0.004)
        assert np.argmax(rates["one-cycle"]) == 3
        assert max(rates["one-cycle"]) == pytest.approx(0.1)
        assert rates["one-cycle"][10] == pytest.approx(0)


class TestBringTo:
    def test_black_around_and_grey_in_every_channel(self):
        x = np.random.default_rng(0).integers(1, 256, (4, 1, 28, 28), dtype=np.uint8)
        split = bring_to({"test": Split(x, np.arange(4))}, (3, 32, 32))["test"]
        assert split.x.shape == (4, 3, 32, 32)
        for channel in range(3):
            np.testing.assert_array_equal(split.x[:, channel, 2:30, 2:30], x[:, 0])
        assert split.x.sum() == 3 * x.sum(dtype=int)

    def test_colours_stay(self):
        x = np.random.default_rng(0).integers(1, 256, (4, 3, 4, 4), dtype=np.uint8)
        split = bring_to({"test": Split(x, np.arange(4))}, (3, 6, 6))["test"]
        np.testing.assert_array_equal(split.x[:, :, 1:5, 1:5], x)


@pytest.fixture(scope="module")
def mini():
    return make_dataset(CATALOGUE[DEFAULT], None, seed=0)


@pytest.fixture(scope="module")
def skewed():
    return make_dataset(CATALOGUE["fashion-mini-s-resnet8"], None, seed=0)


class TestSplits:
    def test_sizes_and_stratification(self, mini):
        for name, size in CATALOGUE[DEFAULT].splits.items():
            split = mini[name]
            assert len(split) == size
            np.testing.assert_array_equal(np.bincount(split.y), np.full(10, size // 10))

    def test_no_image_is_in_two_splits(self, mini):
        ids = np.concatenate([split.ids for split in mini.splits.values()])
        assert len(np.unique(ids)) == 10_000

    def test_ids_lead_back_to_the_source(self, mini):
        source = CATALOGUE[DEFAULT].origin.read()["test"]
        for split in mini.splits.values():
            np.testing.assert_array_equal(split.x, source.x[split.ids])
            np.testing.assert_array_equal(split.y, source.y[split.ids])

    def test_risks_name_classes(self, mini):
        assert {mini.classes[k]: v for k, v in mini.risks.items()} == GARMENT_RISKS

    def test_the_seed_decides(self, mini):
        again = make_dataset(CATALOGUE[DEFAULT], None, seed=0)
        other = make_dataset(CATALOGUE[DEFAULT], None, seed=1)
        np.testing.assert_array_equal(mini["test"].ids, again["test"].ids)
        assert not np.array_equal(mini["test"].ids, other["test"].ids)

    def test_uneven_classes_keep_their_shares(self):
        y = np.repeat([0, 1, 2], [600, 300, 100])
        part = Split(np.zeros((1000, 1, 2, 2), np.uint8), y)
        splits = carve({"all": part}, {"all": {"train": 700, "test": 300}}, seed=0)
        np.testing.assert_allclose(np.bincount(splits["train"].y), [420, 210, 70], atol=1)


class TestColourSkew:
    def test_sizes(self, skewed):
        assert {name: len(s) for name, s in skewed.splits.items()} == {
            "train": 6_000,
            "validation": 1_000,
            "repair": 3_000,
            "test": 3_000,
        }
        assert skewed.group_name == "colour"
        assert skewed["train"].x.shape[1:] == (3, 28, 28)

    @pytest.mark.parametrize("name", ["train", "validation"])
    def test_the_majority_is_reversed_for_half_of_the_classes(self, skewed, name):
        split = skewed[name]
        for label in range(10):
            members = split.group[split.y == label]
            majority = GREY if label % 2 == 0 else TINTED
            assert np.mean(members == majority) == pytest.approx(0.95)

    @pytest.mark.parametrize("name", ["repair", "test"])
    def test_every_image_in_both_versions_in_the_same_half(self, skewed, name):
        split = skewed[name]
        images, count = np.unique(split.ids // 2, return_counts=True)
        assert len(images) == 1_500
        assert (count == 2).all()
        np.testing.assert_array_equal(np.bincount(split.group), [1_500, 1_500])
        np.testing.assert_array_equal(split.y[0::2], split.y[1::2])

    def test_splits_are_apart_by_image(self, skewed):
        images = [np.unique(split.ids // 2) for split in skewed.splits.values()]
        assert len(np.unique(np.concatenate(images))) == 10_000

    def test_ids_are_unique_and_tell_the_group(self, skewed):
        ids = np.concatenate([split.ids for split in skewed.splits.values()])
        assert len(np.unique(ids)) == len(ids)
        for split in skewed.splits.values():
            np.testing.assert_array_equal(split.ids % 2, split.group)

    def test_grey_is_grey_and_tinted_is_not(self, skewed, mini):
        split = skewed["test"]
        grey, tinted = split.select(split.group == GREY), split.select(split.group == TINTED)
        np.testing.assert_array_equal(grey.x, np.repeat(mini["test"].x, 3, axis=1))
        spread = tinted.x.max(axis=1).astype(int) - tinted.x.min(axis=1)
        assert (spread.max(axis=(1, 2)) > 50).all()
        # The brightest channel keeps the luminance: a tint hides nothing of the shape.
        np.testing.assert_array_equal(tinted.x.max(axis=1), mini["test"].x[:, 0])

    @pytest.mark.parametrize("skew", [0.5, 0.8, 1.0])
    def test_the_skew_is_an_option(self, mini, skew):
        split = colour_skew({"train": mini["train"]}, skew, seed=0)["train"]
        assert np.mean(split.group[split.y == 4] == GREY) == pytest.approx(skew)


class TestCommandLine:
    def test_help_lists_the_subjects(self, capsys):
        with pytest.raises(SystemExit):
            main(["--help"])
        out = capsys.readouterr().out
        assert all(name in out for name in CATALOGUE)

    def test_an_unknown_name(self, tmp_path, capsys):
        assert main(["mnist", "--root", str(tmp_path)]) == 2
        assert capsys.readouterr().err == (
            "error: there is no subject 'mnist'; did you mean mnist-lenet5?\n"
        )

    def test_a_folder_that_cannot_be_written(self, tmp_path, capsys):
        (tmp_path / "file").write_text("in the way")
        assert main([DEFAULT, "--root", str(tmp_path / "file")]) == 2
        assert "cannot be written" in capsys.readouterr().err


class TestAvailability:
    @pytest.fixture(autouse=True)
    def _isolated(self, tmp_path, monkeypatch):
        monkeypatch.delenv("MODELFIX_DATA", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def test_the_four_states(self, tmp_path):
        root, data = tmp_path / "subjects", tmp_path / "data"
        (root / "fashion-lenet5").mkdir(parents=True)
        (root / "fashion-lenet5" / "subject.json").touch()
        (data / "utkface").mkdir(parents=True)
        (data / "utkface" / "1_0_0_2016.jpg.chip.jpg").touch()
        states = {
            name: availability(subject, root, data).state for name, subject in CATALOGUE.items()
        }
        assert states["fashion-lenet5"] == "ready"
        assert states["fashion-mini-lenet5"] == "can be prepared"
        assert states["utkface-facenet"] == "can be prepared"
        assert states["cifar10-vgg16"] == states["fashion-vgg16"] == "needs download"
        assert states["imagenet-densenet121"] == "needs manual download"

    def test_each_has_one_sentence(self, tmp_path):
        for subject in CATALOGUE.values():
            how = availability(subject, tmp_path).how
            assert how.endswith(".")
            assert "\n" not in how
            assert how[0].isupper()


def test_the_pages_are_fresh():
    folder = Path(__file__).parents[3] / "docs" / "subjects"
    assert {p.stem: p.read_text(encoding="utf-8") for p in folder.glob("*.md")} == pages()
