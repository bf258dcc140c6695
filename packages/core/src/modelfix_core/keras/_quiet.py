"""TensorFlow's first import: with its settings, without its noise."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from modelfix_core.errors import ModelfixError


@contextmanager
def _stderr_hidden() -> Iterator[None]:
    """Hide what C++ code writes to stderr; Python's exceptions come through."""
    sys.stderr.flush()
    kept, hidden = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(hidden, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(hidden)


if "torch" in sys.modules:
    raise ModelfixError(
        "PyTorch is already loaded in this process and TensorFlow cannot stand beside it; use "
        "approaches of the two frameworks in processes of their own."
    )

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

# TensorFlow announces its CPU and GPU features before it reads the log level.
with _stderr_hidden():
    import keras
    import tensorflow as tf

    tf.config.list_logical_devices()

if keras.backend.backend() != "tensorflow":
    raise ModelfixError(
        f"Keras runs on {keras.backend.backend()!r} here; unset KERAS_BACKEND and try again."
    )
logging.getLogger("tensorflow").setLevel(logging.ERROR)
