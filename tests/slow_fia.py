"""FIA once more, slowly and independently: the steps of the published descriptions, one prompt and one step at a time.

Shares nothing with `fia/` but the prompts: whole trajectories instead of lock-step, the GEGLU modules' outputs instead
of the layers' inputs, everything kept in float64 NumPy arrays, full sorts instead of order statistics.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from torch import nn

Record = dict[str, list[np.ndarray]]  # by layer: one [rows, Cin] array a step


def ffn2_layers(unet: nn.Module) -> dict[str, nn.Linear]:
    """The released code's rule: linear, `ff.net` in the name, no `proj`."""
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and "ff.net" in name and "proj" not in name
    }


def record(model, prompt: str, sampler, steps: int, seed: int, halves: str = "both") -> Record:
    """Inputs of every FFN2 at the first UNet calls of one prompt; both guidance halves or one, flattened to rows."""
    seen: Record = {}
    samples = {"both": [0, 1], "uncond": [0], "cond": [1]}[halves]

    def keep(name: str):
        def hook(_module, _args, output):
            rows = output.detach()[samples].reshape(-1, output.shape[-1])
            seen.setdefault(name, []).append(rows.double().cpu().numpy())

        return hook

    gates = {name: module for name, module in model.unet.named_modules() if name.endswith("ff.net.0")}
    handles = [module.register_forward_hook(keep(name.replace("net.0", "net.2"))) for name, module in gates.items()]
    try:
        model.denoise(
            model.encode([prompt]), model.latents([seed]), sampler, sampler.guidance, stop_after=steps
        )  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()
    return seen


def released_activity(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Row-normalised column norms: U / |W| of the released code, repeated for every output row."""
    length = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    rows = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return np.tile(np.sqrt((rows**2).sum(axis=0)), (weight.shape[0], 1))


def paper_activity(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """U / |W| of Eq. 1, one output row after the other."""
    norms = np.linalg.norm(rows, axis=0)
    result = np.empty_like(weight)
    for i in range(weight.shape[0]):
        y = rows @ weight[i]
        result[i] = norms * np.abs(rows.T @ y) / (norms * np.linalg.norm(y) + 1e-8)
    return result


def saliency(activity, concept: list[Record], base: list[Record], name: str, t: int, weight: np.ndarray) -> np.ndarray:
    """Eq. 2 at one step of one layer, from the recorded prompts."""
    u_c = np.stack([np.abs(weight) * activity(r[name][t], weight) for r in concept])
    u_b = np.stack([np.abs(weight) * activity(r[name][t], weight) for r in base])
    return np.maximum(0, u_c.mean(axis=0) - u_b.mean(axis=0) - u_b.std(axis=0))


def at_least_one(share: float, n: int) -> int:
    """`share * n` in exact decimal arithmetic, cut to a whole number."""
    return max(1, int(Fraction(str(share)) * n))


def scores(per_step: list[np.ndarray], r1: float, *, strict: bool, normalise: bool) -> np.ndarray:
    """Eq. 3 from S of every step."""
    frequency = np.zeros_like(per_step[0])
    for s in per_step:
        tau = np.sort(s.ravel())[::-1][at_least_one(r1, s.size) - 1]
        frequency += (s > tau) if strict else ((s >= tau) & (s > 0))
    average = sum(per_step) / len(per_step)
    if normalise:
        average = average / max(average.max(), 1e-12)
    return 0.5 * average + 0.5 * frequency / len(per_step)


def mask(a: np.ndarray, r2: float, *, zero_score: bool) -> np.ndarray:
    """Eq. 4-6 with stable sorts: of equal scores the lower index comes first."""
    rows, columns = a.shape
    by_row, by_layer = np.zeros_like(a, bool), np.zeros_like(a, bool)
    for i in range(rows):
        by_row[i, np.argsort(-a[i], kind="stable")[: at_least_one(r2, columns)]] = True
    by_layer.reshape(-1)[np.argsort(-a.ravel(), kind="stable")[: at_least_one(r2, a.size)]] = True
    chosen = by_row & by_layer
    return chosen if zero_score else chosen & (a > 0)


def pruned(masks: list[np.ndarray], alpha: float) -> np.ndarray:
    """Eq. 8 for one layer."""
    votes = sum(m.astype(int) for m in masks)
    threshold = -int(-(Fraction(str(alpha)) * len(masks)) // 1)
    return (votes > 0) & (votes < threshold)


def concept_scores(
    model, concept: list[str], base: list[str], sampler, steps: int, seed: int, r1: float, *, preset: str, halves: str
) -> dict[str, np.ndarray]:
    """A of Eq. 3 by layer. `preset` is `paper` or `release`."""
    release = preset == "release"
    activity = released_activity if release else paper_activity
    with_concept = [record(model, prompt, sampler, steps, seed, halves) for prompt in concept]
    without = [record(model, prompt, sampler, steps, seed, halves) for prompt in base]
    result = {}
    for name, layer in ffn2_layers(model.unet).items():
        weight = layer.weight.detach().double().cpu().numpy()
        per_step = [saliency(activity, with_concept, without, name, t, weight) for t in range(steps)]
        result[name] = scores(per_step, r1, strict=release, normalise=release)
    return result
