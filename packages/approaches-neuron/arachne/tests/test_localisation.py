"""Impacts against direct loops, the front against brute force."""

import numpy as np
import pytest
from modelfix_arachne.front import pareto_front


def brute_force(first, second):
    points = np.stack([first, second], axis=1)
    return [
        i
        for i, p in enumerate(points)
        if not ((points >= p).all(axis=1) & (points > p).any(axis=1)).any()
    ]


def padded(o, pads):
    return np.pad(o, ((0, 0), (pads[0], pads[2]), (pads[1], pads[3])))


def conv_shares(o, weight, b, pads, stride, dilation, mode):
    """FI of a convolution as sections 4b.3 and 4b.4 of the method say, one product at a time."""
    n = len(o)
    o = np.stack([padded(x, pads) for x in o]).astype(np.float64)
    c_out, c_in, kh, kw = weight.shape
    fi = np.zeros(weight.shape)
    for c in range(c_out):
        for u in range(b.shape[1]):
            for v in range(b.shape[2]):
                terms = np.zeros((n, c_in, kh, kw))
                for i in range(kh):
                    for j in range(kw):
                        row, column = u * stride + i * dilation, v * stride + j * dilation
                        terms[:, :, i, j] = o[:, :, row, column] * weight[c, :, i, j]
                if mode == "reference":
                    norm = np.abs(terms).sum()
                else:
                    terms = np.abs(terms)
                    norm = terms.sum(axis=(1, 2, 3), keepdims=True)
                shares = np.divide(terms, norm, out=np.zeros_like(terms), where=norm != 0)
                fi[c] += shares.mean(axis=0) * b[c, u, v]
    return fi


@pytest.mark.parametrize("mode", ["reference", "abs"])
@pytest.mark.parametrize(
    ("stride", "dilation", "dead"), [(1, 1, True), (2, 1, False), (1, 2, True)]
)
def test_forward_impacts_equal_a_direct_loop(convnet, mode, stride, dilation, dead):
    from modelfix_arachne.localisation import backward_shares, impacts
    from modelfix_core.keras import load

    model, split = convnet(stride=stride, dilation=dilation, dead=dead)
    net = load(model)
    layers = model.layers()
    found = impacts(net, layers, split, mode)
    shares = backward_shares(net, layers, split)
    o = model.activations(split.images(), [layer.input for layer in layers])
    geometry = {
        "conv1": ([1, 1, 1, 1], stride, 1),
        "conv2": ([dilation, 0, 0, dilation], 1, dilation),
    }
    for layer in layers[:2]:
        weight = model.weights[layer.weight].astype(np.float64)
        expected = conv_shares(
            o[layer.input], weight, shares[layer.name], *geometry[layer.name], mode
        )
        assert np.allclose(found[layer.name].forward, expected, rtol=1e-3, atol=1e-8)
        bound = 1 if mode == "abs" else 1 / len(split)
        assert np.abs(found[layer.name].forward).sum() <= bound + 1e-5
    for layer in layers[2:]:
        terms = np.abs(o[layer.input][:, None, :] * model.weights[layer.weight]).astype(np.float64)
        norm = terms.sum(axis=2, keepdims=True)
        a = np.divide(terms, norm, out=np.zeros_like(terms), where=norm != 0).mean(axis=0)
        expected = a * shares[layer.name][:, None]
        assert np.allclose(found[layer.name].forward, expected, rtol=1e-3, atol=1e-5)


def test_backward_shares_equal_numerical_gradients(convnet):
    """Of the classifier's input: h = relu(fc1), sum of logits = 1^T W h."""
    from modelfix_arachne.localisation import backward_shares
    from modelfix_core.keras import load

    model, split = convnet()
    net = load(model)
    shares = backward_shares(net, model.layers(), split)
    slope = np.abs(model.weights["fc2.weight"].sum(axis=0))
    assert np.allclose(shares["fc1"], slope / slope.sum(), atol=1e-6)
    assert np.allclose(shares["fc2"], 1 / 3)
    for layer in model.layers():
        assert shares[layer.name].shape == layer.output_shape


def test_gradient_impact_equals_finite_differences(convnet):
    from modelfix_arachne.localisation import impacts
    from modelfix_core.keras import load

    model, split = convnet()
    found = impacts(load(model), model.layers(), split)

    def loss(name, position, step):
        weight = model.weights[name].astype(np.float32).copy()
        weight.flat[position] += step
        z = model.with_weights({name: weight}).predict(split).astype(np.float64)
        top = z.max(axis=1)
        total = np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(len(z)), split.y]
        return total.sum()

    for name in ("conv1", "conv2", "fc1", "fc2"):
        gradient = found[name].gradient
        for position in gradient.ravel().argsort()[[-1, -5]]:
            weight = f"{name}.weight"
            slope = (loss(weight, position, 2e-3) - loss(weight, position, -2e-3)) / 4e-3
            assert abs(slope) == pytest.approx(gradient.flat[position], rel=0.02, abs=2e-3)


def test_front_equals_brute_force_with_ties():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        first, second = rng.normal(0, 0.6, (2, 300)).round(1)
        front = pareto_front(first, second)
        assert sorted(front.tolist()) == brute_force(first, second)
        assert (np.diff(first[front]) <= 0).all()


def test_front_keeps_exact_duplicates():
    first = np.array([1.0, 2.0, 2.0, 0.0, 1.0])
    second = np.array([1.0, 0.5, 0.5, 1.0, 1.0])
    assert sorted(pareto_front(first, second).tolist()) == [0, 1, 2, 4]


def test_batches_do_not_change_the_impacts(convnet, monkeypatch):
    from modelfix_arachne import localisation
    from modelfix_core.keras import load

    model, split = convnet(n=11)
    net = load(model)
    for mode in ("reference", "abs"):
        whole = localisation.impacts(net, model.layers(), split, mode)
        with monkeypatch.context() as patch:
            patch.setattr(localisation, "BATCH", 4)
            parts = localisation.impacts(net, model.layers(), split, mode)
        for name, impact in whole.items():
            assert np.allclose(impact.gradient, parts[name].gradient, rtol=1e-4, atol=1e-6)
            assert np.allclose(impact.forward, parts[name].forward, rtol=1e-4, atol=1e-9)


def test_localised_weights_are_named_by_layer_and_position(convnet):
    from modelfix_arachne.localisation import impacts, localise
    from modelfix_core.keras import load

    model, split = convnet(n=20)
    net, layers = load(model), model.layers()
    failing, passing = split.select(slice(0, 8)), split.select(slice(8, 20))
    front = localise(net, layers, failing, passing)
    wrong, right = impacts(net, layers, failing), impacts(net, layers, passing)
    costs = {name: wrong[name].gradient / (1 + right[name].gradient) for name in wrong}
    assert front.kind == "weight"
    assert len(front) >= 1
    for layer, index, score in zip(front.layer, front.index, front.score, strict=True):
        assert costs[layer].flat[index] == score
    assert max(cost.max() for cost in costs.values()) == front.score[0]
