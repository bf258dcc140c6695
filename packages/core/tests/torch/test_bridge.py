import copy

import numpy as np
import onnx
import pytest
import torch
from modelfix_core.errors import ModelfixError
from modelfix_core.model import Model
from modelfix_core.torch import load, predict
from torch.nn import functional


def test_round_trip_gives_the_same_logits(network, images):
    module, model = network
    net = load(model)
    x = images(model, 40)
    expected = predict(module, x)
    np.testing.assert_allclose(model.predict(x), expected, atol=1e-4)
    np.testing.assert_allclose(predict(net, x), expected, atol=1e-4)
    np.testing.assert_array_equal(predict(net, x).argmax(1), model.predict(x).argmax(1))
    np.testing.assert_array_equal(predict(net, x).argmax(1), expected.argmax(1))


def test_names_are_those_of_the_state_dict(network):
    module, model = network
    names = {n for n in module.state_dict() if not n.endswith("num_batches_tracked")}
    assert set(model.weights) == names
    assert set(load(model).tensors) == names


def test_loading_leaves_the_global_generator_alone(network):
    _, model = network
    before = torch.random.get_rng_state()
    load(model)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_weight_counts_once(network):
    module, model = network
    net = load(model)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in module.parameters())
    assert set(net.parameter_names) == {n for n, _ in module.named_parameters()}


def test_gradients_reach_images_and_all_weights(network, images):
    _, model = network
    net = load(model)
    x = torch.from_numpy(images(model, 8)).requires_grad_()
    functional.cross_entropy(net(x), torch.arange(8)).backward()
    assert x.grad.abs().sum() > 0
    for name, parameter in net.tensors.items():
        if isinstance(parameter, torch.nn.Parameter):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_pooling_before_rectifying_changes_no_bit(network_of, images):
    _, model = network_of("lenet5")
    net = load(model)
    x = torch.from_numpy(images(model, 20)).requires_grad_()
    rectified = [step.inputs[0] for step in net.steps if step.kind == "MaxPool"]
    kinds = []
    for operator in net.operators:
        operator.register_forward_hook(lambda module, _, __: kinds.append(type(module).__name__))
    fast = net(x)
    assert kinds.index("ReLU") > kinds.index("MaxPool")
    kinds.clear()
    # Rectified values that are asked for are made, and in the graph's order.
    values = net.run({model.input_name: x}, [model.output_name, *rectified])
    assert kinds.index("ReLU") < kinds.index("MaxPool")
    assert rectified
    assert all((values[name] >= 0).all() for name in rectified)
    plain = values[model.output_name]
    assert torch.equal(fast, plain)
    seed = torch.randn(fast.shape, generator=torch.Generator().manual_seed(0))
    found, expected = (
        torch.autograd.grad(logits, [x, *net.parameters()], seed) for logits in (fast, plain)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_training_step_equals_the_modules(network, images):
    """The same weights and BatchNorm statistics as the source after a step in training mode."""
    module, model = network
    module, net = copy.deepcopy(module), load(model)
    x = torch.from_numpy(images(model, 16))
    for network_ in (module, net):
        network_.train()
        for part in network_.modules():
            if isinstance(part, torch.nn.Dropout):
                part.eval()
        optimiser = torch.optim.SGD(network_.parameters(), lr=0.1)
        functional.cross_entropy(network_(x), torch.arange(16) % 10).backward()
        optimiser.step()
    changed = net.weights()
    expected = module.state_dict()
    statistics = {n for n in model.weights if "running" in n}
    assert statistics <= set(changed)
    for name, value in changed.items():
        np.testing.assert_allclose(value, expected[name].numpy(), rtol=1e-3, atol=1e-5)
    fixed = model.with_weights(changed)
    np.testing.assert_allclose(fixed.predict(x.numpy()), predict(net, x), atol=1e-4)


def test_dropout_acts_in_training_only(network_of, images):
    _, model = network_of("vgg")
    assert any(node.op_type == "Dropout" for node in model.proto().graph.node)
    net = load(model)
    x = torch.from_numpy(images(model, 4))
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))


def test_only_changed_weights_are_given_and_the_rest_stay_bit_equal(network):
    _, model = network
    net = load(model)
    assert net.weights() == {}
    layer = model.layers()[-1]
    value = model.weights[layer.weight] + 1
    net.set_weights({layer.weight: value})
    assert set(net.weights()) == {layer.weight}
    fixed = model.with_weights(net.weights())
    for name, array in model.weights.items():
        expected = value if name == layer.weight else array
        assert fixed.weights[name].tobytes() == expected.tobytes()


def test_reset_restores_everything(network, images):
    _, model = network
    net = load(model)
    x = images(model, 6)
    before = predict(net, x)
    net.set_weights({name: array + 0.5 for name, array in model.weights.items()})
    assert set(net.weights()) == set(model.weights)
    assert not np.allclose(predict(net, x), before)
    net.reset()
    assert net.weights() == {}
    np.testing.assert_array_equal(predict(net, x), before)


def test_a_negative_zero_is_a_change(network_of):
    _, model = network_of("lenet5")
    net = load(model)
    net.set_weights({"fc3.bias": np.zeros(10)})
    zeroed = load(model.with_weights(net.weights()))
    zeroed.set_weights({"fc3.bias": -np.zeros(10)})
    assert set(zeroed.weights()) == {"fc3.bias"}


def test_refuses_unknown_weights_and_wrong_shapes(network_of):
    net = load(network_of("lenet5")[1])
    with pytest.raises(ModelfixError, match="no weight named 'fc9'"):
        net.set_weights({"fc9": np.zeros(3)})
    with pytest.raises(ModelfixError, match=r"\[10, 84\].*\[84, 10\]"):
        net.set_weights({"fc3.weight": np.zeros((84, 10))})


def test_predict_leaves_the_modes_alone(network_of, images):
    _, model = network_of("resnet8")
    net = load(model)
    net.train()
    frozen = [m for m in net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    frozen[0].eval()
    predict(net, images(model, 4))
    assert net.training
    assert [m.training for m in frozen] == [False] + [True] * (len(frozen) - 1)


def test_a_copy_is_independent(network_of, images):
    _, model = network_of("resnet8")
    net = load(model)
    twin = copy.deepcopy(net)
    twin.set_weights({name: array * 2 for name, array in model.weights.items()})
    assert net.weights() == {}
    assert len(twin.weights()) > 20


def test_per_sample_gradients_by_vmap(network_of, images):
    _, model = network_of("lenet5")
    net = load(model)
    x, y = torch.from_numpy(images(model, 3)), torch.tensor([1, 2, 3])
    parameters = dict(net.named_parameters())
    buffers = dict(net.named_buffers())

    def loss(parameters, image, label):
        logits = torch.func.functional_call(net, (parameters, buffers), (image[None],))
        return functional.cross_entropy(logits, label[None])

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, y)
    name = net.parameter_names["conv1.weight"]
    for i in range(3):
        (expected,) = torch.autograd.grad(
            functional.cross_entropy(net(x[i : i + 1]), y[i : i + 1]), net.tensors["conv1.weight"]
        )
        torch.testing.assert_close(per_sample[name][i], expected, rtol=1e-4, atol=1e-6)


def test_disagreement_names_the_first_differing_layer(network_of, monkeypatch):
    from modelfix_core.torch import operators

    _, model = network_of("lenet5")
    convert = operators.convert

    def wrong(node, constants, opset):
        operator = convert(node, constants, opset)
        if node.op_type == "MaxPool":
            operator.window = (1, 1)
        if node.input[0] == model.layer("fc2").input:
            return torch.nn.Sequential(Doubled(), operator)
        return operator

    class Doubled(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    monkeypatch.setattr(operators, "convert", wrong)
    with pytest.raises(ModelfixError, match="MaxPool"):
        load(model)
    monkeypatch.setattr(operators, "convert", convert)

    def wrong_fc2(node, constants, opset):
        operator = convert(node, constants, opset)
        mine = node.input[0] == model.layer("fc2").input
        return torch.nn.Sequential(Doubled(), operator) if mine else operator

    monkeypatch.setattr(operators, "convert", wrong_fc2)
    with pytest.raises(ModelfixError, match="first at layer 'fc2'"):
        load(model)


def test_weights_shared_by_two_nodes_are_one_parameter():
    rng = np.random.default_rng(0)
    node = onnx.helper.make_node
    weights = {
        "w": rng.normal(size=(12, 12)).astype(np.float32),
        "b": rng.normal(size=12).astype(np.float32),
        "c": rng.normal(size=(2, 12)).astype(np.float32),
    }
    graph = onnx.helper.make_graph(
        [
            node("Flatten", ["x"], ["f"]),
            node("Gemm", ["f", "w", "b"], ["h"], transB=1),
            node("Relu", ["h"], ["r"]),
            node("Gemm", ["r", "w"], ["h2"], transB=1),
            node("Gemm", ["h2", "c"], ["logits"], transB=1),
        ],
        "shared",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 2, 2])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 2])],
        [onnx.numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model = Model(onnx.helper.make_model(graph, opset_imports=opset))
    net = load(model)
    assert sum(p.numel() for p in net.parameters()) == sum(a.size for a in weights.values())
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.from_numpy(rng.random((4, 3, 2, 2), dtype=np.float32))
    net(x).square().sum().backward()
    optimiser.step()
    changed = net.weights()
    assert set(changed) == {"w", "b", "c"}
    np.testing.assert_allclose(
        model.with_weights(changed).predict(x.numpy()), predict(net, x), rtol=1e-4, atol=1e-4
    )
