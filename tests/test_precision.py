"""What half precision, and batches and chunks of other sizes, do to masks and pictures is measured and printed."""

from __future__ import annotations

import json

import pytest
import torch

from experiments import consistency, precision

SMALL = [
    "model=folder", "device=cpu", "task.concepts=[tench,church]", "task.keep=[]",
    "method.sampler.steps=2", "method.num_pairs=2", "method.steps=2", "method.r2=0.05",
]  # fmt: skip


def test_masks_by_half_precision_are_compared_three_ways(random_sd_folder, tmp_path, capsys):
    settings = [*SMALL, f"model.path={random_sd_folder}", f"store={tmp_path / 'store'}"]
    assert precision.main([*settings, "dtype=bfloat16"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["bfloat16"] and len(found["bfloat16"]) == 3
    for pair in found["bfloat16"].values():
        assert 0 <= pair["differing"] < pair["selected"] and pair["share"] == pair["differing"] / pair["selected"]
    with_float32 = found["bfloat16"]["float32 model, Y as the layer gives it"]
    assert with_float32["differing"] > 0, "the model in bfloat16 was not one"
    assert not (tmp_path / "store").exists()


def test_the_difference_counts_what_only_one_selects():
    one, other = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert precision.difference({"a": one}, {"a": other}) == {"selected": 3, "differing": 2, "share": 2 / 3}


def test_masks_of_other_methods_are_refused(random_sd_folder, capsys):
    assert (
        precision.main(["model=folder", "device=cpu", "task.keep=[]", "method=uce", f"model.path={random_sd_folder}"])
        == 2
    )
    assert "say method=fia" in capsys.readouterr().err


def test_batches_and_chunks_of_other_sizes_differ_by_rounding_only(random_sd_folder, capsys):
    settings = ["edit_only=true", "sampler=ddim20", "sampler.steps=2", "task.n=2", f"model.path={random_sd_folder}"]
    assert consistency.main([*SMALL, *settings]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pictures"]["pictures"] == 4 and found["pictures"]["largest_difference"] <= 1
    assert found["masks"]["concepts"] == 2 and found["masks"]["selected"] > 0
    assert found["masks"]["reasons"]["unexplained"] == 0
    assert consistency.main(["task.nn=3"]) == 2
    assert "unknown key 'task.nn'" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_other_precision_is_refused(dtype, capsys):
    assert precision.main([f"dtype={dtype}"]) == 2
    error = capsys.readouterr().err
    assert "float16 or bfloat16" in error and len(error.splitlines()) == 1
