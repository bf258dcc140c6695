import numpy as np
import pytest
import torch
from modelfix_core.torch import augment
from modelfix_core.torch.augment import Mixing, Variant
from PIL import Image, ImageEnhance, ImageOps

SHAPES = [(1, 28, 28), (3, 20, 32)]


def pictures(n, shape, seed=0):
    """Smooth random uint8 images with uneven brightness, so that every operation does something."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((n, shape[0], 5, 5)))
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bicubic")
    scaled = smooth.numpy() * rng.uniform(0.5, 1, (n, 1, 1, 1)) + rng.normal(0, 0.02, smooth.shape)
    return np.round(scaled.clip(0, 1) * 255).astype(np.uint8)


def with_pillow(image, operation, value):
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    affine = {
        "shear_x": (1, value, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, value, 1, 0),
        "translate_x": (1, 0, value, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, value),
    }
    enhance = {
        "colour": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }
    if operation in affine:
        size, how = picture.size, Image.Transform.AFFINE
        done = picture.transform(size, how, affine[operation], resample=Image.Resampling.BILINEAR)
    elif operation in enhance:
        done = enhance[operation](picture).enhance(value)
    elif operation == "rotate":
        done = picture.rotate(value, resample=Image.Resampling.BILINEAR)
    elif operation == "posterize":
        done = ImageOps.posterize(picture, int(value))
    elif operation == "solarize":
        done = ImageOps.solarize(picture, int(value))
    else:
        done = getattr(ImageOps, operation)(picture)
    result = np.asarray(done)
    return result[None] if result.ndim == 2 else result.transpose(2, 0, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=["grey", "rgb"])
@pytest.mark.parametrize("operation", augment.OPERATIONS)
def test_operations_are_those_of_pillow(operation, shape):
    if operation == "colour" and shape[0] == 1:
        pytest.skip("grey images have no colour")
    x = pictures(100, shape)
    for variant in [v for v in augment.variants(shape) if v.operation == operation]:
        [value] = augment.strengths([variant], np.array([variant.level]), shape)
        expected = np.stack([with_pillow(image, operation, value) for image in x])
        actual = augment.apply(
            torch.from_numpy(x).float() / 255,
            np.full(100, augment.NUMBER[operation]),
            np.full(100, value),
        )
        difference = np.abs(actual.numpy() * 255 - expected)
        if operation in augment.SIGNED:
            assert difference.mean() <= 1
        else:
            assert difference.max() <= 2


def test_variants_of_digits():
    found = augment.variants((1, 28, 28))
    assert len(found) == 43
    assert not any(v.operation == "colour" for v in found)
    # At 28 pixels a shift of level 1 is less than a pixel.
    assert {v.level for v in found if v.operation == "translate_x"} == {2, 3}
    assert len(augment.variants((3, 32, 32))) == 50


def test_strengths_follow_augmix():
    chosen = [
        Variant("rotate", sign=-1),
        Variant("shear_x"),
        Variant("translate_y", sign=-1),
        Variant("solarize"),
        Variant("posterize"),
        Variant("contrast"),
    ]
    found = augment.strengths(chosen, np.array([3, 3, 3, 3, 3, 1]), (1, 28, 28))
    np.testing.assert_allclose(found, [-9, 0.09, -2, 180, 3, 0.28])


def test_exact_shift_moves_pixels():
    x = torch.rand(1, 1, 8, 8)
    moved = augment.apply(x, np.array([augment.NUMBER["translate_x"]]), np.array([2.0]))
    torch.testing.assert_close(moved[..., :6], x[..., 2:])
    assert (moved[..., 6:] == 0).all()


def test_operations_of_a_batch_do_not_mix():
    x = torch.from_numpy(pictures(13, (3, 16, 16))).float() / 255
    names = np.arange(13)
    value = augment.strengths(
        [Variant(name) for name in augment.OPERATIONS], np.full(13, 3.0), (3, 16, 16)
    )
    together = augment.apply(x, names, value)
    alone = [augment.apply(x[i : i + 1], names[i : i + 1], value[i : i + 1]) for i in names]
    torch.testing.assert_close(together, torch.cat(alone))


def test_flat_images_survive():
    x = torch.full((2, 1, 8, 8), 0.5)
    for name in augment.OPERATIONS[:2]:
        number = np.full(2, augment.NUMBER[name])
        torch.testing.assert_close(augment.apply(x, number, np.ones(2)), x)


@pytest.mark.parametrize("shape", SHAPES, ids=["grey", "rgb"])
def test_views_are_images_of_the_seed(shape):
    x = torch.from_numpy(pictures(12, shape)).float() / 255
    mixing = Mixing.uniform(shape)
    before = x.clone()
    one, same, other = (
        augment.views(x, mixing, np.random.default_rng(seed), count=2) for seed in (0, 0, 1)
    )
    assert one.shape == (2, *x.shape)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
    assert one.min() >= 0
    assert one.max() <= 1 + 1e-6
    assert torch.equal(x, before)


def test_weights_of_the_chains_are_a_truncated_normal():
    mixing = Mixing((Variant("rotate"),), (1.0,), weight=0.9, spread=0.2)
    drawn = augment.draw_weights(mixing, np.random.default_rng(0), 20_000)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    # Mean of the normal truncated at 1: 0.9 - 0.2 phi(0.5) / Phi(0.5) = 0.7982.
    assert drawn.mean() == pytest.approx(0.7982, abs=0.005)


def test_without_a_centre_the_weights_are_uniform():
    drawn = augment.draw_weights(Mixing.uniform((1, 8, 8)), np.random.default_rng(0), 20_000)
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    assert drawn.std() == pytest.approx(12**-0.5, abs=0.01)


def test_levels_span_the_interval_that_is_asked_for():
    x = torch.ones(5000, 1, 2, 2)
    mixing = Mixing((Variant("brightness", 3.0),), (1.0,), 1, 1, weight=1.0, spread=0, span=2.9)
    # A factor of 0.1 + 1.8 * level / 10 with levels from 0.1 to 3.
    seen = augment.views(x, mixing, np.random.default_rng(0), 1)[0, :, 0, 0, 0]
    assert float(seen.min()) == pytest.approx(0.118, abs=0.001)
    assert float(seen.max()) == pytest.approx(0.64, abs=0.001)


def test_companion_chain_reaches_the_companion():
    x, companion = torch.zeros(200, 1, 8, 8), torch.ones(200, 1, 8, 8)
    mixing = Mixing((Variant("brightness"),), (1.0,), weight=1.0, spread=0.0)
    seen = augment.views(x, mixing, np.random.default_rng(0), 1, companion)[0].mean(dim=(1, 2, 3))
    # Three chains keep black images black; the fourth has a quarter of the weight on average.
    assert float(seen.mean()) == pytest.approx(0.25, abs=0.05)


def test_chains_start_from_the_copy_where_it_is_drawn():
    x, copies = torch.zeros(300, 1, 4, 4), torch.ones(300, 1, 4, 4)
    copies[1::2] = 0.5
    # A shift by no pixel leaves every image as it is.
    mixing = Mixing((Variant(augment.COPY), Variant("translate_x", 0)), (0.5, 0.5), 1, 2)
    before = x.clone()
    chained = augment.chains(x, mixing, np.random.default_rng(0), 4, copies)[:, 0, :, 0, 0, 0]
    drawn = chained > 0
    assert torch.equal(x, before)
    for view in range(4):
        torch.testing.assert_close(chained[view][drawn[view]], copies[drawn[view], 0, 0, 0])
    # 1/2 for chains of one operation, 3/4 for two.
    assert float(drawn.double().mean()) == pytest.approx(0.625, abs=0.04)


def test_crop_and_flip():
    x = torch.arange(2 * 3 * 6 * 6).float().view(2, 3, 6, 6)
    rng = np.random.default_rng(0)
    assert augment.crop_and_flip(x, rng) is x
    many = x[:1].repeat(50, 1, 1, 1)
    flipped = augment.crop_and_flip(many, rng, flip=True)
    mirrored = (flipped == many.flip(3)).flatten(1).all(dim=1)
    same = (flipped == many).flatten(1).all(dim=1)
    assert (mirrored ^ same).all()
    assert 10 < int(mirrored.sum()) < 40
    shifted = augment.crop_and_flip(many + 1, rng, padding=1)
    expected = torch.nn.functional.pad(many[:1] + 1, (1, 1, 1, 1))
    windows = torch.stack(
        [expected[0, :, i : i + 6, j : j + 6] for i in range(3) for j in range(3)]
    )
    found = (shifted[:, None] == windows).flatten(2).all(dim=2)
    assert found.any(dim=1).all()
    assert found.any(dim=0).sum() > 6
