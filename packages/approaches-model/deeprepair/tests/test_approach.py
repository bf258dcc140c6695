import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from modelfix_core import Candidate, Evidence, ModelfixError, Outcome, Split, Unadaptable
from modelfix_core.fixing import run
from modelfix_core.subjects.architectures import build
from modelfix_core.torch import export
from modelfix_deeprepair import DeepRepair, autoencoder
from modelfix_deeprepair.features import with_statistics
from modelfix_deeprepair.haar import HaarStyle, cropped, padded
from modelfix_deeprepair.stylising import copies_of, stylised
from modelfix_testing import mlp, tiny_task
from torch import nn

QUICK = {"learning_rates": (1e-2,), "epochs": 1}
LEARNED = {"autoencoder_epochs": 1, "autoencoder_images": 100}


# -- the run -----------------------------------------------------------------------------------


def test_shows_styles_then_the_original_then_epochs(small_task):
    options = {"learning_rates": (1e-2, 1e-3), "epochs": 2}
    evidence, original, *others = DeepRepair(**options).candidates(small_task())
    assert isinstance(evidence, Evidence)
    assert isinstance(original, Candidate)
    assert original.weights == {}
    assert 0 < original.values["styles"] <= original.values["failures"]
    assert original.values["band_shift"] > 0
    assert original.values["colour_shift"] > 0
    assert [c.step for c in others] == [1, 2, 1, 2]
    assert [c.values["learning_rate"] for c in others] == [1e-2, 1e-2, 1e-3, 1e-3]


def test_evidence_tells_the_truth_about_images():
    task = tiny_task()
    evidence = next(DeepRepair(n_fail=10, k=3).candidates(task))
    columns = evidence.columns
    where = {int(sample): row for row, sample in enumerate(task.repair.ids)}
    rows = np.array([where[int(sample)] for sample in columns["sample"]])
    predicted = task.model.predict(task.repair).argmax(axis=1)
    np.testing.assert_array_equal(columns["label"], task.repair.y[rows])
    np.testing.assert_array_equal(columns["predicted"], predicted[rows])
    assert (columns["label"] != columns["predicted"]).all()
    assert np.bincount(columns["label"]).max() <= 10
    starts = np.unique(columns["cluster"], return_index=True)[1]
    roles = np.array(columns["role"])
    assert (roles[starts] == "style").all()
    assert (roles == "style").sum() == len(starts)


def test_interrupted_run_goes_on_with_the_copies_it_made(small_task, tmp_path, monkeypatch):
    approach = DeepRepair(learning_rates=(1e-2, 1e-3), epochs=2, backend="wave-ae", **LEARNED)
    whole = run(approach, small_task())
    task = small_task(folder=tmp_path)
    started = approach.candidates(task)
    for _ in range(5):  # evidence, original, and three epochs
        next(started)
    started.close()
    monkeypatch.setattr(autoencoder, "learn", None)  # not learned again
    assert run(approach, task).model.hash == whole.model.hash


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "wave-ae", **LEARNED},
        {"backend": "feature-adain"},
        {"alpha": 0.5},
        {"style_fraction": 0.5},
        {"include_failures": True},
        {"all_ops": True},
        {"crop": 2, "flip": True},
        {"precision": "bf16-mixed", "recalibrate_bn": True, "images_per_epoch": 150},
    ],
    ids=lambda options: f"{next(iter(options))}-{next(iter(options.values()))}",
)
def test_options_change_the_result(small_task, options):
    task = small_task()
    plain = list(DeepRepair(**QUICK).candidates(task))[-1]
    other = list(DeepRepair(**QUICK, **options).candidates(task))[-1]
    assert other.values["loss"] != plain.values["loss"]
    assert np.isfinite(other.values["loss"])


def test_cropped_copies_may_stay(small_task):
    options = {**QUICK, "crop": 4}
    aligned, apart = (
        list(DeepRepair(**options, align_style=align).candidates(small_task()))[-1]
        for align in (True, False)
    )
    assert aligned.values["loss"] != apart.values["loss"]


def test_features_of_the_first_layer_with_batchnorm_and_colour(small_task):
    task = small_task()
    with torch.random.fork_rng(devices=[]):
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(26)]
        model = export(nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 10)).eval(), (3, 28, 28))
    splits = {name: coloured(getattr(task, name)) for name in ("train", "validation", "repair")}
    result = run(DeepRepair(**QUICK, backend="feature-adain"), replace(task, model=model, **splits))
    assert result.outcome is Outcome.FIXED
    assert len(result.candidates) == 2


def coloured(split):
    return Split(np.repeat(split.x, 3, axis=1), split.y, ids=split.ids)


# -- applicability -----------------------------------------------------------------------------


def test_no_failures(small_task):
    task = small_task()
    right = task.model.predict(task.repair).argmax(axis=1) == task.repair.y
    result = run(DeepRepair(**QUICK), replace(task, repair=task.repair.select(right)))
    assert result.outcome is Outcome.UNADAPTABLE
    assert "mispredicts no image" in result.reason


def test_one_failure_is_enough(small_task):
    task = small_task()
    right = task.model.predict(task.repair).argmax(axis=1) == task.repair.y
    index = np.concatenate([np.flatnonzero(right)[:30], np.flatnonzero(~right)[:1]])
    result = run(DeepRepair(**QUICK), replace(task, repair=task.repair.select(index)))
    assert result.outcome is Outcome.FIXED
    assert result.candidates[0]["styles"] == 1


def test_what_cannot_be_taken(small_task):
    task = small_task()
    with pytest.raises(Unadaptable, match="training images"):
        DeepRepair().check(replace(task, train=None))
    for shape in ((2, 16, 16), (1, 15, 40)):
        model = mlp([np.zeros((10, int(np.prod(shape))))], [np.zeros(10)], shape)
        with pytest.raises(Unadaptable, match="images with 1 or 3 channels"):
            DeepRepair().check(replace(task, model=model))
    dense = mlp([np.zeros((10, 784))], [np.zeros(10)], (1, 28, 28))
    DeepRepair().check(replace(task, model=dense))
    with pytest.raises(Unadaptable, match="no convolution"):
        DeepRepair(backend="feature-adain").check(replace(task, model=dense))


def test_untrained_architectures_of_the_study_are_taken(small_task):
    for name, shape in (("lenet5", (1, 28, 28)), ("resnet8", (3, 32, 32))):
        model = export(build(name, 10, shape[0]).eval(), shape)
        DeepRepair().check(small_task(model=model))


@pytest.mark.parametrize("options", [{"backend": "vgg-ae"}, {"vgg_weights": "vgg19.pth"}])
def test_vgg_needs_its_file(options):
    with pytest.raises(ModelfixError, match="go together"):
        DeepRepair(**options)


# -- copies ------------------------------------------------------------------------------------


def test_images_without_a_copy_stand_for_it(small_task):
    train = small_task().train
    rows = np.array([3, 50, 199])
    images = np.full((3, 1, 28, 28), 9, np.uint8)
    copies = copies_of(train, rows, images)
    expected = np.array(train.x)
    expected[rows] = images
    np.testing.assert_array_equal(np.array(copies.x), expected)
    np.testing.assert_array_equal(copies.images([50, 51]), expected[[50, 51]] / np.float32(255))
    assert copies.x.shape == train.x.shape
    assert copies.x.nbytes == train.x.nbytes


def test_copies_are_kept_for_those_who_ask_for_the_same(small_task, tmp_path):
    train, made = small_task().train, []

    def styliser():
        made.append(1)
        return lambda images, index: index.view(-1, 1, 1, 1).expand_as(images) / 255

    rows = np.arange(0, 200, 2)
    for identity in ({"seed": 0}, {"seed": 0}, {"seed": 1}):
        images = stylised(train, rows, rows % 7, styliser, folder=tmp_path, identity=identity)
        np.testing.assert_array_equal(images[:, 0, 0, 0], rows % 7)
    assert len(made) == 2
    assert len(list(tmp_path.iterdir())) == 2


# -- backends ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 30), (1, 16, 16)])
def test_padding_is_undone(pictures, shape):
    x = pictures(2, shape)
    large = padded(x, 16)
    assert all(size % 16 == 0 for size in large.shape[2:])
    assert torch.equal(cropped(large, x), x)


def test_no_strength_changes_nothing(pictures):
    x = pictures(4, (3, 20, 20))
    styles = pictures(2, (3, 20, 20), seed=1)
    unchanged = HaarStyle(styles, 2, 1e-5, 0.0)(x, torch.arange(4) % 2)
    torch.testing.assert_close(unchanged, x, atol=1e-5, rtol=0)


def test_autoencoder_learns_to_reconstruct(small_task):
    task = small_task()
    net = autoencoder.small(0)
    options = {"images": 200, "seed": 0, "device": "cpu"}
    first = autoencoder.learn(net, task.train, epochs=1, **options)
    last = autoencoder.learn(net, task.train, epochs=5, **options)
    assert last < first / 3
    x = torch.from_numpy(task.validation.images(slice(0, 50)))
    style = 0.3 * x[:1] + 0.6
    changed = autoencoder.WaveStyle(net, style, 1.0)(x, torch.zeros(50, dtype=torch.long))
    assert changed.shape == x.shape
    distance = (changed.mean(dim=(1, 2, 3)) - style.mean()).abs().mean()
    assert distance < 0.5 * (x.mean(dim=(1, 2, 3)) - style.mean()).abs().mean()


def test_encoder_of_vgg_is_read_and_stays(small_task, tmp_path, pictures):
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 256, 512]
    rng = torch.Generator().manual_seed(0)
    weights = {}
    for number, inputs, outputs in zip(autoencoder.VGG_LAYERS, widths, widths[1:], strict=False):
        scale = (2 / (9 * inputs)) ** 0.5
        kernel = torch.randn(outputs, inputs, 3, 3, generator=rng) * scale
        weights |= {f"features.{number}.weight": kernel}
        weights |= {f"features.{number}.bias": torch.zeros(outputs)}
    torch.save(weights, tmp_path / "vgg19.pth")
    net = autoencoder.of_vgg(0, tmp_path / "vgg19.pth")
    assert torch.equal(net.first[3].weight, weights["features.19.weight"])
    assert torch.equal(net.further[2][4].weight, weights["features.16.weight"])
    before = {name: p.clone() for name, p in net.named_parameters()}
    train = small_task().train.select(slice(0, 8))
    autoencoder.learn(net, train, epochs=1, images=8, seed=0, device="cpu")
    moved = {name.split(".")[0] for name, p in net.named_parameters() if (p != before[name]).any()}
    assert moved == {"undo_first", "undo_further"}
    places = []
    net(pictures(1, (3, 32, 32)), lambda place, x: places.append(x.shape[1:3]) or x)
    assert places == [(64, 32), (128, 16), (256, 8), (512, 4), (256, 8), (128, 16), (64, 32)]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ModelfixError, match="no such file"):
        autoencoder.of_vgg(0, tmp_path / "vgg19.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "vgg19.pth")
    with pytest.raises(ModelfixError, match="no weights of VGG19"):
        autoencoder.of_vgg(0, tmp_path / "vgg19.pth")


def test_features_take_the_statistics_of_the_style():
    rng = torch.Generator().manual_seed(0)
    x, style = (torch.rand(4, 6, 9, 9, generator=rng) * scale for scale in (1, 3))
    found = with_statistics(x, style)
    torch.testing.assert_close(found.mean(dim=(2, 3)), style.mean(dim=(2, 3)))
    torch.testing.assert_close(found.std(dim=(2, 3)), style.std(dim=(2, 3)), rtol=1e-3, atol=0)
    torch.testing.assert_close(with_statistics(x, x), x)


def test_says_how_far_the_styles_are(small_task, caplog):
    with caplog.at_level(logging.INFO, logger="modelfix_deeprepair"):
        proposals = DeepRepair(**QUICK).candidates(small_task())
        next(proposals)
        next(proposals)
    assert "style images; their bands differ by" in caplog.text
