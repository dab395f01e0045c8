"""FIA's kernels for GPUs: their logic in Triton's interpreter, that they compile, and what runs where they do not."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from fia import activity as layer_activity
from fia import statistics
from fia.statistics import Calibration, contrast_each_step
from harness.sampler import Sampler

pytest.importorskip("triton", reason="Triton is not installed; it comes with torch for Linux and GPUs")

ROOT = Path(__file__).resolve().parents[1]


def test_their_logic_is_right_in_triton_s_interpreter():
    """In a process of its own, because Triton decides once, when it is imported, whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/interpreted_kernels.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("kind", "asked"), [("ffn1", False), ("ffn2", True)])
def test_they_are_left_where_the_gram_form_is_cheaper(random_sd_model, monkeypatch, kind, asked):
    """Inputs of first projections are narrow; then nobody needs Y either."""
    weights, given = [], []
    own = statistics.activity
    monkeypatch.setattr(statistics, "fused", lambda weight: weights.append(weight))
    monkeypatch.setattr(statistics, "activity", lambda x, w, y, **how: given.append(y) or own(x, w, y, **how))
    how = Calibration(Sampler("pndm", 3, 7.5), steps=1, seed=1, size=(64, 64))
    layers = {name: layer for name, layer in random_sd_model.layers(kind).items() if ".0." in name}
    contrast_each_step(random_sd_model, layers, ["a road"], [["a tree"]], how, lambda *_: None)
    assert given and bool(weights) == asked and all((y is not None) == asked for y in given)


@pytest.mark.parametrize("problem", ["raises", "differs", "nan"])
def test_where_they_do_not_run_plain_operations_do_and_the_log_says_so(problem, monkeypatch, caplog):
    def difference(module: ModuleType, device: torch.device, dtype: torch.dtype) -> float:
        if problem == "raises":
            raise RuntimeError("Failed to find C compiler\nand more")
        return 0.5 if problem == "differs" else math.nan

    monkeypatch.setattr(layer_activity, "_difference", difference)
    layer_activity._tried.cache_clear()
    on_gpu = SimpleNamespace(is_cuda=True, device=torch.device("cuda:0"), dtype=torch.float16)
    with caplog.at_level(logging.WARNING):
        assert layer_activity.fused(on_gpu) is None
        assert layer_activity.fused(on_gpu) is None
    layer_activity._tried.cache_clear()
    words = {
        "raises": "Failed to find C compiler",
        "differs": "by 5.0e-01 of the largest",
        "nan": "by nan of the largest",
    }
    assert len(caplog.messages) == 1 and "\n" not in caplog.messages[0]
    assert words[problem] in caplog.messages[0] and "cuda:0 in float16" in caplog.messages[0]
    assert layer_activity.fused(torch.zeros(2, 3)) is None


COMPILE = """
from itertools import product
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from fia import kernels

INTEGERS = ("tokens", "channels", "row_stride", "token_stride", "rows", "columns")
ANY_NUMBER = ("prompts", "before")

def build(kernel, chip, dtype, **constants):
    kinds, aligned = {}, {}
    for place, name in enumerate(kernel.arg_names):
        number = name in INTEGERS + ANY_NUMBER
        pointer = "*" + (dtype if name in ("x", "bias") else "fp32")
        kinds[name] = "constexpr" if name in constants else "i32" if number else pointer
        if name not in constants and name not in ANY_NUMBER:
            aligned[place,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, kinds, constexprs=constants, attrs=aligned)
    built = compile(source, target=GPUTarget("cuda", chip, 32), options=dict(kernels._OPTIONS))
    assert built.asm["cubin"], kernel

for chip, dtype in ((80, "fp16"), (90, "fp16"), (90, "bf16"), (90, "fp32")):
    for bias in (False, True):
        build(kernels.sum_tokens, chip, dtype, BIAS=bias, TOKENS=kernels._TOKENS, CHANNELS=kernels._CHANNELS)
for first, halves, bias, spread in product((False, True), (1, 2), (False, True), (False, True)):
    build(kernels.add_prompts, 90, "fp16", FIRST=first, HALVES=halves, BIAS=bias, SPREAD=spread,
          ROWS=kernels._ROWS, COLUMNS=kernels._COLUMNS)
build(kernels.add_prompts, 80, "bf16", FIRST=False, HALVES=2, BIAS=True, SPREAD=True,
      ROWS=kernels._ROWS, COLUMNS=kernels._COLUMNS)
"""


def test_they_compile_for_gpus_without_one(tmp_path):
    """For the chips of an A100 and of an H100 or H200, by the compilers that come with Triton."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_they_run_on_this_gpu(dtype):
    layer_activity._tried.cache_clear()
    assert layer_activity.fused(torch.zeros(2, 3, device="cuda", dtype=dtype)) is not None
