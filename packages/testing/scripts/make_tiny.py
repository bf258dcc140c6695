"""Make the data of the tiny subject again: run it where modelfix-core[torch] is installed.

1,500 Fashion-MNIST images (MIT licence, Zalando SE) out of those that core ships, and the study's
LeNet5 trained on 600 of them, with the model of every eighth epoch as its history.
"""

from pathlib import Path

import numpy as np
from modelfix_core import Model, Split
from modelfix_core.seeds import generator
from modelfix_core.subjects.architectures import lenet5
from modelfix_core.subjects.recipes import Recipe
from modelfix_core.subjects.sources.idx import read_idx
from modelfix_core.subjects.training import reproducible, train
from modelfix_core.torch import export

HERE = Path(__file__).resolve().parents[1] / "src" / "modelfix_testing" / "data"
EMBEDDED = "packages/core/src/modelfix_core/subjects/data/fashion-mini"
SIZE, TRAIN, EPOCHS, KEPT = 1500, 600, 32, 4
SEED = 0


def main() -> None:
    """Write images.npz, history/epoch-*.onnx and model.onnx."""
    source = HERE.parents[4] / EMBEDDED
    x = read_idx(source / "t10k-images-idx3-ubyte.gz", 3)
    y = read_idx(source / "t10k-labels-idx1-ubyte.gz", 1)
    chosen = generator(SEED, stage="images").permutation(len(y))[:SIZE]
    x, y = x[chosen], y[chosen].astype(np.uint8)
    (HERE / "history").mkdir(parents=True, exist_ok=True)
    np.savez_compressed(HERE / "images.npz", x=x, y=y)
    split = Split(x[:TRAIN, None], y[:TRAIN].astype(np.int64))
    recipe = Recipe(epochs=EPOCHS, batch_size=16, learning_rate=1e-3)
    with reproducible(SEED):
        network = lenet5()
        epochs = train(network, split, recipe, seed=SEED, on_step=lambda done, total: None)
        for epoch, _ in enumerate(epochs, start=1):
            if epoch % (EPOCHS // KEPT) == 0:
                export(network.eval(), (1, 28, 28)).save(HERE / f"history/epoch-{epoch:02d}.onnx")
    model = Model.load(HERE / f"history/epoch-{EPOCHS:02d}.onnx")
    model.save(HERE / "model.onnx")
    held_out = Split(x[TRAIN:, None], y[TRAIN:].astype(np.int64))
    print(
        f"accuracy {model.accuracy(split):.3f} in training, {model.accuracy(held_out):.3f} outside"
    )


if __name__ == "__main__":
    main()
