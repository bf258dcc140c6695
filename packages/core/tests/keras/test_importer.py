import numpy as np
import pytest
from modelfix_core import ModelfixError
from modelfix_core.keras import export, load, predict


def test_torch_like_graphs_compute_the_same(torch_like, images):
    net, x = load(torch_like), images(torch_like)
    expected = torch_like.predict(x)
    found = predict(net, x, batch_size=7)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))


def test_every_initializer_is_a_live_variable_and_the_trainable_count_is_the_files(torch_like):
    net = load(torch_like)
    assert set(net.tensors) == set(torch_like.weights)
    trained = [name for layer in torch_like.layers() for name in layer.parameters]
    expected = sum(torch_like.weights[name].size for name in trained)
    assert sum(int(np.prod(v.shape)) for v in net.keras.trainable_variables) == expected
    assert net.weights() == {}


def test_torch_like_graphs_come_back_bit_equal(torch_like, images):
    again = export(load(torch_like).keras)
    assert again.weights.keys() == torch_like.weights.keys()
    for name, array in torch_like.weights.items():
        assert again.weights[name].tobytes() == array.tobytes()
    operators = [node.op_type for node in again.proto().graph.node]
    assert "Transpose" not in operators
    x = images(torch_like)
    np.testing.assert_allclose(again.predict(x), torch_like.predict(x), atol=1e-5)


def finish(g, features):
    g.node("Flatten")
    g.fc("out", features, 3)
    return g.model(3)


BODIES = {
    "grouped": lambda g: g.conv("c", 4, 6, 3, groups=2),
    "depthwise": lambda g: g.conv("c", 4, 8, 3, groups=4, pads=[1, 1, 1, 1]),
    "dilated": lambda g: g.conv("c", 4, 4, 3, dilations=[2, 2]),
    "uneven pads and strides": lambda g: g.conv("c", 4, 4, 3, pads=[0, 1, 2, 1], strides=[2, 1]),
    "same upper": lambda g: g.conv("c", 4, 4, 3, auto_pad="SAME_UPPER", strides=[2, 2]),
    "same lower": lambda g: g.conv("c", 4, 4, 4, auto_pad="SAME_LOWER"),
    "leaky relu": lambda g: g.node("LeakyRelu", alpha=0.2),
    "elu": lambda g: g.node("Elu", alpha=0.7),
    "sigmoid": lambda g: g.node("Sigmoid"),
    "tanh": lambda g: g.node("Tanh"),
    "relu6": lambda g: g.node("Clip", g.const(0), g.const(0.6)),
    "clip": lambda g: g.node("Clip", g.const(0.2), g.const(0.6)),
    "clip above": lambda g: g.node("Clip", "", g.const(0.6)),
    "padded max pool": lambda g: g.pool(size=3, strides=[2, 2], pads=[1, 1, 1, 1]),
    "ceiled max pool": lambda g: g.pool(size=2, strides=[3, 3], ceil_mode=1),
    "average pool": lambda g: g.pool("AveragePool", size=3),
    "padded average pool": lambda g: g.pool(
        "AveragePool", size=3, strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "same average pool": lambda g: g.pool("AveragePool", size=3, strides=[1, 1], pads=[1, 1, 1, 1]),
    "global average pool": lambda g: g.node("GlobalAveragePool"),
    "reduce mean": lambda g: g.node("ReduceMean", axes=[-2, -1], keepdims=1),
    "identity": lambda g: g.node("Identity"),
    "pad": lambda g: g.node("Pad", g.const([0, 0, 1, 0, 0, 0, 0, 2], np.int64), g.const(0.5)),
    "channel pad": lambda g: g.node("Pad", g.const([0, 1, 0, 0, 0, 2, 0, 0], np.int64)),
    "softmax": lambda g: g.node("Softmax", axis=1),
    "divide": lambda g: g.node("Div", g.weight("scale", 1, 4, 1, 1, low=1)),
    "subtract from": lambda g: g.node("Sub", g.x, start=g.weight("mean", 4, 1, 1)),
    "multiply by a number": lambda g: g.node("Mul", g.const(2)),
    "single concat": lambda g: g.node("Concat", axis=1),
    "channels last and back": lambda g: (
        g.node("Transpose", perm=[0, 2, 3, 1]),
        g.node("Relu"),
        g.node("Transpose", perm=[0, 3, 1, 2]),
        g.conv("c", 4, 4, 3),
    ),
    "axes exchanged": lambda g: g.node("Transpose", perm=[0, 1, 3, 2]),
}


@pytest.mark.parametrize("body", BODIES)
def test_operator(graph, images, body):
    """Behind a convolution, and back to ONNX."""
    g = graph((3, 8, 7))
    g.conv("first", 3, 4, 1)
    BODIES[body](g)
    shape = output_shape(g)
    model = finish(g, int(np.prod(shape)))
    check_both_ways(model, images(model))


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div"])
def test_operator_of_two_tensors(graph, images, operator):
    g = graph((3, 8, 7))
    g.node(operator, g.node("Sigmoid"), start="input")
    model = finish(g, 3 * 8 * 7)
    check_both_ways(model, images(model))


def output_shape(g):
    import onnx
    from onnx import helper

    value = helper.make_tensor_value_info("input", 1, ["N", *g.shape])
    weights = [onnx.numpy_helper.from_array(a, n) for n, a in g.initializers.items()]
    out = [onnx.ValueInfoProto(name=g.x)]
    body = helper.make_graph(g.nodes, "g", [value], out, weights)
    proto = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)])
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph.output[0]
    return [d.dim_value for d in inferred.type.tensor_type.shape.dim[1:]]


def check_both_ways(model, x):
    net = load(model)
    np.testing.assert_allclose(net.keras(x, training=False), model.predict(x), atol=1e-5)
    again = export(net.keras)
    np.testing.assert_allclose(again.predict(x), model.predict(x), atol=1e-5)


def test_a_flattening_whose_shape_is_computed(graph, images):
    g = graph((3, 4, 4))
    source = g.conv("c", 3, 4, 1)
    g.node("Shape")
    g.node("Gather", g.const(0, np.int64), axis=0)
    count = g.node("Unsqueeze", g.const([0], np.int64))
    target = g.node("Concat", g.const([-1], np.int64), start=count, axis=0)
    g.node("Reshape", target, start=source)
    g.fc("out", 64, 3)
    model = g.model(3)
    check_both_ways(model, images(model))


def test_settings_computed_from_constants(graph, images):
    g = graph((3, 4, 4))
    source = g.conv("c", 3, 4, 1)
    limit = g.node("Cast", start=g.const(1, np.int64), to=1)
    g.node("Clip", g.const(0), limit, start=source)
    model = finish(g, 64)
    check_both_ways(model, images(model))


def test_an_unknown_operator_is_named(graph):
    g = graph((3, 4, 4))
    g.node("Erf", name="odd_one")
    model = finish(g, 48)
    with pytest.raises(ModelfixError, match=r"Erf.*'odd_one'"):
        load(model)


def test_a_way_of_use_that_keras_lacks_is_named(graph):
    g = graph((3, 8, 8))
    g.node("Pad", g.const([0, 0, 1, 1, 0, 0, 1, 1], np.int64), mode="reflect", name="mirror")
    model = finish(g, 300)
    with pytest.raises(ModelfixError, match=r"'mirror'.*constant"):
        load(model)


def test_a_disagreement_names_the_first_differing_layer(built, monkeypatch):
    from modelfix_core.keras import net as module

    real = module.import_model

    def damaged(model):
        imported = real(model)
        imported.tensors["fc1.bias"].assign_add(np.ones(120, np.float32))
        return imported

    monkeypatch.setattr(module, "import_model", damaged)
    with pytest.raises(ModelfixError, match="first at layer 'fc1'"):
        load(built["lenet5"])
