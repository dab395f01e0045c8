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
from harness.threads import each_by_threads

EPS = 1e-8
HALVES = ("both", "cond", "uncond")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
# Entries of U, and of X, that are worked on at once: what a processor's cache holds, or what keeps an accelerator busy.
_ENTRIES = {"cpu": 2**20, "accelerator": 2**26}


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


def activity(
    x: Tensor, weight: Tensor, y: Tensor | None = None, *, cosine: bool, row_normalise: bool, dtype: str = "float32"
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """`U / |W|` of Eq. 1 for a batch of prompts, as fractions `|a| / b` of a few prompts at a time.

    Eq. 1 divided by `||X_j||` is `|<X_j, Y_i>| / (||Y_i|| + eps / ||X_j||)`; a channel that is always zero gives 0.

    Args:
        x: layer inputs [guidance halves, prompts, tokens, Cin], any float dtype; a prompt's tokens of all halves count.
        weight: [Cout, Cin].
        y: `x W^T` [guidance halves, prompts, tokens, Cout] in the dtype of the inner products, where the layer has it
            already; otherwise it is computed where it is needed.
        cosine: with the cosine factor U / |W| is dense; without it U is rank one and a vector is enough.
        row_normalise: unit-length token vectors first; an all-zero token stays zero.
        dtype: arithmetic of the inner products; norms and the result are at least float32.

    Yields:
        `a` and `b`, both [prompts, Cout, Cin], with the cosine factor; [prompts, Cin] and None, which stands for 1,
        without. They belong to the caller.
    """
    work = torch.float64 if dtype == "float64" else torch.float32
    if not cosine:
        yield (_unit_norms if row_normalise else _norms)(x.to(work)), None
        return
    if row_normalise:
        x, y = nn.functional.normalize(x.to(work), dim=-1, eps=1e-12), None
    weight = weight.to(DTYPES[dtype])
    halves, prompts, tokens, columns = x.shape
    by_gram = (halves * tokens + len(weight)) * columns < (1 if y is not None else 2) * halves * tokens * len(weight)
    entries = _ENTRIES["cpu" if x.device.type == "cpu" else "accelerator"]
    at_once = max(1, entries // max(weight.numel(), halves * tokens * columns))
    for start in range(0, prompts, at_once):
        few = slice(start, start + at_once)
        own = x[:, few].to(work)
        x_few = own.to(DTYPES[dtype])
        if by_gram:
            inner, out_norm = _by_gram(x_few, weight, work)
        else:
            y_few = x_few @ weight.mT if y is None else y[:, few]
            inner, out_norm = products_of(y_few, x_few), _norms(y_few.to(work))
        yield inner.to(work), out_norm[:, :, None] + (EPS / _norms(own))[:, None, :]


def products_of(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of channels, one matrix a prompt: [halves, prompts, tokens, m] and n to [prompts, m, n]."""
    inner = torch.bmm(left[0].mT, right[0])
    for left_half, right_half in zip(left[1:], right[1:], strict=True):
        inner.baddbmm_(left_half.mT, right_half)
    return inner


def _by_gram(x: Tensor, weight: Tensor, work: torch.dtype) -> tuple[Tensor, Tensor]:
    """`<X_j, Y_i>` and `||Y_i||` without Y, from the Gram matrix `G = X^T X`: `W G` and the diagonal of `W G W^T`.

    Cheaper where inputs are narrow and tokens many, such as in the first feed-forward projection.
    """
    inner = weight @ products_of(x, x)
    return inner, (inner * weight).sum(-1, dtype=work).clamp_(min=0).sqrt_()


def _norms(x: Tensor) -> Tensor:
    """Length of every channel over all tokens and halves: [halves, prompts, tokens, n] to [prompts, n]."""
    # Not vector_norm: along such a dimension its kernel for processors is up to forty times slower.
    halves = x.square().sum(-2)
    return (halves[0] if len(halves) == 1 else halves.sum(0)).sqrt_()


def _unit_norms(x: Tensor) -> Tensor:
    """The same after every token was scaled to unit length."""
    squares = x.square()
    return squares.div_(squares.sum(-1, keepdim=True).clamp_(min=1e-24)).sum(-2).sum(0).sqrt_()


@dataclass
class Moments:
    """Running mean, and population variance where `spread`, over prompts, a few prompts at a time.

    The two-moment formula (mean of squares minus square of mean) would lose the digits that Eq. 2 subtracts; instead
    squared distances from the mean of the few are added up, and those of their mean from the mean so far (Chan, Golub
    and LeVeque 1983).

    Attributes:
        total: sum of the values.
        m2: sum of the squared distances from the mean.
    """

    spread: bool = False
    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    m2: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, values: Tensor, divisor: Tensor | None = None) -> None:
        """Take in `|values| / divisor` [prompts, ...]; `values` is used up."""
        values.abs_()
        if divisor is not None:
            values.div_(divisor)
        before, few = self.count, len(values)
        self.count += few
        own = values.sum(0)
        if self.spread:
            mean = own / few
            squares = values.sub_(mean).square_().sum(0)
            if before:
                squares.add_(mean.sub_(self.total, alpha=1 / before).square_(), alpha=before * few / self.count)
            self.m2 = self.m2.add_(squares) if before else squares
        self.total = self.total.add_(own) if before else own

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    def std(self) -> Tensor:
        """Population standard deviation (divided by n, as released; the paper does not say)."""
        return (self.m2 / self.count).sqrt_()


def contrast(concept: Moments, ceiling: Tensor) -> Tensor:
    """Eq. 2 without the factor |W|: `max(0, mu_c - (mu_b + sigma_b))`; `concept` is used up."""
    return concept.total.div_(concept.count).sub_(ceiling).clamp_(min=0)


def _ceiling(base: Moments) -> Tensor:
    """What a concept's mean has to exceed: `mu_b + sigma_b`."""
    return base.std().add_(base.total.div_(base.count))


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
            x = one_prompt_each(args[0], self.prompts, how.halves)
            y: Tensor | None = None
            # What the layer has computed is Y only where it was not rounded to fewer digits than are asked for; in
            # shorter types taking the bias off again would lose more.
            exact = DTYPES[how.dtype] in (torch.float32, torch.float64)
            if how.cosine and exact and output.dtype == layer.weight.dtype == DTYPES[how.dtype]:
                with_bias = one_prompt_each(output, self.prompts, how.halves)
                y = with_bias if layer.bias is None else with_bias - layer.bias
            fractions = activity(
                x, layer.weight, y, cosine=how.cosine, row_normalise=how.row_normalise, dtype=how.dtype
            )  # fmt: skip
            for values, divisor in fractions:
                self.moments[name].add(values, divisor)

        return read


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
            ceilings = {name: _ceiling(base_moments.pop(name)) for name in layers}
            for index, walks in enumerate(concept_walks):
                settle(index, advance(walks, spread=False), ceilings)
            del ceilings  # or they would lie beside the next step's moments
