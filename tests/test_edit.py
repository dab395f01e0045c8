"""Edits: exact inverses, whole files, refused where they do not fit, exported for stock diffusers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.edit import Edit, NoEffectError, WrongBaseError, export, pruned_shares
from harness.files import StoreError, claimed
from harness.model import DiffusionModel
from harness.packing import pack, unpack


def weights(model: DiffusionModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.unet.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Bit for bit: NaN equals itself and -0 differs from 0."""
    return all(torch.equal(first[n].view(torch.int32), second[n].view(torch.int32)) for n in first)


def masks(model: DiffusionModel, share: float = 0.1) -> dict[str, torch.Tensor]:
    dice = torch.Generator().manual_seed(5)
    return {
        f"{name}.weight": torch.rand(layer.weight.shape, generator=dice) < share
        for name, layer in model.layers("ffn2").items()
    }


def deltas(model: DiffusionModel) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": layer.weight * 1.5 for name, layer in model.layers("cross_v").items()}


def make(model: DiffusionModel, kind: str) -> Edit:
    tensors = {"mask": masks, "delta": deltas, "none": lambda _: {}}[kind](model)
    return Edit.make(kind, tensors, model, {"method": "test"})


@pytest.mark.parametrize("kind", ["none", "mask", "delta"])
def test_apply_and_revert_are_exact_inverses(random_sd_model, kind):
    model = random_sd_model
    odd = next(iter(model.layers("ffn2").values())).weight
    with torch.no_grad():  # values that arithmetic would not bring back
        odd.view(-1)[:4] = torch.tensor([float("nan"), -0.0, float("inf"), 1e-42])
    before, edit = weights(model), make(model, kind)
    pointers = {name: p.data_ptr() for name, p in model.unet.named_parameters()}
    with edit.applied(model):
        after = weights(model)
        assert model.edit is edit
        assert {name: p.data_ptr() for name, p in model.unet.named_parameters()} == pointers
        changed = {n for n in before if not torch.equal(before[n].view(torch.int32), after[n].view(torch.int32))}
        assert changed == set(edit.tensors)
        for name, tensor in edit.tensors.items():
            expected = before[name].masked_fill(tensor, 0) if kind == "mask" else tensor
            assert same({"": after[name]}, {"": expected})
    assert same(before, weights(model)) and model.edit is None


def test_the_weights_return_after_an_error(random_sd_model, monkeypatch):
    model = random_sd_model
    before, edit = weights(model), make(model, "mask")
    with pytest.raises(KeyError), edit.applied(model):
        raise KeyError("inside")
    assert same(before, weights(model))

    fill, calls = torch.Tensor.masked_fill_, []

    def fails_at_the_third(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fill(self, *args)

    monkeypatch.setattr(torch.Tensor, "masked_fill_", fails_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        edit.apply(model)
    assert same(before, weights(model)) and model.edit is None


def test_only_one_edit_is_applied_at_a_time(random_sd_model):
    edit, other = make(random_sd_model, "mask"), make(random_sd_model, "delta")
    with edit.applied(random_sd_model):
        for second in (edit, other):
            with pytest.raises(RuntimeError, match="applied already"):
                second.apply(random_sd_model)
        with pytest.raises(RuntimeError, match="not applied"):
            other.revert(random_sd_model)
    with pytest.raises(RuntimeError, match="not applied"):
        edit.revert(random_sd_model)


def test_an_edit_for_another_model_is_refused(random_sd_model, random_sdxl_model):
    before = weights(random_sdxl_model)
    with pytest.raises(WrongBaseError, match=random_sd_model.fingerprint[:12]):
        make(random_sd_model, "mask").apply(random_sdxl_model)
    assert same(before, weights(random_sdxl_model))


def test_tensors_that_do_not_fit_are_refused(random_sd_model):
    model, name = random_sd_model, next(iter(masks(random_sd_model)))
    good = masks(model)[name]
    with pytest.raises(ValueError, match="did you mean"):
        Edit.make("mask", {name.replace("ff.net", "ff.nets"): good}, model).apply(model)
    with pytest.raises(ValueError, match="does not fit"):
        Edit.make("mask", {name: good.T}, model).apply(model)
    with pytest.raises(ValueError, match="cannot hold"):
        Edit.make("mask", {name: good.float()}, model)
    with pytest.raises(ValueError, match="cannot hold"):
        Edit.make("delta", {name: good}, model)
    with pytest.raises(ValueError, match="did you mean mask"):
        Edit.make("masks", {name: good}, model)
    with pytest.raises(ValueError, match="fingerprint"):
        Edit("mask", {name: good}, {})


def test_an_edit_without_effect_is_told_from_one_with(random_sd_model):
    model, name = random_sd_model, next(iter(masks(random_sd_model)))
    weight = dict(model.unet.named_parameters())[name]
    with torch.no_grad():
        weight[0] = 0
    row = torch.zeros(weight.shape, dtype=torch.bool)
    row[0] = True
    for kind, tensors in (("none", {}), ("mask", {name: row}), ("delta", {name: weight})):
        with pytest.raises(NoEffectError, match="changes nothing"):
            Edit.make(kind, tensors, model).require_effect(model)
    row[1] = True
    Edit.make("mask", {name: row}, model).require_effect(model)
    make(model, "delta").require_effect(model)


@pytest.mark.parametrize(
    ("share", "encoding"), [(0.0, "gaps"), (1e-5, "gaps"), (1e-3, "gaps"), (0.03, "gaps"), (0.5, "bits"), (1, "bits")]
)
def test_masks_are_packed_in_the_smaller_way(share, encoding):
    mask = np.random.default_rng(0).random((1001, 307)) < share
    name, data = pack(mask)
    assert name == encoding and len(data) <= -(-mask.size // 8)
    assert np.array_equal(unpack(name, data, mask.shape), mask)
    if name == "gaps":  # about a byte for a set weight, and one for every 255 positions
        assert len(data) <= mask.sum() + mask.size / 255


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 509, 510, 511, 2**17])
def test_gaps_of_any_width_survive(gap):
    mask = np.zeros(2 * gap + 5000, dtype=bool)
    mask[[gap, 2 * gap + 1, len(mask) - 1]] = True
    name, data = pack(mask)
    assert name == "gaps"
    assert np.array_equal(np.flatnonzero(unpack(name, data, mask.shape)), [gap, 2 * gap + 1, len(mask) - 1])


def test_packed_masks_that_do_not_fit_are_refused():
    name, data = pack(np.eye(40, dtype=bool))
    assert name == "gaps"
    for how, bytes_, shape in (
        (name, data, (39, 40)),
        (name, np.array([255], dtype=np.uint8), (40, 40)),
        ("bits", data, (39, 40)),
        ("gap", data, (40, 40)),
    ):
        with pytest.raises(ValueError):
            unpack(how, bytes_, shape)


@pytest.mark.parametrize(("kind", "share"), [("mask", 0.01), ("mask", 0.4), ("delta", 0), ("none", 0)])
def test_save_and_load_round_trip(random_sd_model, tmp_path, kind, share):
    tensors = masks(random_sd_model, share) if kind == "mask" else deltas(random_sd_model) if kind == "delta" else {}
    edit = Edit.make(kind, tensors, random_sd_model, {"concepts": ["gas pump"], "shares": {"unet": 0.1}})
    path = edit.save(tmp_path / "deep" / "edit.safetensors")
    loaded = Edit.load(path)
    assert (loaded.kind, loaded.info, loaded.fingerprint) == (kind, edit.info, edit.fingerprint)
    assert loaded.tensors.keys() == edit.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], edit.tensors[name]) for name in edit.tensors)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    if kind == "mask":
        bits = sum(tensor.numel() for tensor in edit.tensors.values()) / 8
        assert sum(tensor.numel() for tensor in load_file(path).values()) <= bits


def test_damaged_files_are_refused(random_sd_model, tmp_path):
    edit = make(random_sd_model, "delta")
    path = edit.save(tmp_path / "edit.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="does not match its fingerprint"):
        Edit.load(path)
    path.write_bytes(content[:40])
    with pytest.raises(ValueError, match="damaged"):
        Edit.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not an edit"):
        Edit.load(path)


def test_a_save_that_fails_leaves_the_old_file(random_sd_model, tmp_path, monkeypatch):
    path = make(random_sd_model, "mask").save(tmp_path / "edit.safetensors")
    old = path.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("harness.edit.sync", full)
    with pytest.raises(OSError, match="disk full"):
        make(random_sd_model, "delta").save(path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_fingerprints_depend_on_content_and_base_alone(random_sd_model, random_sdxl_model):
    model, tensors = random_sd_model, masks(random_sd_model)
    first = Edit.make("mask", tensors, model, {"method": "a"})
    again = Edit.make("mask", dict(reversed(tensors.items())), model, {"method": "b"})
    assert first.fingerprint == again.fingerprint
    flipped = {name: tensor.clone() for name, tensor in tensors.items()}
    next(iter(flipped.values()))[0, 0] ^= True
    assert Edit.make("mask", flipped, model).fingerprint != first.fingerprint
    assert Edit.make("mask", tensors, random_sdxl_model).fingerprint != first.fingerprint


def test_pruned_shares_name_their_denominators(random_sd_model):
    model, name = random_sd_model, next(iter(masks(random_sd_model)))
    shape = dict(model.unet.named_parameters())[name].shape
    unet = sum(p.numel() for p in model.unet.parameters())
    others = sum(p.numel() for part in (model.pipe.text_encoder, model.pipe.vae) for p in part.parameters())
    layers = 4 * shape.numel()  # all four ffn2, although only one is pruned
    row = torch.zeros(shape, dtype=torch.bool)
    row[0] = True
    expected = {"layers": shape[1] / layers, "unet": shape[1] / unet, "pipeline": shape[1] / (unet + others)}
    assert pruned_shares(Edit.make("mask", {name: row}, model), model) == expected
    new = dict(model.unet.named_parameters())[name].masked_fill(row, 0)
    assert pruned_shares(Edit.make("delta", {name: new}, model), model) == expected
    assert pruned_shares(make(model, "none"), model) == {"layers": 0, "unet": 0, "pipeline": 0}


@pytest.mark.parametrize("which", ["random_sd_model", "random_sdxl_model"])
def test_an_export_is_a_plain_folder_for_stock_diffusers(which, request, tmp_path):
    model = request.getfixturevalue(which)
    before, edit = weights(model), make(model, "mask")
    folder = export(model, edit, tmp_path / "out")
    assert same(before, weights(model))
    stock = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(stock) is type(model.pipe)
    with edit.applied(model):
        assert same(weights(model), dict(stock.unet.named_parameters()))
    assert (folder / "edit.json").is_file() and [p.name for p in tmp_path.iterdir()] == ["out"]
    assert DiffusionModel.load(folder).fingerprint != model.fingerprint
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert export(model, edit, folder) == folder, "the same edit once more, as in a run that goes on"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == written
    with pytest.raises(ValueError, match="not an empty folder"):
        export(model, make(model, "delta"), folder)
    stock.set_progress_bar_config(disable=True)
    assert stock("a dog", num_inference_steps=2, output_type="np").images.shape == (1, 32, 32, 3)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_an_export_names_no_place_and_follows_the_umask(random_sd_folder, tmp_path, umask):
    model = DiffusionModel.load(random_sd_folder)
    old = os.umask(umask)
    try:
        folder = export(model, make(model, "mask"), tmp_path / "out")
    finally:
        os.umask(old)
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path
        if path.suffix == ".json":
            text = path.read_text()
            assert "_name_or_path" not in text and str(random_sd_folder) not in text, path


@pytest.fixture
def checked_folder(random_sd_folder, tmp_path):
    """A pipeline with a small safety checker, whose source path is in its settings."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 16}
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(random_sd_folder)
    pipe.register_modules(
        safety_checker=StableDiffusionSafetyChecker(
            CLIPConfig(text_config=small, vision_config=vision, projection_dim=8)
        ),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    )
    pipe.register_to_config(requires_safety_checker=True)
    pipe.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def test_an_export_keeps_the_safety_checker(checked_folder, tmp_path, caplog):
    model = DiffusionModel.load(checked_folder)
    assert model.pipe.safety_checker is None
    folder = export(model, make(model, "mask"), tmp_path / "out")
    before, stock = (diffusers.DiffusionPipeline.from_pretrained(path) for path in (checked_folder, folder))
    assert same(dict(before.safety_checker.named_parameters()), dict(stock.safety_checker.named_parameters()))
    assert type(stock.feature_extractor) is type(before.feature_extractor) and stock.config.requires_safety_checker
    stock.set_progress_bar_config(disable=True)
    result = stock("a dog", num_inference_steps=1, output_type="np")
    assert len(result.nsfw_content_detected) == 1 and "safety checker" not in caplog.text


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "safety_checker" / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: shutil.rmtree(folder / "feature_extractor"), "has no settings"),
        (lambda folder: _rename(folder, "feature_extractor", "CLIPNothing"), "CLIPNothing is not in the installed"),
        (lambda folder: _rename(folder, "safety_checker", "TheirChecker"), "TheirChecker is not Stable"),
    ],
)
def test_a_checker_that_could_not_be_loaded_is_left_out_in_one_line(checked_folder, tmp_path, caplog, damage, words):
    damage(checked_folder)
    model = DiffusionModel.load(checked_folder)
    folder = export(model, make(model, "mask"), tmp_path / "out")
    (line,) = [record.getMessage() for record in caplog.records if "safety checker" in record.getMessage()]
    assert words in line and "\n" not in line
    assert diffusers.DiffusionPipeline.from_pretrained(folder).safety_checker is None


def _rename(folder, part, name):
    index = json.loads((folder / "model_index.json").read_text())
    index[part][1] = name
    (folder / "model_index.json").write_text(json.dumps(index))


def test_an_export_does_not_depend_on_what_was_encoded_before(random_sd_model, tmp_path):
    first, second = (export(random_sd_model, make(random_sd_model, "mask"), tmp_path / name) for name in "ab")
    random_sd_model.encode(["a dog"])
    third = export(random_sd_model, make(random_sd_model, "mask"), tmp_path / "c")
    files = [{path.relative_to(f): path.read_bytes() for path in f.rglob("*.*")} for f in (first, second, third)]
    assert files[0] == files[1] == files[2] and Path("tokenizer/tokenizer.json") in files[0]


def test_an_export_clears_what_a_killed_one_left_and_no_living_one_s(random_sd_model, tmp_path):
    left = tmp_path / ".out.export"
    (left / "unet").mkdir(parents=True)
    (left / "unet" / "half").touch()
    with claimed(left):
        assert list(left.iterdir()) == []
        with pytest.raises(StoreError, match=r"another process is working in .*\.out\.export"):
            export(random_sd_model, make(random_sd_model, "mask"), tmp_path / "out")
        (left / "half").touch()
    export(random_sd_model, make(random_sd_model, "mask"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not list(tmp_path.rglob("half"))


def test_an_export_that_fails_leaves_nothing(random_sd_model, tmp_path, monkeypatch):
    before = weights(random_sd_model)

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(random_sd_model.pipe.vae, "save_pretrained", full)
    with pytest.raises(OSError, match="disk full"):
        export(random_sd_model, make(random_sd_model, "mask"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [] and same(before, weights(random_sd_model))
