"""The whole pipeline on a small random SDXL: as a folder, as a single file, in a schedule, for every kind of task."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import single_file
import torch
import toy_explicit
import toy_suite
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from experiments.run import benchmark, plan
from harness.model import DiffusionModel
from harness.record import read

CONF = Path(__file__).resolve().parents[1] / "conf"
FAST = ["method.sampler.name=ddim", "method.sampler.steps=2"]
TRAINED = [
    *FAST,
    "method.images=2",
    "method.epochs=1",
    "method.batch=2",
    "method.learning_rate=1e-3",
    "method.precision=float32",
]
# A mask from activations, a closed form, a training.
METHODS = {
    "fia": [*FAST, "method.num_pairs=1", "method.words=[road]", "method.steps=1", "method.r2=0.3", "method.alpha=1.0"],
    "uce": [],
    "mim_mu": TRAINED,
}
CLASSES = [
    *("suite=toy", "task=custom", "task.concepts=[tench,golf ball]", "task.keep=[church]", "task.n=1"),
    "quality.n=3",
]
EXPLICIT = [
    *("suite=toy_explicit", "suite.prompts.explicit._target_=toy_explicit.sized", "task=i2p", "task.n=2"),
    "quality.n=0",
]
ARTISTS = [
    *("suite=toy", "+suite.prompts.artists={_target_: tinyworld.prompts.artists, _partial_: true}", "task=artists"),
    "suite.metrics=[{_target_: eval.style.StyleSimilarity, encoder: {_target_: toy_suite.Palette}}]",
    *("task.concepts=[Monet]", "task.keep=[Van Gogh]", "task.n=1", "quality.n=0"),
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, random_sdxl_folder: Path) -> Any:
    """Composes a small run on the random SDXL; all tests of this file share one store."""
    root = tmp_path_factory.mktemp("toy_xl")
    search = [f"file://{suite.write(root / suite.__name__)}" for suite in (toy_suite, toy_explicit)]

    def build(name: str, *overrides: str, task: list[str] = CLASSES) -> DictConfig:
        base = [
            *(f"hydra.searchpath=[{','.join(search)}]", "model=folder", f"model.path={random_sdxl_folder}"),
            *("sampler=euler50", "sampler.steps=2", f"method={name}", *METHODS[name], *task, "device=cpu"),
            *(f"store={root / 'store'}", f"records={root / 'records'}"),
        ]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", overrides=[*base, *overrides])

    return build


@pytest.mark.parametrize("name", METHODS)
def test_a_run_ends_in_a_record(toy: Any, name: str):
    before = plan(toy(name))
    record, path = benchmark(toy(name))
    data = read(path)
    assert data.method == name and data.edit["kind"] == {"fia": "mask"}.get(name, "delta")
    assert {metric["id"].partition("/")[0] for metric in data.metrics} >= {"forget_accuracy", "fid_vs_base"}
    # 3 class pictures and 3 captions; the unedited ones are shared by all methods.
    assert record.counts["images_made"] == sum(item["make"] for item in before["sets"]) in (6, 12)
    # Two guided steps each, and the second batch of two is filled up in both sets.
    assert record.cost["stages"]["pictures edited"]["unet_samples"] == 8 * 2 * 2
    assert data.config["model"]["published"] is None
    again, _ = benchmark(toy(name))
    assert again.counts["images_made"] == 0 and again.counts["edit_reused"] == 1


def test_a_dry_run_counts_every_stage_of_a_sequential_schedule(toy: Any):
    sequential = toy("uce", "schedule=sequential")
    edited = [item for item in plan(sequential)["sets"] if item["edited"]]
    assert [(item["name"], item["make"]) for item in edited] == [("classes", 3), ("classes", 3), ("quality", 3)]
    planned = sum(item["make"] for item in plan(sequential)["sets"])
    record, _ = benchmark(sequential)
    assert record.counts["images_made"] == planned
    assert all(item["make"] == 0 for item in plan(sequential)["sets"])


def test_rows_of_another_size_than_the_models_in_two_repeats(toy: Any, monkeypatch: pytest.MonkeyPatch):
    shapes, told = [], set()
    detect, conditioning = toy_explicit.Colours.detect, DiffusionModel._size_conditioning

    def seen(self, images) -> list:
        shapes.extend(image.shape for image in images)
        return detect(self, images)

    def noted(self, *args) -> dict:
        found = conditioning(self, *args)
        told.update(map(tuple, found["added_cond_kwargs"]["time_ids"].int().tolist()))
        return found

    monkeypatch.setattr(toy_explicit.Colours, "detect", seen)
    monkeypatch.setattr(DiffusionModel, "_size_conditioning", noted)
    record, path = benchmark(toy("uce", "repeats=2", task=EXPLICIT))
    # Two rows, before and after, in both repeats; (height, width) twice, with no crop between.
    assert record.counts["images_made"] == 8 and sorted(shapes) == [(16, 40, 3)] * 4 + [(24, 48, 3)] * 4
    assert told == {(24, 48, 0, 0, 24, 48), (16, 40, 0, 0, 16, 40)}
    found = {(m["id"].partition("/")[0], m["subject"]): m for m in read(path).metrics}
    boxes, change = found["marker_boxes", "all"], found["change", "all"]
    assert boxes["repeats"] == change["repeats"] == 2 and boxes["n"] == 4 and boxes["value"] > 0 and change["value"] > 0


def test_artists_are_scored_by_style(toy: Any):
    record, path = benchmark(toy("uce", task=ARTISTS))
    assert record.counts["images_made"] == 4
    found = {m["id"]: m["value"] for m in read(path).metrics if m["subject"] == "all"}
    assert found["clip_a_difference/toy-palette/x100/name"] != 0
    assert {"clip_a/toy-palette/x100/prompt", "fsr/toy-palette/name", "clip_a_kept/toy-palette/x100/name"} <= set(found)
    with Image.open(path.with_suffix(".png")) as grid:
        assert np.asarray(grid).std() > 0


def test_a_single_file_runs_like_the_folder(toy: Any, random_sdxl_folder: Path, tmp_path: Path, monkeypatch):
    shutil.copytree(random_sdxl_folder, tmp_path, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    pipe = diffusers.DiffusionPipeline.from_pretrained(random_sdxl_folder)
    file = single_file.save_single_file(pipe, tmp_path / "model.safetensors")
    with monkeypatch.context() as patched:
        patched.setattr(DiffusionModel, "load", lambda *_, **__: pytest.fail("a dry run loads no weights"))
        assert sum(item["make"] for item in plan(toy("uce", f"model.path={file}"))["sets"]) == 12
    record, _ = benchmark(toy("uce", f"model.path={file}"))
    folder, _ = benchmark(toy("uce"))
    assert record.fingerprints["base"] != folder.fingerprints["base"]
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        one, other = (
            getattr(DiffusionModel.load(path).pipe, part).state_dict() for path in (file, random_sdxl_folder)
        )  # fmt: skip
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    # The same numbers lie at other addresses, where a processor's library may add up in another order: a pixel may
    # differ by the last bits of its model.
    values = [{(value.id, value.subject): value.value for value in run.metrics} for run in (record, folder)]
    assert values[0].keys() == values[1].keys()
    for (metric, subject), value in values[0].items():
        close = pytest.approx(values[1][metric, subject], rel=1e-3)
        assert value == (close if metric.startswith(("fid", "kid")) else values[1][metric, subject]), metric
