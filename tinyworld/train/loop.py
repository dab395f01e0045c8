"""The one training loop of the recipe: seeded by step, resumable after a kill, with progress and an average."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from .recipe import Stage

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 120


def fit(
    name: str,
    module: torch.nn.Module,
    loss: Callable[[np.random.Generator, int], torch.Tensor],
    stage: Stage,
    folder: Path,
    seed: int,
) -> None:
    """Train `module` in place for `stage.steps` steps of `loss(rng, step)`.

    The batch of a step depends on (seed, step) alone, so a run that was killed continues as if it had not been.
    With `stage.ema` the module ends with its averaged weights.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=stage.lr, weight_decay=stage.weight_decay, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=stage.lr, total_steps=stage.steps + 1, pct_start=0.08, cycle_momentum=False
    )
    average = [p.detach().clone() for p in parameters]
    checkpoint = folder / f"{name}.checkpoint"
    start, recent = 0, None
    if checkpoint.exists():
        # Our own file of tensors and numbers; weights_only refuses anything else.
        state = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        average, start, recent = state["average"], state["step"], state["recent"]
        log.info("%s: resumed at step %d", name, start)

    def save(step: int) -> None:
        partial = checkpoint.with_suffix(".part")
        torch.save(
            {
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "average": average,
                "step": step,
                "recent": recent,
            },
            partial,
        )
        os.replace(partial, checkpoint)

    module.train()
    saved = time.monotonic()
    bar = tqdm(range(start, stage.steps), initial=start, total=stage.steps, desc=name, mininterval=5)
    for step in bar:
        torch.manual_seed(seed * 1_000_003 + step)
        value = loss(np.random.default_rng((seed, step, 1)), step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if stage.ema:
            # The average starts short, so that the first steps are forgotten quickly.
            decay = min(stage.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        # A NaN loss would train on for an hour before anybody saw it.
        current = value.item()
        if not np.isfinite(current):
            raise FloatingPointError(f"{name}: loss is {current} at step {step}")
        recent = current if recent is None else 0.98 * recent + 0.02 * current
        if step % 25 == 0:
            bar.set_postfix(loss=f"{recent:.4f}")
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            save(step + 1)
            saved = time.monotonic()
    if stage.ema:
        with torch.no_grad():
            for p, a in zip(parameters, average):
                p.copy_(a)
    module.eval()
    checkpoint.unlink(missing_ok=True)
    log.info("%s: %d steps, loss %.4f", name, stage.steps, recent if recent is not None else float("nan"))


def fit_cycles(
    name: str,
    module: torch.nn.Module,
    loss: Callable[[np.random.Generator, int], torch.Tensor],
    stages: Sequence[Stage],
    folder: Path,
    seed: int,
) -> None:
    """`fit` once a stage, each with a fresh optimiser and learning-rate cycle; finished cycles are not run again.

    Here `loss(rng, batch)` is told the batch size of the cycle.
    """
    for number, stage in enumerate(stages, start=1):
        done = folder / f"{name}_cycle_{number}.safetensors"
        if done.exists():
            module.load_state_dict(load_file(done))
            continue
        fit(f"{name}_{number}", module, lambda rng, step, n=stage.batch: loss(rng, n), stage, folder, seed + number)
        partial = done.with_suffix(".part")
        save_file({key: value.contiguous() for key, value in module.state_dict().items()}, partial)
        os.replace(partial, done)
    module.eval()


def autocast() -> torch.autocast:
    """bfloat16 where the processor has it: about twice as fast, at no visible cost; without it, ten times slower."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())
