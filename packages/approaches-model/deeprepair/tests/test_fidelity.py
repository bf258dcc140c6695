"""What the specification of DeepRepair promises, numbered as its list of checks."""

import numpy as np
import pytest
import torch
from modelfix_core import Outcome, Split
from modelfix_core.fixing import run
from modelfix_core.seeds import generator
from modelfix_core.torch import augment, load
from modelfix_core.torch.augment import COPY, NUMBER, Mixing, Variant
from modelfix_core.torch.training import FineTuning, Supervised, Training, consistency, fine_tune
from modelfix_core.torch.wavelets import compose, decompose
from modelfix_deeprepair import DeepRepair, DeepRepairConfig, autoencoder
from modelfix_deeprepair.autoencoder import WaveStyle
from modelfix_deeprepair.haar import HaarStyle
from modelfix_deeprepair.repair import mixing_of, operations, style_share, views_of
from modelfix_deeprepair.styles import cluster, find_styles
from modelfix_deeprepair.stylising import stylised
from modelfix_deeprepair.whitening import statistics_of, transfer

E = 1e-5
SHAPES = [(8, 64), (64, 8), (32, 32), (3, 256), (5, 1)]  # channels, positions


def features(channels, positions, seed=0):
    rng = torch.Generator().manual_seed(seed)
    mixed = torch.randn(channels, channels, generator=rng, dtype=torch.float64)
    shift = torch.randn(channels, 1, generator=rng, dtype=torch.float64)
    noise = torch.randn(channels, positions, generator=rng, dtype=torch.float64)
    return mixed @ noise + shift


def covariance(x):
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred @ centred.mT / max(x.shape[-1] - 1, 1)


def power(matrix, exponent, e):
    values, vectors = torch.linalg.eigh(matrix + e * torch.eye(len(matrix), dtype=matrix.dtype))
    return vectors * values**exponent @ vectors.mT


def direct(content, style, e):
    """The transform as the paper writes it."""
    matrix = power(covariance(style), 0.5, e) @ power(covariance(content), -0.5, e)
    centred = content - content.mean(dim=-1, keepdim=True)
    return matrix @ centred + style.mean(dim=-1, keepdim=True)


# -- 1 to 3: the transform -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_1_own_style_changes_nothing(shape):
    x = features(*shape)
    torch.testing.assert_close(transfer(x, statistics_of(x, 1.0), 1.0), x, atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 20, 37)])
def test_1_own_style_leaves_images_to_the_pyramid(pictures, shape):
    x = pictures(6, shape)
    changed = HaarStyle(x, 3, E, 1.0)(x, torch.arange(6))
    torch.testing.assert_close(changed, x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_1_own_style_leaves_plain_reconstruction_to_the_autoencoder(pictures, channels):
    x = pictures(4, (channels, 20, 20)).double()
    net = autoencoder.small(0).double().requires_grad_(False)
    plain = net(x.expand(-1, 3, -1, -1)).clamp(0, 1)
    plain = plain if channels == 3 else plain.mean(dim=1, keepdim=True)
    changed = WaveStyle(net, x, 1.0)(x, torch.arange(4))
    torch.testing.assert_close(changed, plain, atol=1e-8, rtol=0)
    other = WaveStyle(net, x, 1.0)(x, torch.tensor([1, 2, 3, 0]))
    assert float((other - plain).abs().mean()) > 1e-4


@pytest.mark.parametrize("shape", [(8, 64), (64, 8), (32, 32)])
def test_2_mean_and_covariance_are_those_of_the_equations(shape):
    content, style = features(*shape), 2 * features(*shape, seed=1)
    found = transfer(content, statistics_of(style, 1.0), 1.0)
    matrix = power(covariance(style), 0.5, 1.0) @ power(covariance(content), -0.5, 1.0)
    expected = matrix @ covariance(content) @ matrix.mT
    torch.testing.assert_close(found.mean(dim=-1), style.mean(dim=-1))
    torch.testing.assert_close(covariance(found), expected)


def assert_alike(one, other):
    """Assert that bands have the same means and covariances of their colours."""
    one, other = one.flatten(-2), other.flatten(-2)
    torch.testing.assert_close(one.mean(dim=-1), other.mean(dim=-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(covariance(one), covariance(other), atol=1e-6, rtol=1e-4)


def test_2_bands_have_the_covariance_of_the_style(pictures):
    content, style = (x.double() for x in pictures(8, seed=1).split(4))
    noise = torch.randn(style.shape, generator=torch.Generator().manual_seed(0))
    style = style + 0.05 * noise
    changed = HaarStyle(style, 3, 1e-9, 1.0)(content + 0.02 * noise, torch.arange(4))
    assert changed.min() > 0
    assert changed.max() < 1
    for _ in range(3):
        (changed, ours), (style, theirs) = decompose(changed), decompose(style)
        assert_alike(ours, theirs)
    assert_alike(changed, style)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("other", [16, 40])
@pytest.mark.parametrize("e", [1.0, 1e-3])
def test_3_small_matrices_give_what_large_ones_do(shape, other, e):
    content, style = features(*shape), features(shape[0], other, seed=1)
    for first, second in ((content, style), (style, content)):
        found = transfer(first, statistics_of(second, e), e)
        torch.testing.assert_close(found, direct(first, second, e), atol=1e-10, rtol=1e-10)


def test_3_pyramid_is_undone(pictures):
    x = pictures(4).double()
    torch.testing.assert_close(compose(*decompose(x)), x, atol=1e-12, rtol=0)


# -- 4: direction of the style ---------------------------------------------------------------------


def finest(images):
    """Standard deviation of the band of diagonal details."""
    return float(decompose(images)[1][2].std())


def noisy(images, seed):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + 0.15 * noise).clamp(0, 1)


def restyled(content, style):
    index = torch.arange(len(content)) % len(style)
    return HaarStyle(style, 3, E, 1.0)(content, index)


def test_4_noise_is_taken_on_and_the_content_stays(pictures):
    content, style = pictures(16), noisy(pictures(4, seed=1), 0)
    # The noise of smooth images comes from their own details.
    content = (content + 0.01 * torch.randn(content.shape, generator=torch.Generator())).clamp(0, 1)
    changed = restyled(content, style)
    assert finest(changed) > 5 * finest(content)
    assert finest(changed) == pytest.approx(finest(style), rel=0.15)
    grey = torch.stack([augment.luma(content).flatten(1), augment.luma(changed).flatten(1)])
    correlations = [float(torch.corrcoef(grey[:, i])[0, 1]) for i in range(16)]
    assert np.mean(correlations) > 0.7


def test_4_blur_is_taken_on(pictures):
    content, style = noisy(pictures(16), 0), pictures(4, seed=1)
    changed = restyled(content, style)
    assert finest(changed) < finest(content) / 5
    assert finest(changed) == pytest.approx(finest(style), rel=0.15, abs=2e-3)


def test_4_fog_is_taken_on(pictures):
    clear = pictures(4, seed=1)
    style = 0.35 * clear + 0.55
    changed = restyled(pictures(16), style)
    assert float(changed.mean()) == pytest.approx(float(style.mean()), rel=0.15)
    assert float(changed.std()) == pytest.approx(float(style.std()), rel=0.15)


# -- 5: clusters -----------------------------------------------------------------------------------


def test_5_planted_groups_are_all_styles(oracle):
    rng = np.random.default_rng(0)
    group = rng.integers(0, 3, 60)
    x = np.array([0.1, 0.5, 0.9], np.float32)[group][:, None, None, None]
    x = x + rng.normal(0, 0.01, (60, 3, 16, 16)).astype(np.float32)
    repair = Split(x, np.full(60, 4))
    failing = np.arange(0, 60, 2)
    found = find_styles(oracle(failing), repair, n_fail=100, k=5, seed=0)
    assert len(found.chosen) == 5
    assert set(group[found.chosen]) == {0, 1, 2}
    for number in range(5):
        assert len(set(group[found.members[found.clusters == number]])) == 1


@pytest.mark.parametrize(("failures", "styles"), [(1, 1), (2, 2), (3, 3), (4, 4), (9, 5)])
def test_5_clusters_shrink_and_styles_are_failures(oracle, failures, styles):
    rng = np.random.default_rng(failures)
    repair = Split(rng.random((100, 1, 16, 16), dtype=np.float32), np.repeat([3, 7], 50))
    failing = np.concatenate([np.arange(failures), 50 + np.arange(failures)])
    found = find_styles(oracle(failing), repair, n_fail=100, k=5, seed=0)
    assert len(found.chosen) == 2 * styles
    assert np.isin(found.chosen, failing).all()
    np.testing.assert_array_equal(np.sort(found.members), failing)
    # One style of each cluster, and clusters lie within a class.
    where = {int(row): number for row, number in zip(found.members, found.clusters, strict=True)}
    assert [where[int(row)] for row in found.chosen] == list(range(2 * styles))
    for number in range(2 * styles):
        assert len(np.unique(repair.y[found.members[found.clusters == number]])) == 1


def test_5_few_failures_of_each_class_are_drawn(oracle):
    rng = np.random.default_rng(0)
    repair = Split(rng.random((80, 1, 16, 16), dtype=np.float32), np.repeat([0, 1], 40))
    found = find_styles(oracle(np.arange(80)), repair, n_fail=7, k=5, seed=0)
    assert np.bincount(repair.y[found.members]).tolist() == [7, 7]
    other = find_styles(oracle(np.arange(80)), repair, n_fail=7, k=5, seed=1)
    assert not np.array_equal(found.members, other.members)


def test_5_equal_images_are_one_cluster():
    assert set(cluster(np.full((6, 1, 4, 4), 0.5), 5)) == {0}


# -- 6 and 7: views --------------------------------------------------------------------------------


def test_6_style_is_as_frequent_as_any_operation():
    mixing = mixing_of((3, 32, 32), DeepRepairConfig())
    drawn = augment.draw_chains(mixing, np.random.default_rng(0), 20_000 * 3, (3, 32, 32))
    styled = np.zeros(60_000, dtype=bool)
    for position in drawn:
        styled[position.rows[position.operation == NUMBER[COPY]]] = True
    assert styled[:20_000].mean() == pytest.approx(0.187, abs=0.01)
    assert styled.reshape(3, -1).any(axis=0).mean() == pytest.approx(0.46, abs=0.02)
    assert style_share(DeepRepairConfig()) == pytest.approx(0.187, abs=1e-3)
    operation = np.concatenate([position.operation for position in drawn])
    share = np.bincount(operation, minlength=len(NUMBER)) / len(operation)
    assert share[share > 0] == pytest.approx(np.full(10, 0.1), abs=0.005)


def test_6_without_style_it_is_augmix(pictures):
    x, copies = pictures(8), torch.rand(8, 3, 32, 32)
    y = torch.zeros(8, dtype=torch.long)
    config = DeepRepairConfig()
    mixing = mixing_of((3, 32, 32), config, style=False)
    found = views_of(config, mixing)(x, y, np.random.default_rng(5), copies)
    assert torch.equal(found[0], x)
    assert torch.equal(found[1:], augment.views(x, mixing, np.random.default_rng(5), 2))
    # AugMix as it is written: image by image, operation by operation.
    rng = np.random.default_rng(5)
    m = rng.random((2, 8))
    shares = rng.dirichlet(np.ones(3), size=(2, 8))
    drawn = augment.draw_chains(mixing, rng, 48, (3, 32, 32))
    expected = torch.zeros(2, 8, 3, 32, 32)
    for chain in range(48):
        view, number, image = chain // 24, chain // 8 % 3, chain % 8
        part = x[image : image + 1]
        for position in drawn:
            for at in np.flatnonzero(position.rows == chain):
                part = augment.apply(
                    part, position.operation[at : at + 1], position.strength[at : at + 1]
                )
        expected[view, image] += float(shares[view, image, number]) * part[0]
    m = torch.from_numpy(m).float().view(2, 8, 1, 1, 1)
    torch.testing.assert_close(found[1:], (1 - m) * x + m * expected, atol=1e-5, rtol=0)


def test_6_operations_and_levels_are_those_of_augmix():
    config = DeepRepairConfig(all_ops=True)
    assert len(operations((1, 28, 28), DeepRepairConfig())) == 9
    assert len(operations((1, 28, 28), config)) == 12
    assert len(operations((3, 32, 32), config)) == 13
    mixing = mixing_of((3, 32, 32), config)
    assert sum(mixing.probabilities) == pytest.approx(1)
    assert {v.level for v in mixing.variants} == {3.0}
    assert mixing.span == pytest.approx(2.9)  # levels from 0.1 to 3
    assert mixing.weight is None  # m is uniform


@pytest.mark.parametrize("align", [True, False])
def test_7_views_hold_the_stylised_copy_of_their_own_image(small_task, align):
    task = small_task()
    x = np.zeros((200, 1, 28, 28), dtype=np.uint8)
    train = Split(x, np.arange(200))  # the label says which image it is
    copies = Split(x + np.arange(200, dtype=np.uint8)[:, None, None, None], train.y)
    config = DeepRepairConfig(align_style=align, flip=True)
    # Flat images stay as they are under these operations.
    mixing = Mixing((Variant(COPY), Variant("autocontrast")), (0.5, 0.5), 1, 2, 1.0, 0.0)
    made = views_of(config, mixing)
    seen = []

    def views(x, y, rng, copies):
        stack = made(x, y, rng, copies)
        seen.append((y, stack))
        return stack

    recipe = FineTuning(1, batch_size=32, learning_rate=0.0)
    net = load(task.model)
    loss = lambda logits, y: logits.sum() * 0  # noqa: E731
    Training(net, Supervised(net, train, recipe, loss, views, copies), recipe).epoch(1)
    y = torch.cat([labels for labels, _ in seen])
    assert not torch.equal(y, torch.arange(200))
    assert torch.equal(y.sort()[0], torch.arange(200))
    styled = 0
    for labels, (image, *changed) in seen:
        assert not image.any()
        for view in changed:
            values = view[:, 0, 0, 0] * 255
            assert torch.equal(view, view[:, :, :1, :1].expand_as(view))
            own = torch.isclose(values, labels.float(), atol=1e-3)
            assert (own | (values == 0)).all()
            styled += int((own & (labels > 0)).sum())
    assert styled / 398 == pytest.approx(0.625, abs=0.1)  # 1/2 of short chains, 3/4 of long ones


# -- 8 to 10: behaviour ----------------------------------------------------------------------------


def test_8_without_learning_rate_nothing_changes(small_task):
    task = small_task()
    result = run(DeepRepair(learning_rates=(0.0,), epochs=2), task)
    assert result.outcome is Outcome.FIXED
    assert len(result.candidates) == 3
    for name, array in task.model.weights.items():
        assert result.model.weights[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("rate", [1e-3, 5.0])
def test_8_validation_accuracy_never_falls(small_task, rate):
    result = run(DeepRepair(learning_rates=(rate,), epochs=2), small_task())
    assert result.validation_accuracy["after"] >= result.validation_accuracy["before"]
    if rate > 1:
        # Such steps destroy the model, hence the original is what is left.
        worst = min(entry["validation_accuracy"] for entry in result.candidates)
        assert worst < result.validation_accuracy["before"]


def test_9_styles_and_copies_need_predictions_only(oracle, small_task):
    task = small_task()
    found = find_styles(oracle(np.arange(0, 300, 7)), task.repair, n_fail=100, k=5, seed=0)
    styles = torch.from_numpy(task.repair.images(found.chosen))
    rows = np.arange(len(task.train))
    index = generator(0, stage="assignment").integers(len(styles), size=len(rows))
    images = stylised(task.train, rows, index, lambda: HaarStyle(styles, 3, E, 1.0))
    assert images.shape == task.train.x.shape
    assert (images != task.train.x).any(axis=(1, 2, 3)).mean() > 0.9


def test_10_fogged_digits_get_better_and_not_without_the_style(foggy):
    gains = []
    options = {"learning_rates": (1e-2,), "epochs": 8}
    for seed in range(2):
        task, fogged, clean = foggy(seed)
        before = [task.model.accuracy(split) for split in (fogged, fogged, clean)]
        *_, styled = DeepRepair("study", **options).candidates(task)
        config = DeepRepairConfig(**options)
        net = load(task.model)
        loss = lambda logits, y: consistency(logits, y, 12)  # noqa: E731
        views = views_of(config, mixing_of((1, 32, 32), config, style=False))
        recipe = FineTuning(8, 1e-2, 64)
        *_, plain = fine_tune(net, task, task.train, recipe, loss, views)
        fixed, augmix = styled.apply(task.model), plain.apply(task.model)
        after = [fixed.accuracy(fogged), augmix.accuracy(fogged), fixed.accuracy(clean)]
        gains.append(np.subtract(after, before))
    with_style, without, on_clean = np.mean(gains, axis=0)
    assert with_style > 0.20
    assert with_style > without + 0.15
    assert on_clean > -0.03
