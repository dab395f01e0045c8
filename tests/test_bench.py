"""The benchmark of speed measures what it says, on a small random model."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from experiments import bench

SMALL = [
    "model=folder", "device=cpu", "sampler=ddim20", "sampler.steps=2", "task.concepts=[tench,church]", "task.keep=[]",
    "method.num_pairs=3", "method.steps=2", "method.chunk=2", "method.r2=0.05",
]  # fmt: skip


@pytest.fixture
def settings(random_sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results" / "bench")
    return [*SMALL, f"model.path={random_sd_folder}", f"store={tmp_path / 'store'}", f"records={tmp_path / 'runs'}"]


def test_every_round_counts_the_same_work(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert bench.main(["--rounds", "2", *settings]) == 0
    result = json.loads((tmp_path / "results" / "bench" / "folder-cpu.json").read_text(encoding="utf-8"))
    assert len(result["rounds"]) == 2
    for stages in result["rounds"]:
        samples = {name: stage["unet_samples"] for name, stage in stages.items()}
        # Guided samples count twice. Calibration: 3 base prompts for all and 3 for each of 2 concepts, 2 steps.
        assert samples == {
            "pictures": 2 * 2 * result["batch_size"],
            "denoising": 2 * 2 * 3,
            "calibration": 2 * 2 * (3 + 2 * 3),
        }
        assert all(stage["seconds"] > 0 for stage in stages.values())
    medians = result["medians"]
    seconds = [stages["calibration"]["seconds"] for stages in result["rounds"]]
    assert medians["calibration_seconds"] == pytest.approx(statistics.median(seconds))
    assert medians["images_per_second"] > 0 and medians["calibration_to_denoising"] > 0
    assert result["environment"]["hardware"]["cores"] >= 1
    assert "ratio" in capsys.readouterr().out
    assert not (tmp_path / "store").exists(), "measuring must not read or fill the store"


@pytest.mark.parametrize(
    ("extra", "says"),
    [(["method=none"], "method=fia"), (["device=warp9"], "device"), (["--rounds", "0"], "at least 1")],
)
def test_bad_input_is_one_line(settings: list[str], extra: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    kept = [text for text in settings if not text.startswith("method.")]
    assert bench.main([*kept, *extra]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1
