# mypy: disable-error-code="no-untyped-def"
"""Eq. 1 and its sums over prompts on a GPU: what follows the products, in one kernel instead of a dozen operations.

`activity.py` has the same in plain tensor operations, which is the reference, and what runs where these kernels do
not. They read a layer's input and output in the dtype that the layer computes in, and sum up in float32:

    inner products   D_ij = sum_n X_nj Z_ni       Z = Y + b, the layer's own output: one product a half, by the library
    sums of tokens   x_j = sum_n X_nj,  ||X_j||^2,  ||Y_i||^2 = sum_n (Z_ni - b_i)^2
    Eq. 1            U_ij / |W_ij| = |D_ij - x_j b_i| / (||Y_i|| + eps / ||X_j||)

so Y is never written, and neither is U: of every prompt it goes straight into the running sum and, for the base
prompts, the running sum of squared distances from the mean (Welford 1962).
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

# What one program works on. Products of prompts and halves that are held at once have _ENTRIES entries at most.
_TOKENS, _CHANNELS = 128, 64
_ROWS, _COLUMNS = 8, 128
_ENTRIES = 2**26
# A product and a sum round one after the other, as plain tensor operations do; quotients may differ by two last bits.
_OPTIONS = {"enable_fp_fusion": False}


@triton.jit
def sum_tokens(
    x, bias, sums, squares, tokens, channels, row_stride, token_stride,
    BIAS: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sum, and sum of squares, of a block of one sample's tokens less the bias: x [rows, tokens, channels]."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    row = tl.program_id(2)
    real = channel < channels
    inside = (token < tokens)[:, None] & real[None, :]
    places = row.to(tl.int64) * row_stride + token[:, None] * token_stride + channel[None, :]
    values = tl.load(x + places, mask=inside, other=0).to(tl.float32)
    if BIAS:
        values = tl.where(inside, values - tl.load(bias + channel, mask=real, other=0).to(tl.float32)[None, :], 0)
    place = (tl.program_id(1) * tl.num_programs(2) + row) * channels + channel
    tl.store(sums + place, tl.sum(values, 0), mask=real)
    tl.store(squares + place, tl.sum(values * values, 0), mask=real)


@triton.jit(do_not_specialize=["prompts", "before"])
def add_prompts(
    first, second, x_sums, bias, y_norms, slack, total, m2, rows, columns, prompts, before,
    FIRST: tl.constexpr, HALVES: tl.constexpr, BIAS: tl.constexpr, SPREAD: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add U / |W| of some prompts to what `before` prompts have summed up to, for one block of a layer."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    is_row, is_column = row < rows, column < columns
    inside = is_row[:, None] & is_column[None, :]
    place = row[:, None] * columns + column[None, :]
    summed = tl.zeros((ROWS, COLUMNS), tl.float32)
    mean, squares = summed, summed
    if not FIRST:
        summed = tl.load(total + place, mask=inside, other=0)
    if SPREAD and not FIRST:
        mean = summed / before
        squares = tl.load(m2 + place, mask=inside, other=0)
    if BIAS:
        offset = tl.load(bias + row, mask=is_row, other=0).to(tl.float32)
    for prompt in range(prompts):
        one = prompt * rows * columns + place
        inner = tl.load(first + one, mask=inside, other=0)
        if HALVES == 2:
            inner += tl.load(second + one, mask=inside, other=0)
        if BIAS:
            x_sum = tl.load(x_sums + prompt * columns + column, mask=is_column, other=0)
            inner -= offset[:, None] * x_sum[None, :]
        y_norm = tl.load(y_norms + prompt * rows + row, mask=is_row, other=1)
        least = tl.load(slack + prompt * columns + column, mask=is_column, other=1)
        value = tl.abs(inner) / (y_norm[:, None] + least[None, :])
        summed += value
        if SPREAD:
            distance = value - mean
            mean += distance / (before + prompt + 1)
            squares += distance * (value - mean)
    tl.store(total + place, summed, mask=inside)
    if SPREAD:
        tl.store(m2 + place, squares, mask=inside)


def sums_over_tokens(x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum and sum of squares of every channel over all tokens and halves: [halves, prompts, tokens, n] to [prompts, n].

    Args:
        bias: [n], taken off every token first.
    """
    halves, prompts, tokens, channels = x.shape
    x = x.flatten(0, 1)
    x = x if x.stride(-1) == 1 else x.contiguous()
    blocks = triton.cdiv(tokens, _TOKENS)
    sums, squares = torch.empty(2, blocks, halves, prompts, channels, device=x.device)
    sum_tokens[(triton.cdiv(channels, _CHANNELS), blocks, halves * prompts)](
        x, x if bias is None else bias, sums, squares, tokens, channels, x.stride(0), x.stride(1),
        BIAS=bias is not None, TOKENS=_TOKENS, CHANNELS=_CHANNELS, **_OPTIONS,
    )  # fmt: skip
    return sums.sum((0, 1)), squares.sum((0, 1))


def products(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of channels in float32, one matrix a prompt: [prompts, tokens, m] and n to [prompts, m, n].

    On CUDA numbers of half precision go to the tensor cores, which multiply them exactly and add up in float32.
    """
    if left.dtype == torch.float32 or not left.is_cuda:
        return torch.bmm(left.mT.float(), right.float())
    return torch.bmm(left.mT, right, out_dtype=torch.float32)


def add(
    x: Tensor, output: Tensor, bias: Tensor | None, total: Tensor, m2: Tensor | None, before: int, eps: float
) -> None:
    """Add U / |W| of every prompt to the running sums, in place.

    Args:
        x: layer inputs [guidance halves, prompts, tokens, Cin]; a prompt's tokens of all halves count.
        output: the layer's own outputs [guidance halves, prompts, tokens, Cout], with the bias.
        bias: [Cout].
        total: sum over the prompts so far [Cout, Cin], float32; overwritten where `before` is 0.
        m2: sum of squared distances from the mean, the same; None where it is not asked for.
        before: how many prompts these hold.
        eps: of Eq. 1.
    """
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(total):
        halves, prompts = x.shape[:2]
        rows, columns = total.shape
        x_sums, x_squares = sums_over_tokens(x)
        y_norms = sums_over_tokens(output, bias)[1].sqrt_()
        slack = eps / x_squares.sqrt_()
        grid = (triton.cdiv(columns, _COLUMNS), triton.cdiv(rows, _ROWS))
        at_once = max(1, _ENTRIES // (halves * rows * columns))
        for start in range(0, prompts, at_once):
            few = slice(start, start + at_once)
            inner = [products(output[half, few], x[half, few]) for half in range(halves)]
            add_prompts[grid](
                inner[0], inner[-1], x_sums[few], x if bias is None else bias, y_norms[few], slack[few],
                total, total if m2 is None else m2, rows, columns, len(inner[0]), before + start,
                FIRST=before + start == 0, HALVES=halves, BIAS=bias is not None, SPREAD=m2 is not None,
                ROWS=_ROWS, COLUMNS=_COLUMNS, **_OPTIONS,
            )  # fmt: skip
