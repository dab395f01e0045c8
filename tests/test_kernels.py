"""FIA's kernels for GPUs: their logic in Triton's interpreter, that they compile, and what runs where they do not."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fia import activity as layer_activity
from fia import statistics
from fia.statistics import Calibration
from harness.sampler import Sampler

pytest.importorskip("triton", reason="Triton is not packaged for this system")

ROOT = Path(__file__).resolve().parents[1]


def test_their_logic_is_right_in_triton_s_interpreter():
    """In a process of its own, because Triton decides once, when it is imported, whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/interpreted_kernels.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_they_are_left_where_plain_operations_are_cheaper_or_more_exact(monkeypatch):
    asked = []
    monkeypatch.setattr(statistics, "fused", lambda device: asked.append(device))
    how = Calibration(Sampler("pndm", 3, 7.5), steps=2, seed=1, size=(32, 32))
    x = torch.zeros(2, 3, 40, 3)
    assert statistics._kernels(x, torch.zeros(12, 3), how) is None, "the Gram form of narrow inputs"
    exact = Calibration(how.sampler, 2, 1, (32, 32), dtype="float64")
    wide = torch.zeros(2, 3, 5, 6)
    assert statistics._kernels(wide, torch.zeros(4, 6), exact) is None
    assert statistics._kernels(wide.double(), torch.zeros(4, 6), how) is None
    assert not asked
    statistics._kernels(wide, torch.zeros(4, 6), how)
    assert asked == [wide.device]


@pytest.mark.parametrize("problem", ["raises", "differs"])
def test_where_they_do_not_run_plain_operations_do_and_the_log_says_so(problem, monkeypatch, caplog):
    def difference(module: ModuleType, device: torch.device) -> float:
        if problem == "raises":
            raise RuntimeError("Failed to find C compiler\nand more")
        return 0.5

    monkeypatch.setattr(layer_activity, "_difference", difference)
    layer_activity.fused.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert layer_activity.fused(torch.device("cuda")) is None
        assert layer_activity.fused(torch.device("cuda")) is None
    layer_activity.fused.cache_clear()
    words = "Failed to find C compiler" if problem == "raises" else "by 5.0e-01 of the largest value"
    assert len(caplog.messages) == 1 and words in caplog.messages[0] and "\n" not in caplog.messages[0]
    assert layer_activity.fused(torch.device("cpu")) is None


COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from fia import kernels

POINTERS = {"x": "fp16", "bias": "fp16"}
INTEGERS = ("tokens", "channels", "row_stride", "token_stride", "rows", "columns", "prompts", "before")

def build(kernel, chip, **constants):
    kinds = {
        name: "constexpr" if name in constants else "i32" if name in INTEGERS else "*" + POINTERS.get(name, "fp32")
        for name in kernel.arg_names
    }
    built = compile(ASTSource(kernel, kinds, constexprs=constants), target=GPUTarget("cuda", chip, 32))
    assert built.asm["cubin"], kernel

for chip in (80, 90):
    build(kernels.sum_tokens, chip, BIAS=True, TOKENS=kernels._TOKENS, CHANNELS=kernels._CHANNELS)
    for first in (False, True):
        build(kernels.add_prompts, chip, FIRST=first, HALVES=2, BIAS=True, SPREAD=not first,
              ROWS=kernels._ROWS, COLUMNS=kernels._COLUMNS)
"""


def test_they_compile_for_gpus_without_one(tmp_path):
    """For the chips of an A100 and of an H100 or H200, by the compilers that come with Triton."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_they_run_on_this_gpu():
    layer_activity.fused.cache_clear()
    assert layer_activity.fused(torch.device("cuda")) is not None
