"""Contrastive concept saliency (Eq. 1-2): how much stronger a weight works when the concept is in the prompt.

For one layer with weight `W` [Cout, Cin], and the inputs `X` [N, Cin] of one prompt at one denoising step,

    Eq. 1   U_ij = |W_ij| * ||X_j|| * |<X_j, Y_i>| / (||X_j|| ||Y_i|| + eps)        Y = X W^T, without the bias
    Eq. 2   S_ij = max(0, mean_concept U - mean_base U - std_base U)                over prompts, at one step

`|W|` is the same for every prompt, so only the *activity* `U / |W|` is followed here and `S = |W| * contrast`.

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

EPS = 1e-8
HALVES = ("both", "cond", "uncond")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


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


def activity(x: Tensor, weight: Tensor, *, cosine: bool, row_normalise: bool, dtype: str = "float32") -> Tensor:
    """`U / |W|` of Eq. 1 for a batch of prompts.

    Args:
        x: layer inputs [prompts, tokens, Cin], any float dtype.
        weight: [Cout, Cin].
        cosine: with the cosine factor the result is dense; without it U is rank one and a vector is enough.
        row_normalise: unit-length token vectors first; an all-zero token stays zero.
        dtype: arithmetic of the inner products; norms and the result are at least float32.

    Returns:
        [prompts, Cout, Cin] with the cosine factor, [prompts, Cin] without.
    """
    work = torch.float64 if dtype == "float64" else torch.float32
    x = x.to(work)
    if row_normalise:
        x = nn.functional.normalize(x, dim=-1, eps=1e-12)
    norm = torch.linalg.vector_norm(x, dim=1)
    if not cosine:
        return norm
    inner, out_norm = _inner_products(x.to(DTYPES[dtype]), weight.to(DTYPES[dtype]))
    norm = norm[:, None, :]
    scale = (norm * out_norm.to(work)[:, :, None]).add_(EPS)
    return inner.to(work).abs_().mul_(norm).div_(scale)


def _inner_products(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """`<X_j, Y_i>` [prompts, Cout, Cin] and `||Y_i||` [prompts, Cout], by the cheaper of two equal ways.

    Directly, `Y = X W^T` and `Y^T X`; or from the Gram matrix `G = X^T X`, as `W G` and the diagonal of `W G W^T`
    (narrow inputs and many tokens, such as the first feed-forward projection).
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    tokens, (rows, columns) = x.shape[1], weight.shape
    if (tokens + rows) * columns < 2 * tokens * rows:
        inner = weight @ (x.mT @ x)
        return inner, (inner * weight).sum(-1, dtype=wide).clamp_(min=0).sqrt_()
    y = x @ weight.T
    return torch.bmm(y.mT, x), torch.linalg.vector_norm(y, dim=1, dtype=wide)


@dataclass
class Moments:
    """Running mean, and population variance where `spread`, over prompts; batches are merged as Chan et al. do.

    The two-moment formula (mean of squares minus square of mean) would lose the digits that Eq. 2 subtracts.
    """

    spread: bool = False
    count: int = 0
    mean: Tensor | None = None
    m2: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Take in `values` [prompts, ...]."""
        n, total = values.shape[0], self.count + values.shape[0]
        mean = values.mean(0)
        m2 = (values - mean).square_().sum(0) if self.spread else None
        if self.count == 0:
            self.mean, self.m2 = mean, m2
        else:
            delta = mean.sub_(self.mean)
            if self.spread:
                self.m2.add_(m2).add_(delta.square(), alpha=self.count * n / total)
            self.mean.add_(delta, alpha=n / total)
        self.count = total

    def std(self) -> Tensor:
        """Population standard deviation (divided by n, as released; the paper does not say)."""
        return (self.m2 / self.count).sqrt()


def contrast(concept: Moments, base: Moments) -> Tensor:
    """Eq. 2 without the factor |W|: `max(0, mu_c - mu_b - sigma_b)`."""
    return (concept.mean - base.mean - base.std()).clamp_(min=0)


@dataclass
class _Readers:
    """Forward pre-hooks that reduce what every layer receives and add it to the moments that are open."""

    layers: Mapping[str, nn.Linear]
    calibration: Calibration
    prompts: int = 0
    moments: dict[str, Moments] = field(default_factory=dict)

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = [layer.register_forward_pre_hook(self._reader(name)) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def open(self, spread: bool) -> dict[str, Moments]:
        self.moments = {name: Moments(spread) for name in self.layers}
        return self.moments

    def _reader(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        how = self.calibration

        def read(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = one_prompt_each(args[0], self.prompts, how.halves)
            self.moments[name].add(
                activity(x, layer.weight, cosine=how.cosine, row_normalise=how.row_normalise, dtype=how.dtype)
            )

        return read


def one_prompt_each(x: Tensor, prompts: int, halves: str) -> Tensor:
    """The rows of every prompt: [2 * prompts, tokens, Cin] to [prompts, tokens or 2 * tokens, Cin].

    The batch is [unconditional half; conditional half], as `DiffusionModel.trajectory` promises.
    """
    if x.shape[0] != 2 * prompts:
        raise ValueError(f"a layer saw {x.shape[0]} samples for {prompts} prompts; both guidance halves are needed")
    x = x.reshape(2, prompts, -1, x.shape[-1])
    if halves == "both":
        return torch.cat((x[0], x[1]), dim=1)
    return x[1] if halves == "cond" else x[0]


def _walks(model: DiffusionModel, prompts: Sequence[str], how: Calibration) -> list[tuple[int, Iterator[Tensor]]]:
    """One started trajectory per chunk of prompts, with the number of prompts in it."""
    conditioning = model.encode(prompts)
    walks = []
    for start in range(0, len(prompts), how.chunk):
        part = conditioning[start : start + how.chunk]
        n = len(prompts[start : start + how.chunk])
        latents = model.latents([how.seed] * n, *how.size)
        walk = model.trajectory(
            part, latents, how.sampler, how.sampler.guidance, size=how.size, both_halves=True
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

    Device memory holds the moments of one step: mean and variance of the base prompts, the mean of one concept. It
    depends neither on the number of steps nor on the number of concepts or prompts.

    Args:
        layers: layers to read, by module name.
        base: prompts without a concept, shared by all concepts.
        concepts: prompts of each concept.
        take: called as `take(concept index, layer name, contrast)`, once a step, concept and layer; the contrast is
            [Cout, Cin] with the cosine factor and [Cin] without, to be multiplied by |W|.
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

        for _ in range(how.steps):
            base_moments = advance(base_walks, spread=True)
            for index, walks in enumerate(concept_walks):
                moments = advance(walks, spread=False)
                for name in layers:
                    take(index, name, contrast(moments.pop(name), base_moments[name]))
