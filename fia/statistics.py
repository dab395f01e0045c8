"""Contrastive concept saliency (Eq. 1-2): how much stronger a weight works when the concept is in the prompt.

The equations of one layer are in `activity.py`; here all prompts are run and every layer is read.

Nothing is kept per prompt or per step: all prompts advance together by one UNet call, in chunks, and the moments of
that step are all that lives on the device. What a layer receives is reduced inside the hook that sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from harness.model import DiffusionModel
from harness.sampler import Sampler
from harness.threads import each_by_threads

from .activity import DTYPES, Moments, activity, ceiling, contrast, fused, gram_is_cheaper

HALVES = ("both", "cond", "uncond")


@dataclass(frozen=True)
class Calibration:
    """How the prompts are run and what is read off them; everything but `chunk` decides the result.

    Attributes:
        sampler: sampler and guidance of the calibration runs.
        steps: UNet calls that count, from the noisy end; sampling stops after the last.
        seed: the initial latent of every prompt (one for all, so that contrasts come from words alone).
        size: (width, height) in pixels.
        halves: which rows of the classifier-free-guidance batch enter X: `both`, `cond` or `uncond`.
        cosine: keep the cosine factor of Eq. 1.
        row_normalise: scale every token's input vector to unit length first (released code).
        dtype: arithmetic of the inner products: `float32`, `float64` or `bfloat16`.
        chunk: prompts per UNet call.
    """

    sampler: Sampler
    steps: int
    seed: int
    size: tuple[int, int]
    halves: str = "both"
    cosine: bool = True
    row_normalise: bool = False
    dtype: str = "float32"
    chunk: int = 8


@dataclass
class _Readers:
    """Forward hooks that reduce what every layer receives and add it to the moments that are open."""

    layers: Mapping[str, nn.Linear]
    calibration: Calibration
    prompts: int = 0
    moments: dict[str, Moments] = field(default_factory=dict)

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = [layer.register_forward_hook(self._reader(name)) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def open(self, spread: bool) -> dict[str, Moments]:
        self.moments = {name: Moments(spread) for name in self.layers}
        return self.moments

    def _reader(self, name: str) -> Callable[[nn.Linear, tuple[Tensor, ...], Tensor], None]:
        how = self.calibration

        def read(layer: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
            x, y = one_prompt_each(args[0], self.prompts, how.halves), None
            tokens = x.shape[0] * x.shape[2]
            if is_own(how) and not gram_is_cheaper(tokens, layer.weight, given=True):
                output = one_prompt_each(output, self.prompts, how.halves)
                kernels = fused(layer.weight)
                if kernels is not None:
                    self.moments[name].add_layer(x, output, layer.bias, kernels)
                    return
                y = output.to(DTYPES[how.dtype])
                y = y if layer.bias is None else y - layer.bias
            fractions = activity(
                x, layer.weight, y, cosine=how.cosine, row_normalise=how.row_normalise, dtype=how.dtype
            )  # fmt: skip
            for values, divisor in fractions:
                self.moments[name].add(values, divisor)

        return read


def is_own(how: Calibration) -> bool:
    """Whether Y of Eq. 1 is what a layer has computed, less its bias, whatever it computes in.

    In half precision a layer's output is rounded, but so is its input: computing Y again from it brings masks no closer
    to those of a float32 model (docs/methods/fia.md has the numbers). float64 and bfloat16 ask for arithmetic of their
    own.
    """
    return how.cosine and not how.row_normalise and how.dtype == "float32"


def one_prompt_each(x: Tensor, prompts: int, halves: str) -> Tensor:
    """The rows of every prompt: [rows, tokens, n] as [1 or 2 halves, prompts, tokens, n], a view where it can be one.

    The batch is [unconditional half; conditional half], as `DiffusionModel.trajectory` promises, and at the first call
    from a common start one unconditional row that stands for all. The last call may have run only the half that counts.
    """
    if len(x) == prompts and halves != "both":
        return x[None]
    if len(x) not in (1 + prompts, 2 * prompts):
        raise ValueError(f"a layer saw {len(x)} samples for {prompts} prompts; both guidance halves are needed")
    if halves == "both" and len(x) == 2 * prompts:
        return x.unflatten(0, (2, prompts))
    cond = x[-prompts:]
    uncond = x[:-prompts].expand_as(cond)
    return torch.stack([uncond, cond]) if halves == "both" else (cond if halves == "cond" else uncond)[None]


def _walks(model: DiffusionModel, prompts: Sequence[str], how: Calibration) -> list[tuple[int, Iterator[Tensor]]]:
    """One started trajectory per chunk of prompts, with the number of prompts in it.

    Nothing follows the last call that counts: where one half of the guidance batch is read, it runs alone there.
    """
    ends_with = None if how.halves == "both" else (how.steps - 1, how.halves)
    conditioning = model.encode(prompts)
    walks = []
    for start in range(0, len(prompts), how.chunk):
        part = conditioning[start : start + how.chunk]
        n = len(prompts[start : start + how.chunk])
        latents = model.latents([how.seed] * n, *how.size)
        walk = model.trajectory(
            part, latents, how.sampler, how.sampler.guidance,
            size=how.size, both_halves=True, same_start=True, ends_with=ends_with,
        )  # fmt: skip
        next(walk)  # the starting latents; every further step is one UNet call
        walks.append((n, walk))
    return walks


@torch.no_grad()
def contrast_each_step(
    model: DiffusionModel,
    layers: Mapping[str, nn.Linear],
    base: Sequence[str],
    concepts: Sequence[Sequence[str]],
    how: Calibration,
    take: Callable[[int, str, Tensor], None],
) -> None:
    """Run base and concept prompts in lock-step and hand over every contrast as soon as it is known.

    Device memory holds the moments of one step: mean and variance of the base prompts, then their sum `mu_b + sigma_b`
    and the mean of one concept. It depends neither on the number of steps nor on the number of concepts or prompts.

    Args:
        layers: layers to read, by module name.
        base: prompts without a concept, shared by all concepts.
        concepts: prompts of each concept.
        take: called as `take(concept index, layer name, contrast)`, once a step, concept and layer; the contrast is
            [Cout, Cin] with the cosine factor and [Cin] without, to be multiplied by |W|. It belongs to `take`. On a
            CPU layers are handed over by several threads at a time.
    """
    readers = _Readers(layers, how)
    base_walks = _walks(model, base, how)
    concept_walks = [_walks(model, prompts, how) for prompts in concepts]
    calls = how.steps * (len(base_walks) + sum(map(len, concept_walks)))

    with readers.attached(), tqdm(total=calls, desc="FIA saliency", unit="call", leave=False, disable=None) as bar:

        def advance(walks: list[tuple[int, Iterator[Tensor]]], spread: bool) -> dict[str, Moments]:
            moments = readers.open(spread)
            for readers.prompts, walk in walks:
                next(walk)
                bar.update()
            return moments

        def settle(index: int, moments: dict[str, Moments], ceilings: Mapping[str, Tensor]) -> None:
            def layer(name: str) -> None:
                take(index, name, contrast(moments.pop(name), ceilings[name]))

            each_by_threads(layer, layers, model.device)

        for _ in range(how.steps):
            base_moments = advance(base_walks, spread=True)
            ceilings = {name: ceiling(base_moments.pop(name)) for name in layers}
            for index, walks in enumerate(concept_walks):
                settle(index, advance(walks, spread=False), ceilings)
            del ceilings  # or they would lie beside the next step's moments
