# environment: editable-training
"""A step of Editable Training: cut network and functional parameters against copied models.

The baseline is the paper's way of computing it: every step of the editor runs the whole network on
a deep copy, and so does the pass that measures the drift. Both give the same gradients.
"""

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from modelfix_core import Model, Split
from modelfix_core.torch import TorchModel, load
from modelfix_core.torch.training import FineTuning
from modelfix_editable_training import EditableTraining
from modelfix_editable_training.editor import edit_loss
from modelfix_editable_training.lesson import Editing, Pool, drift
from modelfix_editable_training.places import editable_layers
from modelfix_editable_training.run import BETA, make_editor
from modelfix_testing import tiny_task
from torch import Tensor
from torch.nn import functional

BATCH = 128
CONFIG = EditableTraining(alpha=1e-4).config  # small steps, so that every edit takes all of them


def copied_step(
    net: TorchModel, names: list[str], x: Tensor, y: Tensor, pair: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the objective, edited on deep copies of the model with whole passes."""
    net.train()
    logits = net(x)
    net.eval()
    model, weights = net, {name: net.tensor(name) for name in names}
    moments: dict[str, Tensor] = {}
    beta = getattr(net, BETA)
    for step in range(CONFIG.steps + 1):
        loss = edit_loss(model(pair[0]), pair[1])
        if loss.item() <= 0 or step == CONFIG.steps:
            break
        found = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        for (name, weight), gradient in zip(list(weights.items()), found, strict=True):
            square = gradient**2
            if step:
                square = beta * moments[name] + (1 - beta) * square
            moments[name] = square
            weights[name] = weight - CONFIG.alpha * gradient / (square + CONFIG.epsilon).sqrt()
        model = replaced(net, weights)
    after = model(x)
    base = functional.cross_entropy(logits, y)
    return base + CONFIG.locality * drift(logits, after) + CONFIG.edit * loss


def replaced(net: TorchModel, weights: dict[str, Tensor]) -> TorchModel:
    """Copy the model; edited weights are tensors of the graph, all others stay the net's own."""
    shared = {id(p): p for p in net.parameters()}
    edited = copy.deepcopy(net, {**shared, id(net.model): net.model})
    for name, value in weights.items():
        position, attribute = edited._homes[name]
        holder = edited.operators[position]
        holder._parameters.pop(attribute, None)
        setattr(holder, attribute, value)
    return edited


def gradients(loss: Tensor, net: TorchModel) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g
            for p, g in zip(net.parameters(), found, strict=True)]  # fmt: skip


def measure(model: Model, split: Split, repeats: int, device: str) -> dict:
    net = load(model, device)
    layers = editable_layers(model, "auto")
    editor = make_editor(net, layers, CONFIG)
    recipe = FineTuning(batch_size=BATCH, optimizer="adam", patience=None)
    lesson = Editing(editor, split, recipe, Pool(), locality=CONFIG.locality, edit=CONFIG.edit)
    x = torch.from_numpy(split.images(slice(0, BATCH))).to(device)
    y = torch.from_numpy(np.array(split.y[:BATCH])).to(device)
    pair = (x[:1], net(x[:1]).argmin(dim=1))

    def plain() -> Tensor:
        net.train()
        return functional.cross_entropy(net(x), y)

    def ours() -> Tensor:
        net.train()
        return lesson.loss(x, y, pair)[0]

    def copies() -> Tensor:
        return copied_step(net, editor.halves.names, x, y, pair)

    steps = editor.edit(editor.halves.prefix(pair[0]), pair[1], graph=False).steps
    largest = max(
        float((a - b).abs().max())
        for a, b in zip(gradients(ours(), net), gradients(copies(), net), strict=True)
    )
    assert largest < 1e-4, largest
    seconds = {}
    for name, objective in (("plain", plain), ("copies", copies), ("ours", ours)):
        gradients(objective(), net)
        start = time.process_time()
        for _ in range(repeats):
            gradients(objective(), net)
        seconds[name] = (time.process_time() - start) / repeats
    overhead = seconds["ours"] - seconds["plain"]
    return {
        "layer": ", ".join(layers),
        "editor_steps": steps,
        "largest_difference": largest,
        "milliseconds": {name: round(1000 * value, 2) for name, value in seconds.items()},
        "ratio": round(seconds["copies"] / seconds["ours"], 2),
        "ratio_of_overheads": round((seconds["copies"] - seconds["plain"]) / overhead, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="append the result to this file")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = tiny_task()
    assert task.train is not None
    result = {
        "benchmark": "editable-training",
        "device": options.device,
        **measure(task.model, task.train, options.repeats, options.device),
    }
    print(json.dumps(result, indent=2))
    if options.json:
        with options.json.open("a") as file:
            print(json.dumps(result), file=file)


if __name__ == "__main__":
    main()
