"""What every method promises, held for each file of conf/method/ on small random models of SD's and SDXL's classes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from training_stage import Stage, same_weights, weights

from experiments.run import plan
from experiments.search import NO_PRESET
from harness.edit import Edit, NoEffectError
from harness.method import Cost
from harness.schedule import scheduled
from harness.task import Concept

ROOT = Path(__file__).resolve().parents[1]
CONF, TINY_WORLD = ROOT / "conf", ROOT / "tinyworld" / "tiny-v1"
NAMES = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
OBJECTS = "tench, church, golf ball, parachute, chain saw, gas pump, French horn, beagle, radio, castle".split(", ")
CONCEPTS = [Concept(name, "object") for name in OBJECTS]
STYLE, EXPLICIT = [Concept("Monet", "style")], [Concept("marked", "explicit")]
WORDS = ["sea", "inn"]
TRAINING = {"images": 2, "epochs": 1, "batch": 4, "learning_rate": 1e-3, "precision": "float32"}
RELABEL = {**TRAINING, "retain_images": 2, "keep": ["car"]}
# Small sizes; nothing else of a method is changed.
SMALL = {
    "fia": {"steps": 2, "words": WORDS, "r2": 0.05, "alpha": 1.0},
    "fia_release": {"steps": 2, "words": WORDS, "r2": 0.05, "alpha": 1.0},
    "conceptprune": {"tau": 2, "words": WORDS, "k": 0.05, "own_prompts": False},
    "mim_mu": TRAINING,
    **{name: RELABEL for name in NAMES if name.startswith("salun")},
}
# What a method may change: suffixes of parameter names; None = any parameter of the UNet.
LAYERS = {
    "fia": ("ff.net.2.weight",),
    "fia_release": ("ff.net.2.weight",),
    "conceptprune": ("ff.net.2.weight",),
    "mim_mu": ("attn2.",),
    "salun_xattn": ("attn2.",),
    "salun_concept_xattn": ("attn2.",),
    "salun": None,
    "salun_concept": None,
    **{name: ("attn2.to_k.weight", "attn2.to_v.weight") for name in NAMES if name.startswith(("uce", "scapre"))},
}
# Whose mathematics knows no order of the concepts, to the bit. Training visits its pictures in an order.
ORDERLESS = [name for name in LAYERS if not name.startswith(("salun", "mim_mu"))]
# They change nothing by themselves: the unedited model, and whatever a file holds (tests/test_checkpoint.py).
EDITING = [name for name in NAMES if name not in ("none", "checkpoint")]


def config(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


@cache
def plain_config(name: str, kind: str) -> dict:
    """The configuration of `method=NAME` for concepts of a kind, without a suite's preset."""
    composed = config(f"method={name}", "task=custom", f"task.kind={kind}", "task.concepts=[tench]", NO_PRESET)
    return OmegaConf.to_container(composed, resolve=True)["method"]


def method(name: str, kind: str = "object", **settings):
    """The method as that configuration makes it, in a small size; a new one at every call."""
    plain = plain_config(name, kind)
    sampler = {"sampler": {"name": "ddim", "steps": 2, "guidance": 3.0}} if "sampler" in plain else {}
    return instantiate(OmegaConf.merge(plain, sampler, SMALL.get(name, {}), settings), _convert_="all")


@pytest.fixture(scope="module")
def model(random_sd_folder):
    """One model for all: a method leaves it as it found it, and the tests check that."""
    from harness.model import DiffusionModel

    return DiffusionModel.load(random_sd_folder, name="random", suite="tiny")


@pytest.fixture(scope="module")
def made(model):
    """The edit of two concepts, once a method, and what it cost."""
    found = {}

    def made(name: str) -> tuple[Edit, Cost]:
        if name not in found:
            before, cost = weights(model), Cost(model, "cpu")
            with cost.stage("edit"):
                edit = method(name).edit(model, CONCEPTS[:2], 0, Stage())
            assert same_weights(model, before) and model.edit is None, "a method leaves the model as it found it"
            found[name] = edit, cost
        return found[name]

    return made


def test_every_method_is_covered():
    assert set(LAYERS) == set(EDITING)


@pytest.mark.parametrize("name", EDITING)
def test_it_changes_only_its_layers_and_names_itself(model, made, name):
    edit, _ = made(name)
    assert edit.info["method"] == name == method(name).name
    assert edit.base == model.fingerprint
    edit.require_effect(model)
    if LAYERS[name] is not None:
        assert all(any(part in parameter for part in LAYERS[name]) for parameter in edit.tensors)


@pytest.mark.parametrize("name", EDITING)
def test_saved_loaded_applied_and_reverted_exactly(model, made, name, tmp_path):
    edit, before = made(name)[0], weights(model)
    again = Edit.load(edit.save(tmp_path / "edit.safetensors"))
    assert again.fingerprint == edit.fingerprint and again.info == json.loads(json.dumps(edit.info))
    with again.applied(model):
        assert not same_weights(model, before)
    assert same_weights(model, before)


@pytest.mark.parametrize("name", EDITING)
def test_the_same_seed_gives_the_same_edit(model, made, name):
    assert method(name).edit(model, CONCEPTS[:2], 0, Stage()).fingerprint == made(name)[0].fingerprint


@pytest.mark.parametrize("name", EDITING)
@pytest.mark.parametrize("concepts", [CONCEPTS, STYLE, EXPLICIT], ids=["ten objects", "a style", "explicit"])
def test_many_concepts_and_every_kind(model, name, concepts):
    kind = concepts[0].kind
    unset, usual = ({key for key, value in plain_config(name, k).items() if value is None} for k in (kind, "object"))
    assert unset == usual, "a value that follows the kind is null for a kind that its table leaves out"
    edit = method(name, kind).edit(model, concepts, 0, Stage())
    edit.require_effect(model)
    assert all(tensor.isfinite().all() for tensor in edit.tensors.values())
    forgotten = [(concept["name"], concept["kind"]) for concept in edit.info["concepts"]]
    assert sorted(forgotten) == sorted((concept.name, concept.kind) for concept in concepts)


@pytest.mark.parametrize("name", ORDERLESS)
def test_the_order_of_the_concepts_does_not_matter(model, made, name):
    other = method(name).edit(model, CONCEPTS[1::-1], 0, Stage())
    edit = made(name)[0]
    assert other.tensors.keys() == edit.tensors.keys()
    assert all((other.tensors[part] == tensor).all() for part, tensor in edit.tensors.items())


@pytest.mark.parametrize("name", EDITING)
def test_bad_concepts_are_refused_in_one_line(model, name, monkeypatch):
    twice = [*CONCEPTS[:2], Concept("Tench", "object")]
    # No name that a `Concept` takes is without a token in the tokenizers that are known.
    monkeypatch.setattr(model, "subject_tokens", lambda texts: [int(text != "radio") for text in texts])
    for concepts, words in (
        ([], "name at least one concept to forget"),
        (twice, "the concept 'Tench' is named twice (case does not matter)"),
        ([*CONCEPTS[:1], Concept("radio", "object")], "finds no token in the concept 'radio'; name it otherwise"),
    ):
        with pytest.raises(ValueError) as caught:
            method(name).edit(model, concepts, 0, Stage())
        line = str(caught.value)
        assert words in line and "\n" not in line and not isinstance(caught.value, NoEffectError)
        assert name.startswith(line.partition(":")[0])


@pytest.mark.parametrize("name", EDITING)
@pytest.mark.parametrize("schedule", ["sequential", "merged"])
def test_concepts_may_come_one_by_one(model, made, schedule, name):
    before, fingerprint = weights(model), model.fingerprint
    edits = scheduled(schedule, method(name), model, CONCEPTS[:2], 0, Stage())
    assert same_weights(model, before) and model.edit is None and model.untouched == {}
    assert len(edits) == (2 if schedule == "sequential" else 1)
    assert model.fingerprint == fingerprint and all(edit.base == fingerprint for edit in edits)
    edits[-1].require_effect(model)
    if LAYERS[name] is not None:
        assert all(any(part in parameter for part in LAYERS[name]) for parameter in edits[-1].tensors)
    if schedule == "sequential":
        assert not same_weights(edits[0].tensors, edits[1].tensors)
    else:
        # A union of masks by concept is what it makes of several anyhow; all others weigh concepts against each other.
        assert same_weights(edits[0].tensors, made(name)[0].tensors) == (name == "conceptprune")
        if name == "fia":
            union = method(name, fusion="union").edit(model, CONCEPTS[:2], 0, Stage())
            assert same_weights(edits[0].tensors, union.tensors)


@pytest.mark.parametrize("name", EDITING)
def test_its_cost_is_reported(made, name):
    cost = made(name)[1].as_dict()["stages"]["edit"]
    assert cost["seconds"] > 0 and cost["peak_memory_bytes"] > 0
    closed_form = name.startswith(("uce", "scapre"))
    assert (cost["unet_samples"] == 0) == closed_form


@pytest.fixture(scope="module")
def xl_model(random_sdxl_folder):
    """SDXL's classes by the name of a dtype."""
    from harness.model import DiffusionModel

    return cache(lambda dtype: DiffusionModel.load(random_sdxl_folder, dtype=dtype, name="random_xl", suite="tiny"))


# By configuration GPUs load float16.
HALF = [(name, "float16") for name in EDITING]


@pytest.mark.parametrize(("name", "dtype"), [*HALF, ("salun", "float32")])
def test_sdxl_is_edited_as_sd_is(xl_model, name, dtype, tmp_path):
    """It has two text encoders, pooled features beside the tokens', and blocks of several transformer layers."""
    model = xl_model(dtype)
    before = weights(model)
    edit = method(name).edit(model, CONCEPTS[:2], 0, Stage())
    assert same_weights(model, before) and model.edit is None
    edit.require_effect(model)
    for parameter, tensor in edit.tensors.items():
        assert str(before[parameter].dtype) == f"torch.{dtype}"
        assert edit.kind == "mask" or (tensor.dtype == before[parameter].dtype and tensor.isfinite().all())
    for layer in ("transformer_blocks.0.", "transformer_blocks.1."):
        assert any(layer in parameter for parameter in edit.tensors)
    if LAYERS[name] is not None:
        assert all(any(part in parameter for part in LAYERS[name]) for parameter in edit.tensors)
    with Edit.load(edit.save(tmp_path / "edit.safetensors")).applied(model):
        assert not same_weights(model, before)
    assert same_weights(model, before)


@pytest.mark.parametrize("name", EDITING)
def test_its_preset_for_the_tiny_world_sets_known_parameters_only(name):
    path = CONF / "preset" / "tiny" / f"{name}.yaml"
    if not path.exists():
        pytest.skip("it has none: the method's own values serve")
    own = config(f"method={name}", NO_PRESET).method
    preset = OmegaConf.load(path)
    if "defaults" not in preset:
        assert set(preset) == {"method"} and set(preset.method) <= {*own, "preset"} and preset.method.preset == "tiny"


@pytest.mark.skipif(not TINY_WORLD.exists(), reason="the tiny world's weights are not in this checkout")
@pytest.mark.parametrize("name", [*EDITING, "none"])
def test_a_dry_run_on_the_tiny_world_loads_no_weights(name, tmp_path, monkeypatch):
    """Its configuration, preset and task fit together as they are; the edit alone is left out."""
    from harness.model import DiffusionModel

    def load(*_, **__):
        raise AssertionError("a dry run loads nothing")

    monkeypatch.setattr(DiffusionModel, "load", load)
    planned = plan(config(f"method={name}", "dry_run=true", f"store={tmp_path / 'store'}", "device=cpu"))
    assert (planned["method"], planned["model"], planned["absent"]) == (name, "tiny", "")
    assert planned["edits_stored"] == 0 and not (tmp_path / "store").exists()
    edited = [entry for entry in planned["sets"] if entry["edited"]]
    assert [entry["name"] for entry in edited] == ([] if name == "none" else ["classes", "quality"])
    assert all(entry["rows"] == entry["make"] > 0 for entry in edited)
