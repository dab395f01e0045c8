"""The pipeline from a configuration to a record, on a small random model with a judge of our own (toy_suite)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_suite
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from experiments.run import benchmark, plan
from experiments.setup import ROOT_KEYS, setup
from harness.edit import Edit, NoEffectError
from harness.model import DiffusionModel
from harness.record import read

CONF = Path(__file__).resolve().parents[1] / "conf"
TINY_WORLD = Path(__file__).resolve().parents[1] / "tinyworld" / "tiny-v1"
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

    def build(*overrides: str) -> DictConfig:
        base = [
            *("model=folder", f"model.path={random_sd_folder}", "suite=toy", "sampler=ddim20", "sampler.steps=2"),
            *("task=custom", "task.concepts=[tench,golf ball]", "task.keep=[church]", "task.n=2", "quality.n=3"),
            *(f"store={root / 'store'}", f"records={root / 'records'}", "device=cpu"),
        ]
        return config(*base, *overrides, search=search)

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
    assert record.cost["edit_made"]["unet_samples"] > 0  # what the edit cost is not forgotten


def test_another_r2_needs_no_calibration_and_shares_the_unedited_pictures(first: tuple[Any, Path], toy: Any):
    record, path = benchmark(toy(*SMALL_FIA, "method.r2=0.2"))
    assert path != first[1]
    assert record.cost["stages"]["edit"]["unet_samples"] == 0
    assert record.cost["stages"]["pictures unedited"]["unet_samples"] == 0
    assert record.counts["images_made"] == 9
    assert record.fingerprints["edit"] != first[0].fingerprints["edit"]


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
    assert done["edit_stored"] and done["unet_samples"] == 0 and all(item["make"] == 0 for item in done["sets"])
    new = plan(toy(*SMALL_FIA, "method.alpha=0.9", "method.r2=0.25", "task.n=3"))
    assert not new["edit_stored"]
    made = {(item["name"], item["edited"]): item["make"] for item in new["sets"]}
    assert made == {("classes", False): 3, ("classes", True): 9, ("quality", False): 0, ("quality", True): 3}
    assert new["unet_samples"] == 15 * 4
    assert new["disk_bytes"] > 0


def test_dry_run_writes_nothing(toy: Any, tmp_path: Path):
    plan(toy(*SMALL_FIA, f"store={tmp_path / 'store'}", f"records={tmp_path / 'records'}"))
    assert list(tmp_path.iterdir()) == []


def test_edit_only_exports_a_plain_folder_with_exactly_the_masked_weights_zero(
    toy: Any, tmp_path: Path, random_sd_folder: Path
):
    from diffusers import StableDiffusionPipeline

    out = tmp_path / "out"
    record, _ = benchmark(toy(*SMALL_FIA, "edit_only=true", f"export={out}"))
    assert not record.metrics and record.counts["images_made"] == 0
    stored = [Edit.load(path) for path in toy.store.glob("edit/*/*/edit.safetensors")]
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
        (["schedule=sequential"], "schedule=sequential is not available yet"),
        (["schedule=jiont"], "did you mean joint"),
        (["repeats=3"], "repeats"),
        (["replay=x.json"], "replay is not available"),
        (["seed=-1"], "seed=-1"),
        (["dry_run=maybe"], "dry_run='maybe': say true or false"),
        (["device=tpu"], "device='tpu'"),
        (["device=cuda:77"], "CUDA devices"),
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
    paper = yaml.safe_load((CONF / "method" / "fia.yaml").read_text())
    assert preset["r2"] != paper["r2"]
    assert config().method.r2 == preset["r2"] and config().method.preset == "tiny"
    assert config("method.r2=0.5").method.r2 == 0.5
    sd = config("model=sd15").method
    assert sd.r2 == paper["r2"] and "preset" not in sd


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
    record, path = benchmark(config("task.n=1", "quality.n=4", "method.num_pairs=3", *places))
    assert record.world.startswith("tiny-v1") and record.preset == "tiny"
    assert "not Stable Diffusion" in record.note
    families = {m["id"].partition("/")[0] for m in json.loads(path.read_text())["metrics"]}
    assert {"forget_accuracy", "preserve_accuracy", "overall_score", "clip", "fid"} <= families
    assert np.isfinite([m["value"] for m in json.loads(path.read_text())["metrics"] if m["value"] is not None]).all()
