# environment: vere
"""VeRe: one round in closed form against one bound computation for each neuron and piece.

The baseline does what the artefact does: for every neuron and every piece of its interval it bounds
the margin on a box of hidden vectors by CROWN's backward pass over the whole chain, and it fits the
neuron with automatic differentiation, batch by batch. Ours are `modelfix_vere.localisation`,
`modelfix_vere.targets` and `modelfix_vere.repair`. Both use the same inputs and the same seed, and
must find the same significance, choose the same neuron and fit the same parameters.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from modelfix_core.subjects.architectures import lenet5
from modelfix_core.torch import export, load
from modelfix_vere.localisation import Faults, faults, intervals, scores, significance
from modelfix_vere.repair import Aim, fit, read_neuron
from modelfix_vere.site import find_site
from modelfix_vere.suffix import Suffix, read_suffix
from modelfix_vere.targets import targets
from torch import Tensor, nn

FAULTS, CORRECT, PIECES, EPOCHS, SEED = 128, 1000, 10, 30, 0


def lines_of_boxes(suffix: Suffix, rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return coefficients [I, D] and constant [I] of CROWN's lower line on a batch of boxes."""
    (first, bias), (last, offset) = suffix.affine
    positive, negative = first.clamp(min=0), first.clamp(max=0)
    least = low @ positive.T + high @ negative.T + bias
    most = high @ positive.T + low @ negative.T + bias
    up, down = most.clamp(min=0), least.clamp(max=0)
    chord = up / (up - down).clamp(min=1e-30)
    q = rows @ last
    slope = torch.where(q >= 0, (chord > 0.5).float(), chord)
    start = torch.where(q >= 0, 0, -chord * down)
    scaled = q * slope
    constant = (q * start).sum(dim=1) + scaled @ bias + rows @ offset
    return torch.cat([scaled @ first, constant[:, None]], dim=1)


def baseline_effects(suffix: Suffix, found: Faults, edges: Tensor) -> Tensor:
    """Return E, [D, I, K, 2], with one call for each neuron and piece."""
    effects = torch.empty(len(edges), len(found.margins), edges.shape[1] - 1, 2)
    for n in range(len(edges)):
        for k in range(edges.shape[1] - 1):
            low, high = found.hidden.clone(), found.hidden.clone()
            low[:, n], high[:, n] = edges[n, k], edges[n, k + 1]
            lines = lines_of_boxes(suffix, found.rows, low, high)
            slope, constant = lines[:, :-1], lines[:, -1]
            for end, corner in enumerate((low, high)):
                effects[n, :, k, end] = (slope * corner).sum(dim=1) + constant - found.margins
    return effects


def baseline_targets(found: Faults, effects: Tensor, neuron: int, edges: Tensor):
    """Choose target intervals input by input."""
    targets = []
    for i, margin in enumerate(found.margins):
        own = found.hidden[i, neuron]
        ideal = [k for k in range(PIECES) if bool((margin + effects[i, k] > 0).all())]
        if ideal:
            ends = [(edges[k], edges[k + 1]) for k in ideal]
            targets.append(min(ends, key=lambda pair: min(abs(pair[0] - own), abs(pair[1] - own))))
        else:
            best = int(effects[i].argmax())
            targets.append((edges[best // 2 + best % 2],) * 2)
    return (torch.stack(part) for part in zip(*targets, strict=True))


def baseline_fit(weight: Tensor, bias: Tensor, aim: Aim) -> Tensor:
    """Fit the neuron with autograd."""
    rng = np.random.default_rng(SEED)
    inputs, least, most, wrong = (
        torch.from_numpy(part) for part in (aim.source, aim.low, aim.high, aim.faulty)
    )
    parts = [weight.clone(), bias.clone(), torch.tensor(1.0), torch.tensor(0.0)]
    w1, b1, w2, b2 = (part.requires_grad_() for part in parts)
    adam = torch.optim.Adam([w1, b1, w2, b2], 0.01)
    for _ in range(EPOCHS):
        for rows in torch.from_numpy(rng.permutation(len(aim.low))).split(64):
            value = w2 * (inputs[rows] @ w1 + b1).relu() + b2
            distance = (least[rows] - value).relu() + (value - most[rows]).relu()
            faulty = wrong[rows]
            means = [d.square().mean() for d in (distance[faulty], distance[~faulty]) if len(d)]
            loss = torch.stack(means).sum()
            if loss.item() == 0:
                continue
            adam.zero_grad()
            loss.backward()
            adam.step()
    return torch.cat([w1, b1[None], w2[None], b2[None]]).detach()


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = process_time()
    result = work()
    return result, process_time() - start


def report(name: str, slow: float, fast: float) -> dict:
    print(f"{name}: ratio {slow / fast:.1f} x (baseline {slow:.3f} s, ours {fast:.3f} s)")
    return {"name": name, "ratio": slow / fast, "baseline_seconds": slow, "ours_seconds": fast}


def compare(name: str, module: nn.Module, shape: tuple[int, int, int]) -> list[dict]:
    model = export(module.eval(), shape)
    net, site = load(model), find_site(model, relaxed=True)
    assert site.maker is not None
    x = torch.rand((4 * (FAULTS + CORRECT), *shape), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        held = net.activations(x, [site.source, site.hidden, model.output_name])
        logits = held[model.output_name]
    labels = logits.argmax(dim=1)
    wrong = torch.arange(FAULTS)
    labels[wrong] = logits[wrong].topk(2).indices[:, 1]
    rows = torch.arange(FAULTS + CORRECT)
    hidden = held[site.hidden]

    suffix = read_suffix(net, site.suffix)
    found = faults(suffix, hidden[wrong], labels[wrong])
    edges = intervals(hidden[rows], PIECES)
    significance(suffix, found, edges)  # the first call sets up kernels

    effects, slow_lines = timed(lambda: baseline_effects(suffix, found, edges))
    ours, fast_lines = timed(lambda: significance(suffix, found, edges))
    expected = effects.amax(dim=(2, 3)).clamp(min=0)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    neuron = int(scores(ours).argmax())
    assert neuron == int(scores(expected).argmax())

    def aim_at(low: Tensor, high: Tensor) -> Aim:
        present = hidden[rows[FAULTS:], neuron]
        ends = (torch.cat([end, present]) for end in (low, high))
        parts = (held[site.source][rows], *ends, rows < FAULTS)
        return Aim(*(part.numpy() for part in parts))

    def baseline_repair() -> Tensor:
        aim = aim_at(*baseline_targets(found, effects[neuron], neuron, edges[neuron]))
        weight, bias = (net.tensor(n).detach()[neuron] for n in site.maker.parameters)
        return baseline_fit(weight, bias, aim)

    def our_repair() -> np.ndarray:
        aimed = targets(suffix, found, labels[wrong], neuron, edges[neuron])
        aim = aim_at(aimed.low, aimed.high)
        rng = np.random.default_rng(SEED)
        return fit(read_neuron(net, site, neuron), aim, rng, epochs=EPOCHS)

    expected, slow_fit = timed(baseline_repair)
    parameters, fast_fit = timed(our_repair)
    # Adam enlarges differences of rounding; a tenth of one of its steps is allowed.
    np.testing.assert_allclose(parameters, expected, rtol=0, atol=1e-3)
    assert not np.allclose(parameters, read_neuron(net, site, neuron).start, atol=1e-2)
    return [
        report(f"vere-localisation-{name}", slow_lines, fast_lines),
        report(f"vere-repair-{name}", slow_fit, fast_fit),
        report(f"vere-round-{name}", slow_lines + slow_fit, fast_lines + fast_fit),
    ]


def square(width: int) -> nn.Sequential:
    parts = [nn.Flatten(), nn.Linear(64, width), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write JSON lines to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # processor time then says what was computed, on busy machines too
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        modules = lenet5(), square(256)
    results = [
        *compare("lenet5", modules[0], (1, 28, 28)),
        *compare("square-256", modules[1], (1, 8, 8)),
    ]
    if options.json is not None:
        options.json.write_text("".join(json.dumps(result) + "\n" for result in results))
    return results


if __name__ == "__main__":
    main()
