"""The few Keras layers that ONNX operators need and Keras lacks."""

import keras
from keras import ops

_register = keras.saving.register_keras_serializable(package="modelfix")


@_register
class Arithmetic(keras.layers.Layer):
    """Add, subtract, multiply or divide by a constant that is stored but not trained.

    Parameters
    ----------
    operation : {"Add", "Sub", "Mul", "Div"}
    shape : sequence of int
        Shape of the constant; broadcasts against the input.
    reverse : bool
        Whether the constant is the left operand.
    """

    def __init__(self, operation, shape, reverse=False, **kwargs):
        super().__init__(**kwargs)
        self.operation, self.shape, self.reverse = operation, tuple(shape), reverse

    def build(self, input_shape):
        """Create the constant."""
        self.constant = self.add_weight(shape=self.shape, name="constant", trainable=False)

    def call(self, inputs):
        """Apply the operation."""
        return self.apply(inputs, self.constant)

    def apply(self, inputs, constant):
        """Apply the operation with a given constant."""
        operands = (constant, inputs) if self.reverse else (inputs, constant)
        return ARITHMETIC[self.operation](*operands)

    def get_config(self):
        """Return the constructor's arguments."""
        own = {"operation": self.operation, "shape": self.shape, "reverse": self.reverse}
        return {**super().get_config(), **own}


ARITHMETIC = {"Add": ops.add, "Sub": ops.subtract, "Mul": ops.multiply, "Div": ops.divide}


@_register
class Divide(keras.layers.Layer):
    """Divide the first input by the second."""

    def call(self, inputs):
        """Divide element by element."""
        return ops.divide(*inputs)


@_register
class Clip(keras.layers.Layer):
    """Limit values to an interval.

    Parameters
    ----------
    low, high : float
    """

    def __init__(self, low, high, **kwargs):
        super().__init__(**kwargs)
        self.low, self.high = low, high

    def call(self, inputs):
        """Clip element by element."""
        return ops.clip(inputs, self.low, self.high)

    def get_config(self):
        """Return the constructor's arguments."""
        return {**super().get_config(), "low": self.low, "high": self.high}


@_register
class Padding(keras.layers.Layer):
    """Pad any axis but the batch with one value.

    Parameters
    ----------
    pads : sequence of (int, int)
        Entries before and after, for each axis after the batch.
    value : float
    """

    def __init__(self, pads, value=0.0, **kwargs):
        super().__init__(**kwargs)
        self.pads, self.value = tuple(tuple(pair) for pair in pads), value

    def call(self, inputs):
        """Pad the input."""
        return ops.pad(inputs, ((0, 0), *self.pads), constant_values=self.value)

    def get_config(self):
        """Return the constructor's arguments."""
        return {**super().get_config(), "pads": self.pads, "value": self.value}
