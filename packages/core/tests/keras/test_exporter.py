import numpy as np
import pytest
from modelfix_core import ModelfixError
from modelfix_core.keras import export, import_file, load, predict

keras = pytest.importorskip("keras")
layers = keras.layers


def lenet5():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(6, 5, activation="relu", name="conv1"),
            layers.MaxPooling2D(3),
            layers.Conv2D(16, 3, activation="relu", name="conv2"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(120, activation="relu", name="fc1"),
            layers.Dense(84, activation="relu", name="fc2"),
            layers.Dense(10, activation="softmax", name="fc3"),
        ],
        name="lenet5",
    )


def vgg():
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Rescaling(2.0, [-0.1, 0.0, 0.2]),
            layers.Conv2D(8, 3, padding="same", name="conv1"),
            layers.BatchNormalization(name="bn1"),
            layers.ReLU(),
            layers.MaxPooling2D(2),
            layers.Conv2D(12, 3, padding="same", strides=2, use_bias=False, name="conv2"),
            layers.BatchNormalization(scale=False, name="bn2"),
            layers.LeakyReLU(),
            layers.AveragePooling2D(2, padding="same"),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Dense(16, activation="elu", name="fc1"),
            layers.BatchNormalization(name="bn3"),
            layers.Dense(5, name="fc2"),
        ]
    )


def resnet():
    def block(x, filters, strides, name):
        y = layers.ZeroPadding2D(1)(x)
        y = layers.Conv2D(filters, 3, strides, use_bias=False, name=f"{name}_a")(y)
        y = layers.BatchNormalization(name=f"{name}_bn")(y)
        y = layers.Activation("relu")(y)
        y = layers.Conv2D(filters, 3, padding="same", name=f"{name}_b")(y)
        if strides > 1:
            x = layers.Conv2D(filters, 1, strides, name=f"{name}_short")(x)
        return layers.Activation("tanh")(layers.Add()([y, x]))

    images = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(images)
    x = block(block(x, 8, 1, "one"), 16, 2, "two")
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="depth")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Softmax()(layers.Dense(5, name="fc")(x)))


def densenet():
    images = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(images)
    for index in range(3):
        y = layers.BatchNormalization(name=f"bn{index}")(x)
        y = layers.Conv2D(4, 3, padding="same", name=f"conv{index}")(layers.ReLU(6.0)(y))
        x = layers.Concatenate()([x, y])
    x = layers.Multiply()([x, layers.Activation("sigmoid")(x)])
    x = layers.Flatten()(layers.AveragePooling2D(4)(x))
    return keras.Model(images, layers.Dense(5, name="fc")(x))


BUILDERS = {"lenet5": lenet5, "vgg": vgg, "resnet": resnet, "densenet": densenet}


def settled(build):
    """Give BatchNorm statistics and biases that are not trivial."""
    keras_model, rng = build(), np.random.default_rng(1)
    for variable in keras_model.weights:
        if "kernel" not in variable.name and "seed" not in variable.name:
            variable.assign(rng.uniform(0.2, 1.0, variable.shape))
    return keras_model


@pytest.fixture(scope="module", params=list(BUILDERS))
def pair(request):
    """A Keras model and what it was exported to."""
    keras_model = settled(BUILDERS[request.param])
    return keras_model, export(keras_model)


def probabilities(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_keras_to_onnx_to_keras(pair, images):
    original, model = pair
    net, x = load(model), images(model)
    expected = original(x.transpose(0, 2, 3, 1), training=False).numpy()
    for logits in (model.predict(x), predict(net, x)):
        found = probabilities(logits) if model.notes else logits
        np.testing.assert_allclose(found, expected, atol=1e-4)
        np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))


def test_weights_keep_their_bits_and_names(pair):
    original, model = pair
    for layer in original.layers:
        if isinstance(layer, layers.Dense):
            kernel = keras.ops.convert_to_numpy(layer.kernel)
            assert model.weights[f"{layer.name}.weight"].tobytes() == kernel.T.tobytes()
        if isinstance(layer, layers.BatchNormalization):
            mean = keras.ops.convert_to_numpy(layer.moving_mean)
            assert model.weights[f"{layer.name}.running_mean"].tobytes() == mean.tobytes()
    norms = sum(isinstance(layer, layers.BatchNormalization) for layer in original.layers)
    assert len(model.layers("batchnorm")) == norms
    net = load(model)
    trained = sum(v.numpy().size for v in original.trainable_variables)
    extra = sum(
        layer.moving_mean.shape[0]  # a scale of ones that Keras left out
        for layer in original.layers
        if isinstance(layer, layers.BatchNormalization) and not layer.scale
    )
    assert sum(v.numpy().size for v in net.keras.trainable_variables) == trained + extra


def test_classes_and_metadata_are_kept_and_the_softmax_is_cut():
    model = export(lenet5(), classes=list("abcdefghij"), recipe="none")
    assert model.labels == list("abcdefghij")
    assert model.metadata["modelfix.recipe"] == "none"
    assert any("Softmax was cut" in note for note in model.notes)
    assert model.input_shape == (1, 28, 28)
    assert [layer.name for layer in model.layers()] == ["conv1", "conv2", "fc1", "fc2", "fc3"]


def test_nested_models_and_shared_layers(images):
    part = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(3, 3, padding="same")])
    shared = layers.Conv2D(3, 1, name="shared")
    source = keras.Input((8, 8, 3))
    joined = layers.Add()([shared(part(source)), shared(source)])
    original = keras.Model(source, layers.Dense(3)(layers.Flatten()(joined)))
    model = export(original)
    x = images(model)
    expected = original(x.transpose(0, 2, 3, 1)).numpy()
    np.testing.assert_allclose(model.predict(x), expected, atol=1e-5)
    net = load(model)
    np.testing.assert_allclose(predict(net, x), expected, atol=1e-5)
    assert sum(name == "shared.weight" for name in net.tensors) == 1


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_files_are_imported(tmp_path, images, ending):
    original = settled(vgg)
    original.save(tmp_path / f"model{ending}")
    model = import_file(tmp_path / f"model{ending}")
    x = images(model)
    expected = original(x.transpose(0, 2, 3, 1), training=False).numpy()
    np.testing.assert_allclose(model.predict(x), expected, atol=1e-5)
    assert len(model.layers("batchnorm")) == 3


def test_a_foreign_layer_is_imported_with_tf2onnx(tmp_path, images):
    source = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(source)
    x = layers.GlobalMaxPooling2D()(layers.BatchNormalization()(x))
    original = keras.Model(source, layers.Dense(3, activation="softmax")(x))
    with pytest.raises(ModelfixError, match="GlobalMaxPooling2D"):
        export(original)
    original.save(tmp_path / "model.keras")
    model = import_file(tmp_path / "model.keras")
    assert any("tf2onnx" in note and "BatchNorm" in note for note in model.notes)
    x = images(model)
    expected = original(x.transpose(0, 2, 3, 1)).numpy()
    np.testing.assert_allclose(probabilities(model.predict(x)), expected, atol=1e-5)


def test_tf2onnx_agrees_with_our_exporter(images):
    import modelfix_core.keras.exporter as exporter

    original = settled(resnet)
    model, oracle = export(original), exporter._with_tf2onnx(original, "oracle")
    x = images(model)
    np.testing.assert_allclose(model.predict(x), oracle.predict(x), atol=1e-4)


def test_bad_files_are_explained(tmp_path):
    with pytest.raises(ModelfixError, match=r"missing\.keras: does not exist"):
        import_file(tmp_path / "missing.keras")
    (tmp_path / "broken.keras").write_bytes(b"nothing")
    with pytest.raises(ModelfixError, match=r"broken\.keras: Keras cannot read"):
        import_file(tmp_path / "broken.keras")


def test_a_lambda_layer_is_refused(tmp_path):
    source = keras.Input((4, 4, 1))
    body = layers.Lambda(lambda x: x * 2, output_shape=(4, 4, 1))(source)
    keras.Model(source, layers.Dense(2)(layers.Flatten()(body))).save(tmp_path / "model.keras")
    with pytest.raises(ModelfixError, match="Lambda layer, which is code and is never loaded"):
        import_file(tmp_path / "model.keras")


def test_a_model_that_takes_no_images_is_refused():
    with pytest.raises(ModelfixError, match="expected images"):
        export(keras.Sequential([keras.Input((9,)), layers.Dense(3)]))
