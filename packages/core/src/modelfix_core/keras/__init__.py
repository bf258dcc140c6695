"""The Keras bridge: models as trainable Keras layers, and Keras models as models.

``load`` turns a `Model` into a `KerasModel`; ``export`` and ``import_file`` go the other way;
``predict`` and ``Population`` compute on a `KerasModel`. Every conversion is compared with
onnxruntime before it is handed out. The operators that can be converted are listed in
`modelfix_core.keras.importer`, the Keras layers in `modelfix_core.keras.exporter`.
"""

from modelfix_core.keras import _quiet  # noqa: F401, I001 - imports TensorFlow; must come first

from modelfix_core.keras.exporter import export, import_file
from modelfix_core.keras.net import KerasModel, load, predict
from modelfix_core.keras.population import Population

__all__ = ["KerasModel", "Population", "export", "import_file", "load", "predict"]
