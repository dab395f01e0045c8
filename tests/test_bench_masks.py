"""What FIA's masks cost: the measurement counts the same work, the floor follows from shapes, ties are told apart."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from experiments import bench_masks, bench_released, floor
from fia.saliency import LARGEST_GROUP

SMALL = [
    "model=folder", "device=cpu", "sampler=ddim20", "sampler.steps=2", "task.concepts=[tench,church]", "task.keep=[]",
    "method.num_pairs=3", "method.steps=2", "method.chunk=2", "method.r2=0.05",
]  # fmt: skip


@pytest.fixture
def settings(random_sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(bench_masks, "RESULTS", tmp_path / "results" / "bench")
    return [*SMALL, f"model.path={random_sd_folder}", f"store={tmp_path / 'store'}", f"records={tmp_path / 'runs'}"]


def test_the_masks_cost_is_measured_in_paired_rounds(settings, tmp_path, capsys):
    assert bench_masks.main(["--rounds", "2", "--steps", "1", *settings]) == 0
    path = tmp_path / "results" / "bench" / "masks-folder-cpu.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    # Three base prompts and three for each of two concepts, guided, one step; denoised bare, and with statistics.
    assert result["unet_samples"] == 2 * 3 * 3 and result["concepts"] == 2 and result["steps"] == 1
    parts = {"denoising", "statistics", "products", "thresholds", "sorts", "selection"}
    assert [set(seconds) for seconds in result["rounds"]] == [parts] * 2
    own, rounds = result["medians"], result["rounds"]
    assert own["ratio"] == pytest.approx(statistics.median(s["statistics"] / s["denoising"] for s in rounds))
    calls = 3 * 2  # chunks of two: two calls for the prompts of each
    assert own["floor"] == pytest.approx(statistics.median(1 + calls * s["products"] / s["denoising"] for s in rounds))
    assert own["ratio_to_floor"] > 0 and own["sort_to_threshold"] > 0
    shown = path.with_suffix(".md").read_text(encoding="utf-8")
    assert shown in capsys.readouterr().out and "| ratio : floor |" in shown
    assert not (tmp_path / "store").exists()


def test_the_floor_of_the_exact_term_follows_from_the_shapes():
    """X^T Y is as much arithmetic as the layer: all FFN2 layers have 3.2 % of SD 1.5's, counted per guidance half."""
    own = floor.published("sd")
    tokens = {320: 64 * 64, 640: 32 * 32, 1280: 16 * 16}
    expected = sum(2 * tokens[c] * c * 4 * c * 5 for c in tokens) + 2 * 8 * 8 * 1280 * 5120  # five a width; the middle
    assert own.product == expected and own.weights == 49_561_600
    assert own.share(2) == 2 * own.share(1) == pytest.approx(0.064, abs=0.001)
    least, plain = own.traffic(2, chunk=8, element=2)
    assert least < plain and own.state() <= 250e6 and own.state(3) - own.state() == 2 * own.weights
    small = floor.tiny()
    assert floor.group_on(own, 24e9)[0] == LARGEST_GROUP
    assert small.share(2) == 2 * small.product / small.unet > 0
    assert floor.table({"sd": own, "tiny": small}).count("\n") == 4


def test_no_clone_of_the_release_is_bad_input(tmp_path, capsys):
    assert bench_released.main(["--released", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "no clone of the released program" in error and len(error.splitlines()) == 1


def test_ties_are_told_from_differences():
    scores = np.array([[0.9, 0.5, 0.5, 0.1], [0.8, 0.2, 0.1, 0.0]])
    ours = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=bool)
    theirs = np.array([[1, 0, 1, 0], [1, 0, 0, 0]], dtype=bool)  # the other of two equal scores
    assert bench_released.differing(scores, ours, theirs, 0.5) == (2, 0)
    theirs[1, 0] = False
    assert bench_released.differing(scores, ours, theirs, 0.5) == (3, 1)


@pytest.mark.parametrize(
    ("extra", "says"),
    [(["method=none"], "method=fia"), (["method=fia_release"], "method=fia"), (["--steps", "0"], "at least 1")],
)
def test_bad_input_is_one_line(settings, extra, says, capsys):
    kept = [text for text in settings if not text.startswith("method.")]
    assert bench_masks.main([*kept, *extra]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1
