"""What Eq. 1 and 2 say of one layer: the activity of its weights under every prompt, and its moments over prompts.

For a layer with weight `W` [Cout, Cin] and the inputs `X` [N, Cin] of one prompt at one denoising step,

    Eq. 1   U_ij = |W_ij| * ||X_j|| * |<X_j, Y_i>| / (||X_j|| ||Y_i|| + eps)        Y = X W^T, without the bias
    Eq. 2   S_ij = max(0, mean_concept U - mean_base U - std_base U)                over prompts, at one step

`|W|` is the same for every prompt, so only the *activity* `U / |W|` is followed and `S = |W| * contrast`. This module
has it in plain tensor operations; `kernels.py` does the common case on a GPU in fewer passes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

EPS = 1e-8
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
# Of results by kernels, as a share of the largest value: float32 rounds both ways in other places.
TOLERANCE = 1e-5
# Entries of U, and of X, that are worked on at once: what a processor's cache holds, or what keeps an accelerator busy.
_ENTRIES = {"cpu": 2**20, "accelerator": 2**26}


def activity(
    x: Tensor, weight: Tensor, y: Tensor | None = None, *, cosine: bool, row_normalise: bool, dtype: str = "float32"
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """`U / |W|` of Eq. 1 for a batch of prompts, as fractions `|a| / b` of a few prompts at a time.

    Eq. 1 divided by `||X_j||` is `|<X_j, Y_i>| / (||Y_i|| + eps / ||X_j||)`; a channel that is always zero gives 0.

    Args:
        x: layer inputs [guidance halves, prompts, tokens, Cin], any float dtype; a prompt's tokens of all halves count.
        weight: [Cout, Cin].
        y: `x W^T` [guidance halves, prompts, tokens, Cout] in the dtype of the inner products, where the layer has it
            already; otherwise it is computed where it is needed. It is not read with `row_normalise`.
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
    by_gram = gram_is_cheaper(halves * tokens, weight, given=y is not None)
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


def gram_is_cheaper(tokens: int, weight: Tensor, given: bool) -> bool:
    """Whether `W (X^T X)` is less arithmetic than `X^T Y`, and than Y before it where that is not `given`."""
    rows, columns = weight.shape
    return (tokens + rows) * columns < (1 if given else 2) * tokens * rows


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

    def add_layer(self, x: Tensor, output: Tensor, bias: Tensor | None, kernels: ModuleType) -> None:
        """Take in `U / |W|` of Eq. 1 of every prompt, with the cosine factor, by `fia.kernels` (see `kernels.add`)."""
        if not self.count:
            self.total = torch.empty(output.shape[-1], x.shape[-1], device=x.device)
            self.m2 = torch.empty_like(self.total) if self.spread else self.m2
        m2 = self.m2 if self.spread else None
        kernels.add(x, output, bias, total=self.total, m2=m2, before=self.count, eps=EPS)
        self.count += x.shape[1]

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    def std(self) -> Tensor:
        """Population standard deviation (divided by n, as released; the paper does not say)."""
        return (self.m2 / self.count).sqrt_()


def contrast(concept: Moments, least: Tensor) -> Tensor:
    """Eq. 2 without the factor |W|: `max(0, mu_c - (mu_b + sigma_b))`; `concept` is used up."""
    return concept.total.div_(concept.count).sub_(least).clamp_(min=0)


def ceiling(base: Moments) -> Tensor:
    """What a concept's mean has to exceed: `mu_b + sigma_b`."""
    return base.std().add_(base.total.div_(base.count))


def fused(weight: Tensor) -> ModuleType | None:
    """`fia.kernels` where they run for layers with such weights, which is tried once for a device and dtype.

    A word in the log says where a GPU does not run them.
    """
    return _tried(weight.device, weight.dtype) if weight.is_cuda else None


@cache
def _tried(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    try:
        from . import kernels

        largest = _difference(kernels, device, dtype)
    except Exception as error:  # Triton is missing, or finds no compiler: whatever it raises, nothing but time is lost
        why = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        if largest <= TOLERANCE:
            return kernels
        why = f"they differ from plain tensor operations by {largest:.1e} of the largest value"
    log.warning(
        "FIA's kernels do not run on %s in %s (%s); plain tensor operations do their work, slower",
        *(device, str(dtype).removeprefix("torch."), why),
    )
    return None


@torch.no_grad()
def _difference(kernels: ModuleType, device: torch.device, dtype: torch.dtype) -> float:
    """The largest difference between both ways on random numbers, as a share of the largest value.

    With and without a spread, of one half and of both, three prompts after two; the plain way in float64.
    """
    numbers = torch.Generator().manual_seed(0)
    sizes = ((2, 5, 150, 200), (72, 200), (72,))
    x, weight, bias = (torch.randn(size, generator=numbers).to(device, dtype) for size in sizes)
    output = nn.functional.linear(x, weight, bias)
    differences = []
    for halves, spread in ((2, True), (1, False)):
        x, output = x[:halves], output[:halves]
        moments, plain = Moments(spread), Moments(spread)
        for few in (slice(0, 2), slice(2, 5)):
            moments.add_layer(x[:, few], output[:, few], bias, kernels)
        y = output.double() - bias.double()
        for values, divisor in activity(x, weight, y, cosine=True, row_normalise=False, dtype="float64"):
            plain.add(values, divisor)
        pairs = [(moments.mean, plain.mean), *([(moments.std(), plain.std())] if spread else [])]
        differences += [(one - other).abs().max() / other.max() for one, other in pairs]
    return float(torch.stack(differences).max())  # NaN, where one is
