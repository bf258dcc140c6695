"""Foreign ONNX models become models of the profile that answer as they do."""

import numpy as np
import onnx
import onnxruntime
import pytest
from modelfix_core import Dataset, Model, ModelfixError
from modelfix_core.foreign import Conventions, adopt, kind_of, read, read_onnx
from onnx import TensorProto, helper, numpy_helper

SHAPE = (3, 6, 5)
CLASSES = 4


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (80, *SHAPE), dtype=np.uint8)
    y = rng.integers(0, CLASSES, 80)
    return Dataset.from_arrays(x, y)


def weights(features, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "k": rng.normal(0, 0.3, (features, CLASSES)).astype(np.float32),
        "b": rng.normal(0, 0.3, (1, CLASSES)).astype(np.float32),
    }


def save(path, nodes, tensors, taken, outputs, *, opset=17, batch="N", domains=()):
    """Write a graph from input ``x`` of shape `taken`."""
    graph = helper.make_graph(
        nodes, "test", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *taken])],
        outputs, [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def scores(name="out", batch="N"):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, CLASSES])


def dense(last="out", first="x"):
    return [
        helper.make_node("Flatten", [first], ["flat"]),
        helper.make_node("MatMul", ["flat", "k"], ["z"]),
        helper.make_node("Add", ["z", "b"], [last]),
    ]


def adopted(path, dataset, **conventions):
    asked = Conventions(**conventions)
    return adopt(read(path, None, SHAPE, asked.layout), dataset, asked)


def run(path, x, output=0):
    return onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[output]


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.fixture
def x(dataset):
    return dataset["test"].images()


def test_normalisation_that_is_asked_for_lies_inside_the_graph(tmp_path, dataset, x):
    path = save(tmp_path / "m.onnx", dense(), weights(90), SHAPE, [scores()])
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    model = adopted(path, dataset, mean=mean, std=std)
    taken = (x - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
    np.testing.assert_allclose(model.predict(x), run(path, taken.astype(np.float32)), atol=1e-5)
    scaled = adopted(path, dataset, scale=255, mean=[100.0], std=[50.0])
    taken = ((x * 255 - 100) / 50).astype(np.float32)
    np.testing.assert_allclose(scaled.predict(x), run(path, taken), atol=1e-4)


@pytest.mark.parametrize("asked", [None, "nhwc"])
def test_images_with_channels_last(tmp_path, dataset, x, asked):
    path = save(tmp_path / "m.onnx", dense(), weights(90), (6, 5, 3), [scores()])
    model = adopted(path, dataset, layout=asked)
    expected = run(path, np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(model.predict(x), expected, atol=1e-5)
    assert ("transposition" in " ".join(model.notes)) == (asked is None)


def test_transpositions_there_and_back_are_taken_out(tmp_path, dataset):
    back = helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])
    path = save(tmp_path / "m.onnx", [back, *dense(first="t")], weights(90), (6, 5, 3), [scores()])
    model = adopted(path, dataset)
    assert [node.op_type for node in model.proto().graph.node] == ["Flatten", "Gemm"]


def test_flat_images(tmp_path, dataset, x):
    path = save(tmp_path / "m.onnx", dense(), weights(90), (90,), [scores()])
    model = adopted(path, dataset)
    np.testing.assert_allclose(model.predict(x), run(path, x.reshape(len(x), -1)), atol=1e-5)
    assert [node.op_type for node in model.proto().graph.node] == ["Flatten", "Gemm"]
    turned = adopted(path, dataset, layout="nhwc")
    flat = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(len(x), -1)
    np.testing.assert_allclose(turned.predict(x), run(path, flat), atol=1e-5)


def test_open_height_and_width_become_those_of_the_images(tmp_path, dataset):
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), *dense(first="p")]
    path = save(tmp_path / "m.onnx", nodes, weights(3), (3, None, None), [scores()])
    assert adopted(path, dataset).input_shape == SHAPE


@pytest.mark.parametrize("constant", [True, False])
def test_fixed_batch_and_old_opset(tmp_path, dataset, x, constant):
    target = np.array([8, 90], np.int64)
    first, tensors = [], weights(90)
    if constant:
        value = numpy_helper.from_array(target)
        first = [helper.make_node("Constant", [], ["shape"], value=value)]
    else:
        tensors["shape"] = target
    reshape = helper.make_node("Reshape", ["x", "shape"], ["flat"])
    path = save(
        tmp_path / "m.onnx", [*first, reshape, *dense()[1:]], tensors, SHAPE, [scores(batch=8)],
        opset=9, batch=8,
    )  # fmt: skip
    model = adopted(path, dataset)
    assert {"the fixed batch size 8 was made dynamic", "opset 9 raised to 17"} <= set(model.notes)
    np.testing.assert_allclose(model.predict(x)[:8], run(path, x[:8]), atol=1e-5)
    assert len(model.predict(x)) == len(x) != 8


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_a_softmax_is_cut(tmp_path, dataset, x, op):
    nodes = [*dense("logits"), helper.make_node(op, ["logits"], ["out"], axis=1)]
    path = save(tmp_path / "m.onnx", nodes, weights(90), SHAPE, [scores()])
    model = adopted(path, dataset)
    tensors = weights(90)
    expected = x.reshape(len(x), -1) @ tensors["k"] + tensors["b"]
    np.testing.assert_allclose(model.predict(x), expected, atol=1e-4)


def test_probabilities_without_a_softmax_get_a_logarithm(tmp_path, dataset, x):
    nodes = [
        *dense("z2"),
        helper.make_node("Exp", ["z2"], ["e"]),
        helper.make_node("ReduceSum", ["e", "axis"], ["s"], keepdims=1),
        helper.make_node("Div", ["e", "s"], ["out"]),
    ]
    tensors = {**weights(90), "axis": np.array([1], np.int64)}
    path = save(tmp_path / "m.onnx", nodes, tensors, SHAPE, [scores()])
    model = adopted(path, dataset)
    np.testing.assert_allclose(softmax(model.predict(x)), run(path, x), atol=1e-5)
    assert "logarithm" in " ".join(model.notes)


def sklearn_like(path, labels, zipped=True):
    """A classifier as skl2onnx writes it: flat input, label, probabilities in a ZipMap."""
    key = "classlabels_int64s" if isinstance(labels[0], int) else "classlabels_strings"
    nodes = [
        helper.make_node("Cast", ["x"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["cast", "k"], ["z"]),
        helper.make_node("Add", ["z", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["p"], axis=1),
        helper.make_node("ArgMax", ["p"], ["label"], axis=1, keepdims=0),
    ]
    label = helper.make_tensor_value_info("label", TensorProto.INT64, ["N"])
    if not zipped:
        nodes.append(helper.make_node("Identity", ["p"], ["out"]))
        return save(path, nodes, weights(90), (90,), [label, scores()])
    nodes.append(helper.make_node("ZipMap", ["p"], ["out"], domain="ai.onnx.ml", **{key: labels}))
    kind = TensorProto.INT64 if isinstance(labels[0], int) else TensorProto.STRING
    value = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    mapped = helper.make_sequence_type_proto(helper.make_map_type_proto(kind, value))
    out = helper.make_value_info("out", mapped)
    return save(path, nodes, weights(90), (90,), [label, out], domains=["ai.onnx.ml"])


@pytest.mark.parametrize("zipped", [True, False])
def test_models_of_scikit_learn(tmp_path, dataset, x, zipped):
    path = sklearn_like(tmp_path / "m.onnx", [0, 1, 2, 3], zipped)
    model = adopted(path, dataset)
    found = run(path, x.reshape(len(x), -1), 1)
    expected = np.array([list(row.values()) for row in found]) if zipped else found
    np.testing.assert_allclose(softmax(model.predict(x)), expected, atol=1e-5)
    assert [node.op_type for node in model.proto().graph.node] == ["Flatten", "Gemm"]
    assert model.notes[0] == "the output label was left out"


def test_class_names_of_scikit_learn(tmp_path):
    path = sklearn_like(tmp_path / "m.onnx", ["ape", "bee", "cow", "dog"])
    assert read_onnx(path).labels == ["ape", "bee", "cow", "dog"]


def test_the_range_of_pixels_is_found_out(tmp_path):
    """A model that tells dark from bright images at 128 of 255."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = (rng.integers(0, 100, (120, *SHAPE)) + 150 * y[:, None, None, None]).astype(np.uint8)
    dataset = Dataset.from_arrays(x, y)
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), *dense(first="p")]
    tensors = {
        "k": np.array([[-1, 1], [-1, 1], [-1, 1]], np.float32) / 3,
        "b": np.array([[128, -128]], np.float32),
    }
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 2])
    path = save(tmp_path / "m.onnx", nodes, tensors, SHAPE, [out])
    model = adopted(path, dataset)
    assert model.accuracy(dataset["test"]) == 1
    assert any("multiplied by 255" in note for note in model.notes)
    asked = adopted(path, dataset, scale=1)
    assert asked.accuracy(dataset["test"]) == 0.5


def test_a_model_of_the_profile_stays_bit_equal(tmp_path, dataset):
    path = save(tmp_path / "m.onnx", dense(), weights(90), SHAPE, [scores()])
    once = Model.load(path)
    once.save(tmp_path / "once.onnx")
    again = adopted(tmp_path / "once.onnx", dataset)
    assert again.hash == once.hash
    assert again.notes == []


def test_a_conversion_that_answers_otherwise_is_refused(tmp_path, dataset):
    path = save(tmp_path / "m.onnx", dense(), weights(90), SHAPE, [scores()])
    original = read(path, None, SHAPE)
    honest = original.run
    original.run = lambda x: honest(x) + np.eye(CLASSES, dtype=np.float32)[2] * 2e-3
    with pytest.raises(ModelfixError, match=r"disagree on the logits by up to 0.002.*class 2 of"):
        adopt(original, dataset, Conventions())


def test_nan_is_refused(tmp_path, dataset):
    tensors = weights(90)
    tensors["k"][0, 0] = np.nan
    path = save(tmp_path / "m.onnx", dense(), tensors, SHAPE, [scores()])
    with pytest.raises(ModelfixError, match="NaN or infinite for"):
        adopted(path, dataset)


def test_what_is_no_model_is_refused(tmp_path, dataset):
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelfixError, match="is not an ONNX file"):
        read(tmp_path / "text.onnx", None, SHAPE)
    for name, words in {"m.pt": "module:factory", "m.pkl": "nothing is unpickled"}.items():
        with pytest.raises(ModelfixError, match=words):
            kind_of(tmp_path / name)
    path = save(tmp_path / "m.onnx", dense(), weights(90), SHAPE, [scores()])
    with pytest.raises(ModelfixError, match="belong to a PyTorch factory"):
        read(path, tmp_path / "w.pt", SHAPE)
    with pytest.raises(ModelfixError, match=r"takes images of shape \[3, 6, 5\] but the data"):
        read(path, None, (1, 28, 28))
    with pytest.raises(ModelfixError, match="with --layout nhwc"):
        read(path, None, SHAPE, "nhwc")
    for wrong, words in (
        ({"mean": [1, 2]}, "--mean has 2 values but the images have 3"),
        ({"std": [0.0]}, "--std has the value 0"),
        ({"scale": 0}, "--scale is 0"),
    ):
        with pytest.raises(ModelfixError, match=words):
            adopted(path, dataset, **wrong)


def test_outputs_that_cannot_be_chosen_are_refused(tmp_path):
    nodes = [*dense(), helper.make_node("Identity", ["out"], ["aux"])]
    path = save(tmp_path / "m.onnx", nodes, weights(90), SHAPE, [scores(), scores("aux")])
    with pytest.raises(ModelfixError, match=r"2 of its outputs \(out, aux\) can be the scores"):
        read(path, None, SHAPE)
