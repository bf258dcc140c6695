import numpy as np
import pytest
from modelfix_core import Model, ModelfixError
from onnx import TensorProto, helper


def dense_nodes(op="MatMul", last="out"):
    return [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node(op, ["flat", "w"], ["z"]),
        helper.make_node("Add", ["z", "b"], [last]),
    ]


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(size=(16, 3)).astype(np.float32),
        "b": rng.normal(size=3).astype(np.float32),
    }


def logits(x, weights):
    return x.reshape(len(x), -1) @ weights["w"] + weights["b"]


def test_matmul_and_add_become_one_gemm(make_proto, weights, x):
    model = Model(make_proto(dense_nodes(), weights))
    (layer,) = model.layers()
    assert (layer.kind, layer.weight, layer.bias) == ("dense", "w", "b")
    assert model.weights["w"].shape == (3, 16)
    np.testing.assert_array_equal(model.weights["w"].T, weights["w"])
    np.testing.assert_allclose(model.predict(x), logits(x, weights), rtol=1e-4)
    assert any("Gemm" in note for note in model.notes)


def test_gemm_with_untransposed_weight(make_proto, weights, x):
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["out"]),
    ]
    model = Model(make_proto(nodes, weights))
    assert model.weights["w"].shape == (3, 16)
    np.testing.assert_allclose(model.predict(x), logits(x, weights), rtol=1e-4)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_trailing_softmax_is_cut_and_said(make_proto, weights, x, op):
    nodes = [*dense_nodes(last="logits"), helper.make_node(op, ["logits"], ["out"], axis=1)]
    model = Model(make_proto(nodes, weights))
    np.testing.assert_allclose(model.predict(x), logits(x, weights), rtol=1e-4)
    assert any(op in note for note in model.notes)


def test_fixed_batch_becomes_dynamic(make_proto, weights, x):
    shape = np.array([4, 16], dtype=np.int64)
    nodes = [helper.make_node("Reshape", ["image", "shape"], ["flat"]), *dense_nodes()[1:]]
    model = Model(make_proto(nodes, {**weights, "shape": shape}, batch=4))
    np.testing.assert_allclose(model.predict(x), logits(x, weights), rtol=1e-4)
    assert any("batch size 4" in note for note in model.notes)


def test_old_opset_is_raised(make_proto, weights, x):
    model = Model(make_proto(dense_nodes(), weights, opset=11))
    assert any("opset 11" in note for note in model.notes)
    np.testing.assert_allclose(model.predict(x), logits(x, weights), rtol=1e-4)


def test_a_profiled_model_is_left_alone(make_proto, weights):
    once = Model(make_proto(dense_nodes(), weights))
    twice = Model(once.proto())
    assert twice.notes == []
    assert twice.hash == once.hash


def test_wrong_inputs_are_refused(make_proto, weights):
    proto = make_proto(dense_nodes(), weights)
    proto.graph.input.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, ["N", 2]))
    with pytest.raises(ModelfixError, match="2 inputs"):
        Model(proto)
    with pytest.raises(ModelfixError, match=r"expected float32 \[N, C, H, W\]"):
        Model(make_proto(dense_nodes(), weights, shape=(16,)))


def test_output_that_is_no_vector_of_logits_is_refused(make_proto):
    with pytest.raises(ModelfixError, match=r"expected one tensor of logits"):
        Model(make_proto([helper.make_node("Relu", ["image"], ["out"])], {}))
