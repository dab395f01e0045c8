"""Samples that are dealt out to threads are those of one thread, and errors and hooks reach the caller."""

from __future__ import annotations

import threading

import pytest
import torch

from harness.sampler import Sampler
from harness.threads import LEAST_SHARE, by_threads, each_by_threads

SAMPLER = Sampler("ddim", 3, 4.0)
CPU = torch.device("cpu")
PROMPTS = ["a dog", "a church", "a road", "a tree", "a house"]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_rows_keep_their_order_and_every_thread_is_alone(two_threads):
    rows, seen = torch.arange(2 * LEAST_SHARE + 1), {}

    def compute(share: slice) -> torch.Tensor:
        seen[threading.current_thread().name] = (share, torch.get_num_threads(), torch.is_grad_enabled())
        return rows[share] * 2

    assert torch.equal(by_threads(compute, len(rows), CPU), rows * 2)
    assert torch.get_num_threads() == 2
    assert all(threads == 1 and not gradients for _, threads, gradients in seen.values())
    assert threading.current_thread().name not in seen


def test_every_piece_is_done_once_by_a_thread_that_is_alone(two_threads):
    done, alone = [], []

    def work(piece: int) -> None:
        alone.append(torch.get_num_threads() == 1 and not torch.is_grad_enabled())
        done.append(piece)
        if piece == 7:
            raise FloatingPointError("piece 7")

    each_by_threads(work, range(7), CPU)
    assert sorted(done) == list(range(7)) and all(alone)
    with pytest.raises(FloatingPointError, match="piece 7"):
        each_by_threads(work, [7], CPU)


@pytest.mark.parametrize(("rows", "device"), [(2 * LEAST_SHARE - 1, CPU), (100, torch.device("meta"))])
def test_few_rows_and_other_devices_are_computed_at_once(two_threads, rows, device):
    shares = []

    def compute(share: slice) -> torch.Tensor:
        shares.append((share, threading.current_thread()))
        return torch.zeros(rows)[share]

    assert len(by_threads(compute, rows, device)) == rows
    assert shares == [(slice(0, rows), threading.current_thread())]


def test_an_error_of_one_share_is_the_callers(two_threads):
    def compute(share: slice) -> torch.Tensor:
        if share.start:
            raise FloatingPointError("the second share")
        return torch.zeros(share.stop)

    with pytest.raises(FloatingPointError, match="the second share"):
        by_threads(compute, 4 * LEAST_SHARE, CPU)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_pictures_are_those_of_all_threads_together(two_threads, request, family):
    model = request.getfixturevalue(f"random_{family}_model")
    text, noise = model.encode(PROMPTS), model.latents(range(len(PROMPTS)))
    together = model.denoise(text, noise, SAMPLER, 4.0)
    calls = model.calls
    apart = model.denoise(text, noise, SAMPLER, 4.0, in_threads=True)
    assert model.calls == 2 * calls == 2 * 2 * len(PROMPTS) * SAMPLER.calls()
    # Fewer rows an operation round in another order.
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)
    assert together.abs().max() > 0.1


def test_a_hook_sees_the_whole_batch(two_threads, random_sd_model):
    model, seen = random_sd_model, set()
    for layer in model.layers("ffn2").values():
        layer.register_forward_pre_hook(lambda _, args: seen.add(len(args[0])))
    model.denoise(model.encode(PROMPTS), model.latents(range(len(PROMPTS))), SAMPLER, 4.0, in_threads=True)
    assert seen == {2 * len(PROMPTS)}
