"""Each operator alone between the images and a dense layer: agreement and gradients."""

import numpy as np
import onnx
import pytest
import torch
from modelfix_core.errors import ModelfixError
from modelfix_core.model import Model
from modelfix_core.torch import load
from onnx import TensorProto, helper, numpy_helper

I64 = np.int64
F32 = np.float32
RNG = np.random.default_rng(0)
CHANNELWISE = RNG.normal(size=(3, 1, 1)).astype(F32)

# name: (nodes from "x" to "v" as (operator, inputs, attributes), constants)
CASES = {
    "Relu": ([("Relu", ["x"], {})], {}),
    "LeakyRelu": ([("LeakyRelu", ["x"], {"alpha": 0.2})], {}),
    "Elu": ([("Elu", ["x"], {})], {}),
    "PRelu": (
        [("Sub", ["x", "c"], {}), ("PRelu", ["v0", "s"], {})],
        {"s": np.full((3, 1, 1), 0.3, F32), "c": np.float32(0.5)},
    ),
    "Sigmoid": ([("Sigmoid", ["x"], {})], {}),
    "Tanh": ([("Tanh", ["x"], {})], {}),
    "Softmax": ([("Softmax", ["x"], {"axis": 1})], {}),
    "Add": ([("Add", ["x", "c"], {})], {"c": CHANNELWISE}),
    "Sub": ([("Sub", ["c", "x"], {})], {"c": CHANNELWISE}),
    "Mul": ([("Mul", ["x", "c"], {})], {"c": CHANNELWISE}),
    "Div": ([("Div", ["x", "c"], {})], {"c": CHANNELWISE}),
    "Neg": ([("Neg", ["x"], {})], {}),
    "Abs": ([("Abs", ["x"], {})], {}),
    "Min": ([("Min", ["x", "c"], {})], {"c": np.float32(0.5)}),
    "Max": ([("Max", ["x", "c", "d"], {})], {"c": np.float32(0.2), "d": CHANNELWISE}),
    "ReduceSum": ([("ReduceSum", ["x", "a"], {"keepdims": 1})], {"a": np.array([1], I64)}),
    "ReduceMax": ([("ReduceMax", ["x"], {"axes": [2, 3], "keepdims": 0})], {}),
    "ReduceMean": ([("ReduceMean", ["x"], {"axes": [-1]})], {}),
    "Clip": ([("Clip", ["x", "lo", "hi"], {})], {"lo": np.float32(0.1), "hi": np.float32(0.8)}),
    "Clip without minimum": ([("Clip", ["x", "", "hi"], {})], {"hi": np.float32(0.8)}),
    "Concat": (
        [("Neg", ["x"], {}), ("Concat", ["x", "v0"], {"axis": 1})],
        {},
    ),
    "Gather": ([("Gather", ["x", "i"], {"axis": 1})], {"i": np.array([2, 0], I64)}),
    "Gather one": ([("Gather", ["x", "i"], {"axis": 2})], {"i": np.array(1, I64)}),
    "Gather of a negative axis": ([("Gather", ["x", "i"], {"axis": -1})], {"i": np.array(1, I64)}),
    "Flatten": ([("Flatten", ["x"], {})], {}),
    "Reshape": ([("Reshape", ["x", "s"], {})], {"s": np.array([0, -1, 2], I64)}),
    "Transpose": ([("Transpose", ["x"], {"perm": [0, 2, 3, 1]})], {}),
    "Identity": ([("Identity", ["x"], {})], {}),
    "Dropout": ([("Dropout", ["x", "r"], {})], {"r": np.float32(0.4)}),
    "GlobalAveragePool": ([("GlobalAveragePool", ["x"], {})], {}),
    "AveragePool": ([("AveragePool", ["x"], {"kernel_shape": [2, 2], "strides": [2, 2]})], {}),
    "AveragePool padded": (
        [("AveragePool", ["x"], {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"})],
        {},
    ),
    "MaxPool": ([("MaxPool", ["x"], {"kernel_shape": [2, 2], "strides": [1, 2]})], {}),
    "MaxPool side by side": (
        [("MaxPool", ["x"], {"kernel_shape": [2, 3], "strides": [2, 3]})],
        {},
    ),
    "MaxPool padded": (
        [("MaxPool", ["x"], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]})],
        {},
    ),
    "Pad": ([("Pad", ["x", "p"], {})], {"p": np.array([0, 0, 1, 2, 0, 0, 1, 0], I64)}),
    "Where": (
        [("Greater", ["x", "c"], {}), ("Neg", ["x"], {}), ("Where", ["v0", "x", "v1"], {})],
        {"c": np.float32(0.5)},
    ),
    "Unsqueeze and Squeeze": (
        [("Unsqueeze", ["x", "a"], {}), ("Squeeze", ["v0", "a"], {})],
        {"a": np.array([2], I64)},
    ),
    "Slice backwards": (
        [("Slice", ["x", "s", "e", "a", "t"], {})],
        {
            **{"s": np.array([-1], I64), "e": np.array([-1000], I64)},
            **{"a": np.array([-1], I64), "t": np.array([-2], I64)},
        },
    ),
    "Slice": (
        [("Slice", ["x", "s", "e", "a"], {})],
        {"s": np.array([1], I64), "e": np.array([1000], I64), "a": np.array([2], I64)},
    ),
    "Cast": (
        [("Greater", ["x", "c"], {}), ("Cast", ["v0"], {"to": 1}), ("Mul", ["v1", "x"], {})],
        {"c": np.float32(0.5)},
    ),
    "Constant": (
        [
            ("Constant", [], {"value": numpy_helper.from_array(CHANNELWISE, "")}),
            ("Mul", ["v0", "x"], {}),
        ],
        {},
    ),
    "Constant float": ([("Constant", [], {"value_float": 2.5}), ("Mul", ["x", "v0"], {})], {}),
    "MatMul": ([("MatMul", ["x", "m"], {})], {"m": RNG.normal(size=(4, 5)).astype(F32)}),
    "MatMul from the left": (
        [("MatMul", ["m", "x"], {})],
        {"m": RNG.normal(size=(5, 4)).astype(F32)},
    ),
    "MatMul with a shifting Add": (
        [("MatMul", ["x", "m"], {}), ("Add", ["v0", "c"], {})],
        {"m": RNG.normal(size=(4, 5)).astype(F32), "c": RNG.normal(size=(4, 1)).astype(F32)},
    ),
    "Gemm of another form": (
        [("Flatten", ["x"], {}), ("Gemm", ["v0", "m", "b"], {"alpha": 0.5, "beta": 2.0})],
        {"m": RNG.normal(size=(48, 6)).astype(F32), "b": RNG.normal(size=(1, 6)).astype(F32)},
    ),
    "Conv": (
        [("Conv", ["x", "k", "b"], {"pads": [1, 1, 1, 1], "strides": [2, 2]})],
        {"k": RNG.normal(size=(5, 3, 3, 3)).astype(F32), "b": RNG.normal(size=5).astype(F32)},
    ),
    "Conv with uneven pads": (
        [("Conv", ["x", "k"], {"pads": [0, 0, 1, 1]})],
        {"k": RNG.normal(size=(5, 3, 2, 2)).astype(F32)},
    ),
    "Conv same and grouped": (
        [("Conv", ["x", "k"], {"auto_pad": "SAME_LOWER", "group": 3})],
        {"k": RNG.normal(size=(6, 1, 2, 2)).astype(F32)},
    ),
    "BatchNormalization with training_mode": (
        [("BatchNormalization", ["x", "g", "b", "m", "s"], {"training_mode": 0, "epsilon": 1e-3})],
        {n: RNG.uniform(0.5, 1.5, 3).astype(F32) for n in "gbms"},
    ),
}


def _model(nodes, constants, opset=17):
    made = []
    for index, (kind, inputs, attributes) in enumerate(nodes):
        name = "v" if index == len(nodes) - 1 else f"v{index}"
        made.append(helper.make_node(kind, inputs, [name], name=f"n{index}", **attributes))
    graph = helper.make_graph(
        [*made, helper.make_node("Flatten", ["v"], ["f"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("f", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    width = inferred.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    dense = np.random.default_rng(1).normal(size=(4, width)).astype(F32)
    proto.graph.initializer.append(numpy_helper.from_array(dense, "dense"))
    proto.graph.node.append(helper.make_node("Gemm", ["f", "dense"], ["logits"], transB=1))
    proto.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])
    )
    return Model(proto)


@pytest.mark.parametrize("case", CASES)
def test_agrees_and_lets_gradients_through(case):
    model = _model(*CASES[case])
    net = load(model)
    x = np.random.default_rng(2).random((5, 3, 4, 4), dtype=F32)
    images = torch.from_numpy(x).requires_grad_()
    logits = net(images)
    np.testing.assert_allclose(logits.detach().numpy(), model.predict(x), atol=1e-4)
    logits.square().sum().backward()
    assert torch.isfinite(images.grad).all()
    assert images.grad.abs().sum() > 0
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("shape", [(5, 3, 8, 9), (2, 1, 7, 11), (1, 4, 2, 3), (40, 3, 7, 11)])
def test_windows_side_by_side_are_pooled_as_torch_does(shape):
    from modelfix_core.torch.operators import MaxPool

    pool, torchs = MaxPool(2, 3), torch.nn.MaxPool2d((2, 3))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).round()
    x[0, 0, 0, 0] = torch.nan
    torch.testing.assert_close(pool(x), torchs(x), rtol=0, atol=0, equal_nan=True)
    inputs = [x.nan_to_num().requires_grad_() for _ in range(2)]
    for operator, given in zip((pool, torchs), inputs, strict=True):
        operator(given).square().sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)  # on ties too
    with_nan = x.clone().requires_grad_()
    assert torch.equal(pool(with_nan).isnan(), torchs(with_nan).isnan())


def test_pooling_of_many_images_is_differentiated_twice_and_by_candidate():
    from modelfix_core.torch.operators import MaxPool

    pools = MaxPool(2, 2), torch.nn.MaxPool2d(2)
    x = torch.randn((3, 20, 2, 6, 6), generator=torch.Generator().manual_seed(0))
    second, by_candidate = [], []
    for pool in pools:
        given = x[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(pool(given).pow(3).sum(), given, create_graph=True)
        second.append(torch.autograd.grad(slope.square().sum(), given)[0])

        def loss(given, pool=pool):
            return pool(given).square().sum()

        by_candidate.append(torch.func.vmap(torch.func.grad(loss))(x))
    assert torch.equal(*second)
    assert torch.equal(*by_candidate)


def test_constants_follow_the_network_and_are_not_trained():
    net = load(_model(*CASES["Add"]))
    assert not net.tensors["c"].requires_grad
    assert net.tensors["dense"].requires_grad
    net.set_weights({"c": CHANNELWISE + 1})
    assert set(net.weights()) == {"c"}


def test_batchnorm_keeps_the_momentum_of_onnx():
    nodes = [("BatchNormalization", ["x", "g", "b", "m", "s"], {"momentum": 0.75})]
    constants = {n: np.ones(3, F32) for n in "gbms"}
    net = load(_model(nodes, constants))
    net.train()
    x = torch.rand(6, 3, 4, 4)
    net(x)
    expected = 0.75 * 1 + 0.25 * x.mean((0, 2, 3))
    torch.testing.assert_close(torch.from_numpy(net.weights()["m"]), expected)


def test_a_convolution_with_computed_weights_is_refused():
    nodes = [("Abs", ["k"], {}), ("Conv", ["x", "v0"], {})]
    with pytest.raises(ModelfixError, match=r"'Conv' \(node 'n1'\).*'v0' is not a constant"):
        load(_model(nodes, {"k": np.ones((2, 3, 2, 2), F32)}))


def test_a_random_operator_is_refused():
    with pytest.raises(ModelfixError, match="Bernoulli"):
        load(_model([("Bernoulli", ["x"], {"dtype": 1, "seed": 1.0})], {}))


def test_an_operator_unknown_to_the_converter_is_named(monkeypatch):
    from modelfix_core.torch import operators

    def unknown(*_arguments, **_options):
        raise NotImplementedError("Conversion not implemented for op_type=Tanh.")

    monkeypatch.setattr(operators, "convert_operations", unknown)
    with pytest.raises(ModelfixError, match=r"model: operator 'Tanh' \(node 'n0'\)"):
        load(_model(*CASES["Tanh"]))
