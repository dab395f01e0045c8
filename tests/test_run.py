"""The pipeline from a configuration to a record, on a small random model with a judge of our own (toy_suite)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_suite
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from experiments import scores, stages
from experiments.config import ROOT_KEYS
from experiments.run import benchmark, plan
from experiments.setup import setup
from harness.edit import Edit, NoEffectError
from harness.model import DiffusionModel
from harness.record import read
from harness.store import Store

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
TINY_WORLD = ROOT / "tinyworld" / "tiny-v1"
FEW = ["method.num_pairs=1", "method.words=[road]", "method.sampler.name=ddim", "method.sampler.steps=2"]
SMALL_FIA = ["method=fia", *FEW, "method.steps=1", "method.r2=0.3", "method.alpha=1.0"]


def config(*overrides: str, search: Path | None = None) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        own = [f"hydra.searchpath=[file://{search}]"] if search else []
        return compose("config", overrides=[*own, *overrides])


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, random_sd_folder: Path) -> Any:
    """Composes a small run on the random model; all tests of this file share one store."""
    root = tmp_path_factory.mktemp("toy")
    search = toy_suite.write(root / "conf")

    base = [
        *("model=folder", f"model.path={random_sd_folder}", "suite=toy", "sampler=ddim20", "sampler.steps=2"),
        *("task=custom", "task.concepts=[tench,golf ball]", "task.keep=[church]", "task.n=2", "quality.n=3"),
        *(f"store={root / 'store'}", f"records={root / 'records'}", "device=cpu"),
    ]

    def build(*overrides: str) -> DictConfig:
        return config(*base, *overrides, search=search)

    build.command = [f"hydra.searchpath=[file://{search}]", *base]
    build.store = root / "store"
    build.records = root / "records"
    return build


@pytest.fixture(scope="module")
def first(toy: Any) -> tuple[Any, Path]:
    """The first run: everything is made."""
    return benchmark(toy(*SMALL_FIA))


def values(metrics: list[Any]) -> dict[tuple[str, str], Any]:
    plain = [m if isinstance(m, dict) else vars(m) for m in metrics]
    return {(m["id"], m["subject"]): m["value"] for m in plain}


def test_a_run_ends_in_a_record_that_can_be_read(first: tuple[Any, Path], toy: Any):
    path = first[1]
    data = read(path)
    assert path.parent == toy.records
    assert (data.method, data.task, data.model, data.suite, data.split) == ("fia", "custom", "folder", "toy", "test")
    assert [c["name"] for c in data.concepts] == ["tench", "golf ball"] and data.keep == ["church"]
    assert set(data.fingerprints) == {"base", "edit", "classes", "quality"}
    assert data.config["dtype"] == "float32" and data.config["device"] == "cpu"  # what `auto` became
    families = {m["id"].partition("/")[0] for m in data.metrics}
    assert {"forget_accuracy", "preserve_accuracy", "overall_score", "fid_vs_base"} <= families
    # 6 class pictures and 3 captions, before and after; ddim with 2 steps and guidance: 4 samples a picture.
    assert data.counts["images_made"] == 18 and data.counts["images_reused"] == 0
    assert data.cost["stages"]["pictures edited"]["unet_samples"] >= 9 * 4
    # Nothing was stored, so the edit's full cost is this run's. Base and two concepts, one pair, one guided step each.
    assert data.cost["edit_made"]["runs"] == 1 and data.cost["edit_made"]["device"] == "cpu"
    assert data.cost["edit_made"]["unet_samples"] == data.cost["stages"]["edit"]["unet_samples"] == 3 * 2
    assert (
        0 < data.edit["shares"]["pipeline"] < data.edit["shares"]["unet"] < data.edit["shares"]["layers"] < 0.6
    )  # two masks of r2 each
    assert all(metric["n"] > 0 for metric in data.metrics)


def test_the_unedited_model_is_measured_on_the_same_prompts(first: tuple[Any, Path]):
    data = read(first[1])
    classes = [key for key in values(data.metrics) if key[0].startswith(("forget", "preserve", "overall"))]
    assert set(classes) <= set(values(data.unedited))
    # It is not compared with itself.
    assert not any(key[0].startswith("fid_vs_base") for key in values(data.unedited))


def test_the_grid_lies_beside_the_record(first: tuple[Any, Path]):
    with Image.open(first[1].with_suffix(".png")) as image:
        assert image.height > 3 * 128  # three classes


def test_pictures_are_scored_from_memory_as_they_are_made(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No picture is read back for a judge, and the numbers are those of pictures that are read."""
    from harness import generate

    monkeypatch.setattr(generate, "SCORED", 3)
    own, events = Store.read_image, []
    monkeypatch.setattr(Store, "read_image", lambda *given: events.append("read") or own(*given))
    rows, write = scores.stored_rows, Store.write_image
    monkeypatch.setattr(scores, "stored_rows", lambda *given: events.append("rows") or rows(*given))
    monkeypatch.setattr(Store, "write_image", lambda *given: events.append("write") or write(*given))
    settings = [*SMALL_FIA, f"store={tmp_path / 'store'}", f"records={tmp_path / 'records'}", "model.batch_size=3"]
    made, _ = benchmark(toy(*settings))
    last = max(at for at, event in enumerate(events) if event == "write")
    assert "read" not in events[:last] and "rows" in events[:last], "scores wait until all pictures are made"
    shutil.rmtree(tmp_path / "store" / "rows")
    events.clear()
    again, _ = benchmark(toy(*settings))
    assert "read" in events and "write" not in events
    assert (again.metrics, again.unedited) == (made.metrics, made.unedited)


def test_a_stored_run_loads_no_weights_and_says_the_same(
    first: tuple[Any, Path], toy: Any, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights are loaded although everything is stored")

    monkeypatch.setattr(DiffusionModel, "load", refuse)
    record, path = benchmark(toy(*SMALL_FIA))
    assert path == first[1]
    assert record.counts["images_made"] == 0 and record.counts["images_reused"] == 18
    assert record.counts["edit_reused"] == 1 and record.cost["unet_samples"] == 0
    assert values(record.metrics) == values(first[0].metrics)
    assert record.cost["edit_made"] == first[0].cost["edit_made"]  # what the edit cost is not forgotten


def test_a_stored_run_imports_neither_diffusers_nor_transformers(first: tuple[Any, Path], toy: Any, tmp_path: Path):
    command = [*toy.command, *SMALL_FIA, f"records={tmp_path / 'records'}"]
    code = (
        f"import sys, run; code = run.main({command!r}); "
        "print(code, sorted({'diffusers', 'transformers', 'torch'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "0 ['torch']", done.stdout + done.stderr
    (path,) = (tmp_path / "records").glob("*.json")
    assert read(path).counts["images_reused"] == 18


def test_another_r2_needs_no_calibration_and_shares_the_unedited_pictures(first: tuple[Any, Path], toy: Any):
    record, path = benchmark(toy(*SMALL_FIA, "method.r2=0.2"))
    assert path != first[1]
    assert record.cost["stages"]["edit"]["unet_samples"] == 0
    assert record.cost["stages"]["pictures unedited"]["unet_samples"] == 0
    full = first[0].cost["edit_made"]
    assert record.cost["edit_made"]["unet_samples"] == full["unet_samples"] and record.cost["edit_made"]["runs"] == 2
    assert record.counts["images_made"] == 9
    assert record.fingerprints["edit"] != first[0].fingerprints["edit"]


def test_masks_that_are_found_bring_the_cost_of_their_saliency(first: tuple[Any, Path], toy: Any):
    record, _ = benchmark(toy(*SMALL_FIA, "task.concepts=[golf ball]", "task.keep=[]", "edit_only=true"))
    assert record.counts["edit_reused"] == 0 and record.cost["stages"]["edit"]["unet_samples"] == 0
    # Both concepts were measured in one pass: an upper bound for one of them.
    assert record.cost["edit_made"]["unet_samples"] == first[0].cost["edit_made"]["unet_samples"]


def test_what_decides_speed_only_finds_the_edit_and_replaces_the_record(first: tuple[Any, Path], toy: Any):
    record, path = benchmark(toy(*SMALL_FIA, "method.group=1", "method.chunk=3"))
    assert path == first[1] and record.counts["edit_reused"] == 1
    assert read(path).config["speed"] == {"group": 1, "chunk": 3, "r1_grid": None}
    assert "chunk" not in read(path).config["method"]
    parts = setup(toy(*SMALL_FIA, "method.chunk=3"))
    assert (parts.method.group, parts.method.chunk) == (None, 3)


def test_the_unedited_model_as_a_method(first: tuple[Any, Path], toy: Any):
    record, path = benchmark(toy("method=none"))
    assert path.name.startswith("none-")
    assert record.counts["images_made"] == 0  # shared with the first run
    assert values(record.metrics) == values(first[0].unedited) == values(record.unedited)
    assert record.edit["kind"] == "none"


def test_pictures_do_not_depend_on_the_batch_size(first: tuple[Any, Path], toy: Any, tmp_path: Path):
    record, _ = benchmark(toy(*SMALL_FIA, "model.batch_size=5", f"store={tmp_path}"))
    assert record.counts["images_made"] == 18
    assert values(record.metrics) == pytest.approx(values(first[0].metrics), abs=1e-3)


def test_dry_run_counts_what_is_missing(first: tuple[Any, Path], toy: Any):
    done = plan(toy(*SMALL_FIA))
    assert done["edits_stored"] == 1 and done["unet_samples"] == 0 and all(item["make"] == 0 for item in done["sets"])
    new = plan(toy(*SMALL_FIA, "method.alpha=0.9", "method.r2=0.25", "task.n=3"))
    assert new["edits_stored"] == 0 and new["repeats"] == 1
    made = {(item["name"], item["edited"]): item["make"] for item in new["sets"]}
    assert made == {("classes", False): 3, ("classes", True): 9, ("quality", False): 0, ("quality", True): 3}
    assert new["unet_samples"] == 15 * 4
    assert new["disk_bytes"] > 0


def test_dry_run_writes_nothing(toy: Any, tmp_path: Path):
    plan(toy(*SMALL_FIA, f"store={tmp_path / 'store'}", f"records={tmp_path / 'records'}"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "concepts"), [("object", "tench,golf ball"), ("style", "Van Gogh,Monet"), ("explicit", "nudity,marked")]
)
def test_edit_only_exports_a_plain_folder_with_exactly_the_masked_weights_zero(
    toy: Any, tmp_path: Path, random_sd_folder: Path, kind: str, concepts: str
):
    from diffusers import StableDiffusionPipeline

    out = tmp_path / "out"
    task = (f"task.kind={kind}", f"task.concepts=[{concepts}]", "task.keep=[]")
    record, _ = benchmark(toy(*SMALL_FIA, *task, "edit_only=true", f"export={out}"))
    assert not record.metrics and record.counts["images_made"] == 0
    stored = [Edit.load(path) for path in toy.store.glob("edit/*/*/edit_1.safetensors")]
    edit = next(edit for edit in stored if edit.fingerprint == record.fingerprints["edit"])
    before = StableDiffusionPipeline.from_pretrained(random_sd_folder).unet.state_dict()
    after = StableDiffusionPipeline.from_pretrained(out).unet.state_dict()
    assert before.keys() == after.keys() and edit.tensors
    for name, weight in before.items():
        expected = weight.masked_fill(edit.tensors[name], 0) if name in edit.tensors else weight
        assert (after[name] == expected).all(), name


def test_an_edit_without_effect_is_a_failure_unless_allowed(toy: Any):
    noop = [*SMALL_FIA, "task.concepts=[tench]", "method.single_concept=paper_noop"]
    with pytest.raises(NoEffectError, match="tau_ca"):
        benchmark(toy(*noop))
    record, _ = benchmark(toy(*noop, "allow_noop=true"))
    assert "changes nothing" in record.note
    assert values(record.metrics) == values(record.unedited)
    with pytest.raises(NoEffectError):  # also now that it is stored
        benchmark(toy(*noop))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["schedule=sequentail"], "sequential"),
        (["order=-1"], "order=-1: say given, or a seed"),
        (["schedule=jiont"], "did you mean joint"),
        (["repeats=0"], "repeats=0: a whole number of at least 1"),
        (["repeats=true"], "repeats=True"),
        (["repeats=2", "schedule=sequential"], "not available with schedule=sequential"),
        (["repeats=2", f"seed={2**63 - 1}"], "the last repeat's seed"),
        (["replay=x.json"], "replay is not available"),
        (["seed=-1"], "seed=-1"),
        (["dry_run=maybe"], "dry_run='maybe': say true or false"),
        (["device=tpu"], "device='tpu'"),
        (["dtype=float23"], "did you mean"),
        (["model.batch_size=0"], "model.batch_size"),
        (["task.concepts=[]"], "task.concepts"),
        (["task.n=0"], "task.n"),
        (["quality.n=-1"], "quality.n"),
        (["model.path=nowhere"], "nowhere"),
        (["task.kind=style", "task.keep=[]", "quality.n=0"], "edit_only=true"),
    ],
)
def test_bad_input_is_one_clear_line(toy: Any, overrides: list[str], words: str):
    from experiments.cli import BAD_INPUT, exit_code, one_line

    with pytest.raises(Exception) as caught:
        setup(toy(*overrides))
    line = one_line(caught.value)
    assert words in line and "\n" not in line
    assert exit_code(caught.value) == BAD_INPUT


def test_a_device_that_is_not_there_is_the_machine_s_fault(toy: Any):
    from experiments.cli import FAILED, exit_code, one_line

    with pytest.raises(ValueError, match="CUDA devices; say device=cpu") as caught:
        setup(toy("device=cuda:77"))
    assert exit_code(caught.value) == FAILED and "\n" not in one_line(caught.value)


def test_an_export_folder_in_use_is_refused_before_anything_is_computed(toy: Any, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        setup(toy(*SMALL_FIA, f"export={tmp_path}"))


# Configurations


def test_root_keys_are_the_documented_ones():
    assert set(config()) == set(ROOT_KEYS)


def test_the_model_chooses_suite_sampler_and_captions_and_the_user_has_the_last_word():
    assert (config().suite.name, config().sampler.name) == ("tiny", "dpm++")
    sd = config("model=sd15")
    assert (sd.suite.name, sd.sampler.name, sd.sampler.steps) == ("sd", "pndm", 50)
    assert config("model=sd15", "sampler=ddim20").sampler.name == "ddim"
    assert config("model=folder", "suite=tiny").suite.name == "tiny"


def test_presets_give_way_to_experiments_and_the_command_line():
    preset = yaml.safe_load((CONF / "preset" / "tiny" / "fia.yaml").read_text())["method"]
    assert preset["r2"] != 0.007
    assert config().method.r2 == preset["r2"] and config().method.preset == "tiny"
    assert config("method.r2=0.5").method.r2 == 0.5
    sd = config("model=sd15").method
    assert sd.r2 == 0.007 and "preset" not in sd


@pytest.mark.parametrize(
    ("kind", "r1", "r2", "alpha"),
    [("object", 0.05, 0.007, 0.6), ("style", 0.05, 0.02, 0.8), ("explicit", 0.05, 0.01, 0.6)],
)
def test_fia_takes_the_papers_values_for_the_kind_of_the_task(kind: str, r1: float, r2: float, alpha: float):
    own = ["model=folder", "task=custom", f"task.kind={kind}"]
    for name in ("fia", "fia_release"):
        method = config(*own, f"method={name}").method
        assert (method.r1, method.r2, method.alpha) == (r1, r2, alpha)
    method = config(*own, "method.r2=0.5", "method.alpha=0.25").method
    assert (method.r1, method.r2, method.alpha) == (r1, 0.5, 0.25)


def test_the_papers_table_gives_way_to_a_share_that_is_said():
    method = config("model=sd15", "task=imagenette").method
    assert method.r1_per_concept == method.r2_per_concept == "paper"
    method = config("model=sd15", "task=imagenette", "method.r2=0.01").method
    assert method.r1_per_concept == "paper" and method.r2_per_concept is None
    method = config("model=sd15", "task=imagenette", "method.r1=0.05").method
    assert method.r1_per_concept is None and method.r2_per_concept == "paper"
    assert config("model=sd15", "method.r2=0.01", "method.r2_per_concept=paper").method.r2_per_concept == "paper"
    assert config("model=sd15", "+method.preset=x", "method.alpha=1").method.r2_per_concept == "paper"


@pytest.mark.skipif(not TINY_WORLD.exists(), reason="the tiny world's weights are not in this checkout")
def test_a_world_is_shown_under_the_name_on_its_card(tmp_path: Path):
    name = json.loads((TINY_WORLD / "world.json").read_text())["name"]
    parts = setup(config("edit_only=true", f"store={tmp_path}"))
    assert parts.model.words == f"the embedded tiny world, not Stable Diffusion ({name})"
    assert name not in (CONF / "model" / "tiny.yaml").read_text().replace("./tinyworld/tiny-v1 ", "")


@pytest.mark.skipif(not TINY_WORLD.exists(), reason="the tiny world's weights are not in this checkout")
@pytest.mark.parametrize("role", ["judges", "model"])
def test_a_world_that_is_not_what_was_frozen_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str):
    copy = shutil.copytree(TINY_WORLD, tmp_path / "world")
    (copy / "vae" / "config.json").write_text((copy / "vae" / "config.json").read_text() + " ")
    if role == "judges":
        monkeypatch.setattr("tinyworld.freeze.WORLD", copy.parent / "tiny-v1")
        copy.rename(copy.parent / "tiny-v1")
    asked = ["model=folder", f"model.path={copy}"] if role == "model" else []
    with pytest.raises(ValueError, match=r"vae/config.json is not the file that was frozen as tiny-v1") as caught:
        setup(config(*asked, "edit_only=true", f"store={tmp_path / 'store'}"))
    assert "\n" not in str(caught.value) and not (tmp_path / "store").exists()


def test_the_preset_is_recorded_and_not_given_to_the_method(toy: Any, tmp_path: Path):
    (tmp_path / "preset" / "toy").mkdir(parents=True)
    (tmp_path / "preset" / "toy" / "fia.yaml").write_text("method: {preset: mine, r2: 0.25}")
    cfg = toy(*(o for o in SMALL_FIA if "r2" not in o), "edit_only=true", "+method.preset=mine")
    parts = setup(cfg)
    assert parts.preset == "mine" and "preset" not in parts.config["method"]


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_composes(name: str):
    assert config(f"+experiment={name}").records.startswith("runs/")


@pytest.mark.slow
@pytest.mark.skipif(not TINY_WORLD.exists(), reason="the tiny world's weights are not in this checkout")
def test_the_default_run_on_the_tiny_world(tmp_path: Path):
    places = (f"store={tmp_path / 'store'}", f"records={tmp_path / 'records'}")
    few = ("task.n=1", "quality.n=2", "method.num_pairs=1", "model.batch_size=4")
    record, path = benchmark(config(*few, *places))
    assert record.world.startswith("tiny-v1") and record.preset == "tiny"
    assert "not Stable Diffusion" in record.note
    families = {m["id"].partition("/")[0] for m in json.loads(path.read_text())["metrics"]}
    assert {"forget_accuracy", "preserve_accuracy", "overall_score", "clip", "fid"} <= families
    assert np.isfinite([m["value"] for m in json.loads(path.read_text())["metrics"] if m["value"] is not None]).all()


def test_a_sequential_schedule_is_scored_after_each_stage(toy, capsys):
    record, path = benchmark(toy(*SMALL_FIA, "schedule=sequential", "order=3"))
    assert [len(stage["concepts"]) for stage in record.stages] == [1, 2]
    assert set(record.stages[-1]["concepts"]) == {"tench", "golf ball"}
    ids = {metric["id"] for metric in json.loads(path.read_text())["stages"][0]["metrics"]}
    assert any(id.startswith("forget_accuracy") for id in ids) and not any(id.startswith("clip") for id in ids)
    # The last stage is the result: the same pictures, the same values.
    last = {(value.id, value.subject): value.value for value in record.stages[-1]["metrics"]}
    final = {(value.id, value.subject): value.value for value in record.metrics}
    assert last and last.items() <= final.items()
    joint, joint_path = benchmark(toy(*SMALL_FIA))
    assert joint.stages == [] and joint.identity != record.identity
    # What came back, as a table: the value after the own stage and after the last.
    assert stages.main([str(path)]) == 0
    name = record.stages[-1]["concepts"][0]
    line = stages.by_concept(json.loads(path.read_text()))[name]
    text = capsys.readouterr().out
    assert f"| {name} | " + " | ".join(f"{100 * value:.0f}" for value in line) + " |" in text
    assert "| fia | " in text and "In brackets: its turn had not come. 2 pictures a concept." in text
    assert stages.main([str(joint_path)]) == 2 and "schedule=sequential" in capsys.readouterr().err
