import numpy as np
import onnx
import pytest
from modelfix_core import Model, ModelfixError
from onnx import helper, numpy_helper


def gemm(x, weight, bias):
    return x @ weight.T + bias


def by_hand(proto, x):
    w = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    hidden = np.maximum(gemm(x.reshape(len(x), -1), w["fc1.weight"], w["fc1.bias"]), 0)
    return gemm(hidden, w["fc2.weight"], w["fc2.bias"])


def save(proto, path):
    path.write_bytes(proto.SerializeToString())
    return path


def test_predicts_what_the_weights_say(proto, x):
    expected = by_hand(proto, x)
    np.testing.assert_allclose(Model(proto).predict(x, batch_size=7), expected, rtol=1e-5)


def test_layers_name_weights_shapes_and_activations(model):
    first, last = model.layers()
    assert (first.name, first.kind, first.parameters) == (
        "fc1",
        "dense",
        ("fc1.weight", "fc1.bias"),
    )
    assert (first.activation, first.activated) == ("Relu", "h1")
    assert (first.input_shape, first.output_shape) == ((16,), (8,))
    assert (last.activation, last.activated) == (None, model.output_name)
    with pytest.raises(ModelfixError, match="fc1, fc2"):
        model.layer("fc3")


def test_new_weights_leave_the_rest_bit_equal(model, x):
    before, hash_before = model.predict(x), model.hash
    changed = model.with_weights({"fc2.bias": model.weights["fc2.bias"] + 1})
    np.testing.assert_allclose(changed.predict(x), before + 1, rtol=1e-5)
    for name in ("fc1.weight", "fc1.bias", "fc2.weight"):
        np.testing.assert_array_equal(changed.weights[name], model.weights[name])
    assert model.hash == hash_before != changed.hash
    np.testing.assert_array_equal(model.predict(x), before)


def test_weights_cannot_be_changed_in_place(model):
    with pytest.raises(ValueError, match="read-only"):
        model.weights["fc1.bias"][0] = 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fc9.bias": np.zeros(3)}, "no weight named"),
        ({"fc2.bias": np.zeros(4)}, "has shape"),
        ({"fc2.bias": np.full(3, np.nan)}, "NaN"),
    ],
)
def test_unusable_weights_are_refused(model, changed, message):
    with pytest.raises(ModelfixError, match=message):
        model.with_weights(changed)


def test_activations_are_the_inner_tensors(model, x):
    inner = model.activations(x, ["z1", "h1"])
    np.testing.assert_array_equal(np.maximum(inner["z1"], 0), inner["h1"])
    w = model.weights
    np.testing.assert_allclose(
        gemm(inner["h1"], w["fc2.weight"], w["fc2.bias"]), model.predict(x), rtol=1e-5
    )


def test_saving_and_loading_keeps_everything(model, x, tmp_path):
    marked = model.with_metadata(labels='["a", "b", "c"]', source="a test")
    marked.save(tmp_path / "deep" / "m.onnx")
    again = Model.load(tmp_path / "deep" / "m.onnx")
    assert again.hash == marked.hash
    assert again.labels == ["a", "b", "c"]
    assert again.notes == []
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


def test_data_of_another_shape_are_refused(model):
    with pytest.raises(ModelfixError, match=r"\[1, 4, 4\].*\[3, 4, 4\]"):
        model.predict(np.zeros((2, 3, 4, 4), np.float32))


# -- files that are wrong --


def test_missing_file(tmp_path):
    with pytest.raises(ModelfixError, match="does not exist"):
        Model.load(tmp_path / "none.onnx")


def test_folder_instead_of_file(tmp_path):
    with pytest.raises(ModelfixError, match="is a folder"):
        Model.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_not_onnx(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelfixError, match="not an ONNX file"):
        Model.load(tmp_path / "m.onnx")


def test_truncated_file(model, tmp_path):
    (tmp_path / "m.onnx").write_bytes(model.serialized[: len(model.serialized) // 2])
    with pytest.raises(ModelfixError, match=r"m\.onnx"):
        Model.load(tmp_path / "m.onnx")


@pytest.mark.parametrize(("op", "domain"), [("Teleport", ""), ("Relu", "com.example")])
def test_unsupported_operator_is_named(make_proto, tmp_path, op, domain):
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node(op, ["flat"], ["out"], domain=domain),
    ]
    proto = make_proto(nodes, {}, classes=16)
    if domain:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    with pytest.raises(ModelfixError, match=f"operator '{op}'"):
        Model.load(save(proto, tmp_path / "m.onnx"))


def external(proto, location):
    tensor = proto.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    return data


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", ""])
def test_external_data_outside_the_folder_is_refused(proto, tmp_path, location):
    external(proto, location)
    (tmp_path / "secret.bin").write_bytes(bytes(1000))
    (tmp_path / "here").mkdir()
    with pytest.raises(ModelfixError, match="outside the model's folder"):
        Model.load(save(proto, tmp_path / "here" / "m.onnx"))


def test_external_data_through_a_link_is_refused(proto, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "secret.bin").write_bytes(external(proto, "w.bin"))
    (tmp_path / "here" / "w.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelfixError, match="outside the model's folder"):
        Model.load(save(proto, tmp_path / "here" / "m.onnx"))


def test_external_data_beside_the_model_are_read(proto, x, tmp_path):
    expected = by_hand(proto, x)
    (tmp_path / "w.bin").write_bytes(external(proto, "w.bin"))
    model = Model.load(save(proto, tmp_path / "m.onnx"))
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-5)
    model.save(tmp_path / "alone.onnx")
    (tmp_path / "w.bin").unlink()
    np.testing.assert_allclose(Model.load(tmp_path / "alone.onnx").predict(x), expected, rtol=1e-5)


def test_missing_external_data(proto, tmp_path):
    external(proto, "gone.bin")
    with pytest.raises(ModelfixError, match=r"gone\.bin.*missing"):
        Model.load(save(proto, tmp_path / "m.onnx"))
