import numpy as np
import pytest
import torch
from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.torch import PrefixCache, gradients, load, predict
from torch.nn import functional


def test_activations_equal_onnxruntimes(network, images):
    _, model = network
    net = load(model)
    x = images(model, 5)
    layers = model.layers()
    names = [layer.name for layer in layers] + [layer.activated for layer in layers]
    got = net.activations(torch.from_numpy(x), names)
    places = {layer.name: layer.output for layer in layers}
    tensors = [places.get(name, name) for name in names]
    expected = model.activations(x, list(dict.fromkeys(tensors)))
    for name, tensor in zip(names, tensors, strict=True):
        np.testing.assert_allclose(got[name].detach().numpy(), expected[tensor], atol=1e-4)


def test_only_the_nodes_between_run(network_of, images):
    _, model = network_of("resnet8")
    net = load(model)
    x = torch.from_numpy(images(model, 3))
    cut = model.layer("fc").input
    inner = net.activations(x, [cut])[cut]
    steps = net.between([cut], [model.output_name])
    assert [step.kind for step in steps] == ["Gemm"]
    torch.testing.assert_close(
        net.run({cut: inner}, [model.output_name])[model.output_name], net(x)
    )


def test_a_cut_that_a_shortcut_passes_is_refused(network_of):
    _, model = network_of("resnet8")
    net = load(model)
    inside = model.layer("layer3.0.conv2").input
    with pytest.raises(ModelfixError, match="cannot be computed"):
        net.between([inside], [model.output_name])


def test_unknown_names_list_the_layers(network_of, images):
    _, model = network_of("lenet5")
    with pytest.raises(ModelfixError, match="conv1, conv2, fc1"):
        load(model).activations(torch.from_numpy(images(model, 1)), ["conv9"])


def test_gradients_are_per_sample(network, images):
    """Row i equals the gradient of sample i alone."""
    _, model = network
    net = load(model)
    layer = model.layers()[len(model.layers()) // 2]
    x, y = torch.from_numpy(images(model, 4)), torch.tensor([1, 2, 3, 4])

    def losses(labels):
        return lambda logits: functional.cross_entropy(logits, labels, reduction="none")

    values, found = gradients(net, x, [layer.name, layer.activated], losses(y))
    assert found[layer.name].shape == (4, *layer.output_shape)
    assert found[layer.name].abs().sum() > 0
    torch.testing.assert_close(values[layer.name], net.activations(x, [layer.name])[layer.name])
    for i in range(4):
        _, alone = gradients(net, x[i : i + 1], [layer.name], losses(y[i : i + 1]))
        torch.testing.assert_close(found[layer.name][i], alone[layer.name][0], rtol=1e-4, atol=1e-7)


def test_gradients_work_on_frozen_weights(network_of, images):
    _, model = network_of("lenet5")
    net = load(model).requires_grad_(False)
    x = torch.from_numpy(images(model, 2))
    _, found = gradients(net, x, ["conv1"], lambda logits: logits.sum(dim=1))
    assert found["conv1"].abs().sum() > 0


@pytest.mark.parametrize("memory", [10**9, 1])
def test_prefix_cache_holds_or_computes_the_same(network_of, images, memory):
    _, model = network_of("densenet")
    net = load(model)
    x = images(model, 10)
    split = Split((x * 255).astype(np.uint8), np.zeros(10, np.int64))
    names = ["block2.0.conv", model.layer("fc").input]
    cache = PrefixCache(net, names, split, memory=memory, batch_size=4)
    assert cache.held == (memory > 1)
    expected = net.activations(torch.from_numpy(split.images()), names)
    for start, stop in ((0, 3), (3, 10)):
        got = cache[slice(start, stop)]
        for name in names:
            torch.testing.assert_close(got[name], expected[name][start:stop], rtol=1e-4, atol=1e-5)


def test_a_suffix_can_be_trained_from_the_cache(network_of, images):
    _, model = network_of("lenet5")
    net = load(model)
    cut = model.layer("fc3").input
    cache = PrefixCache(net, [cut], images(model, 6))
    net.run(cache[slice(0, 6)], [model.output_name])[model.output_name].sum().backward()
    assert net.tensors["fc3.weight"].grad.abs().sum() > 0
    assert net.tensors["fc2.weight"].grad is None


def test_predict_takes_splits_and_odd_batches(network_of, images):
    _, model = network_of("lenet5")
    net = load(model)
    split = Split((images(model, 7) * 255).astype(np.uint8), np.zeros(7, np.int64))
    logits = predict(net, split, batch_size=3)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, model.predict(split), atol=1e-4)
