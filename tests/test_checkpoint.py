"""Edits made elsewhere: every form that is read, and everything that is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from baselines.checkpoint import Checkpoint
from harness.edit import Edit, NoEffectError, WrongBaseError, export
from harness.task import Concept
from harness.weights import ModelNotFound, UnsafeWeightsError

CONCEPTS = [Concept(f"thing {i}", "object") for i in range(10)]
CONF = Path(__file__).resolve().parents[1] / "conf"
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
SCHEDULER_FILE = "scheduler/scheduler_config.json"


def no_stage(*_):
    raise AssertionError("a checkpoint stores nothing")


def edit(model, path, concepts=CONCEPTS[:1], seed=0, **settings) -> Edit:
    return Checkpoint(str(path), **settings).edit(model, concepts, seed, no_stage)


def mask_edit(model) -> Edit:
    """Every third weight of the second feed-forward projections."""
    masks = {
        f"{n}.weight": torch.arange(m.weight.numel()).view_as(m.weight) % 3 == 0
        for n, m in model.layers("ffn2").items()
    }
    return Edit.make("mask", masks, model)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}


def one_line(caught) -> bool:
    return "\n" not in str(caught.value)


@pytest.fixture
def small(random_sd_model):
    """The model, one of its cross-attention layers' weights, and other values for them."""
    name = f"{next(iter(random_sd_model.layers('cross_v')))}.weight"
    old = weights(random_sd_model)[name]
    return random_sd_model, name, old + torch.linspace(1, 2, old.numel()).view_as(old)


# Folders


@pytest.mark.parametrize("count", [1, 2, 10])
def test_an_exported_folder_comes_back(random_sd_model, random_sdxl_model, tmp_path, count):
    for model in (random_sd_model, random_sdxl_model):
        made, before = mask_edit(model), weights(model)
        folder = export(model, made, tmp_path / model.name)
        again = edit(model, folder, CONCEPTS[:count])
        assert again.kind == "delta" and again.tensors.keys() == made.tensors.keys()
        for name, tensor in again.tensors.items():
            assert torch.equal(tensor, before[name].masked_fill(made.tensors[name], 0))
        assert again.info["form"] == "folder" and len(again.info["concepts"]) == count
        assert all(torch.equal(t, before[n]) for n, t in model.unet.state_dict().items()) and model.calls == 0
        assert edit(model, folder, CONCEPTS[:count][::-1], seed=5).fingerprint == again.fingerprint


def test_a_folder_of_another_precision_changes_what_was_edited_only(random_sd_model, tmp_path):
    made, before = mask_edit(random_sd_model), weights(random_sd_model)
    folder = export(random_sd_model, made, tmp_path / "half")
    for file in [folder / UNET_FILE, folder / "text_encoder/model.safetensors"]:
        tensors = load_file(file)
        save_file({n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}, file)
    again = edit(random_sd_model, folder)
    assert again.tensors.keys() == made.tensors.keys()
    for name, tensor in again.tensors.items():  # digits that float16 lost are the model's own
        assert torch.equal(tensor, before[name].masked_fill(made.tensors[name], 0))


@pytest.mark.parametrize(
    ("file", "part"), [("text_encoder/model", "text_encoder"), ("vae/diffusion_pytorch_model", "vae")]
)
def test_a_folder_that_changes_more_than_the_unet_is_refused(random_sd_model, tmp_path, file, part):
    folder = export(random_sd_model, mask_edit(random_sd_model), tmp_path / "edited")
    path = folder / f"{file}.safetensors"
    tensors = load_file(path)
    name = (
        next(n for n, t in tensors.items() if t.is_floating_point() and t.ndim == 2) if part != "vae" else min(tensors)
    )
    tensors[name] = tensors[name] + 0.01
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=f"its {part} is not the model's .1 tensors differ.*only edits of the UNet"
    ) as e:
        edit(random_sd_model, folder)
    assert one_line(e)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (SCHEDULER_FILE, {"prediction_type": "v_prediction"}, "prediction_type='v_prediction'.*'epsilon'"),
        (SCHEDULER_FILE, {"beta_schedule": "linear"}, "beta_schedule='linear'.*'scaled_linear'"),
        # Without the key: the class's default.
        (SCHEDULER_FILE, {"beta_end": None}, r"beta_end=0\.02, the model has 0\.012"),
        (SCHEDULER_FILE, {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, "zero_snr=True"),
        (SCHEDULER_FILE, {"_class_name": "NoScheduler"}, "no class of diffusers: 'NoScheduler'"),
        ("unet/config.json", {"attention_head_dim": 4}, "attention_head_dim=4, the model has 8"),
        ("unet/config.json", {"act_fn": "gelu"}, "act_fn='gelu'"),
    ],
)
def test_a_folder_with_other_settings_is_refused(random_sd_model, tmp_path, file, change, words):
    path = export(random_sd_model, mask_edit(random_sd_model), tmp_path / "edited") / file
    given = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in given.items() if value is not None}))
    with pytest.raises(ValueError, match=words) as caught:
        edit(random_sd_model, tmp_path / "edited")
    assert one_line(caught)


def test_settings_that_change_nothing_are_no_difference(random_sd_model, tmp_path):
    made = mask_edit(random_sd_model)
    folder = export(random_sd_model, made, tmp_path / "edited")
    before = edit(random_sd_model, folder)
    for name, change in (
        ("unet/config.json", {"_diffusers_version": "0.6.0", "_name_or_path": "a", "upcast_attention": None}),
        (SCHEDULER_FILE, {"_class_name": "DDIMScheduler", "clip_sample": False, "skip_prk_steps": 1}),
    ):
        given = json.loads((folder / name).read_text()) | change
        if name.startswith("unet"):
            del given["time_embedding_type"]
        (folder / name).write_text(json.dumps(given))
    assert edit(random_sd_model, folder).fingerprint == before.fingerprint


def test_a_folder_of_another_model_or_an_incomplete_one_is_refused(random_sd_model, random_sdxl_folder, tmp_path):
    with pytest.raises(ValueError) as caught:
        edit(random_sd_model, random_sdxl_folder)
    assert one_line(caught)
    folder = export(random_sd_model, mask_edit(random_sd_model), tmp_path / "edited")
    tensors = load_file(folder / UNET_FILE)
    del tensors["conv_in.bias"]
    save_file(tensors, folder / UNET_FILE)
    with pytest.raises(ValueError, match=r"lacks 1 tensors of the model's, as conv_in\.bias"):
        edit(random_sd_model, folder)
    (folder / UNET_FILE).rename(folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(UnsafeWeightsError, match="only pickled weights"):
        Checkpoint(str(folder))
    with pytest.raises(ModelNotFound, match=r"no model_index\.json"):
        Checkpoint(str(folder / "unet"))


def test_the_unedited_model_has_no_effect(random_sd_model, random_sd_folder):
    for path in (random_sd_folder, random_sd_folder / UNET_FILE):
        with pytest.raises(NoEffectError, match="is the model's own"):
            edit(random_sd_model, path)


# UNet files


def test_a_unet_file_whole_or_in_part(small, tmp_path):
    model, name, new = small
    save_file({name: new}, tmp_path / "part.safetensors")
    save_file(weights(model) | {name: new}, tmp_path / "whole.safetensors")
    part, whole = edit(model, tmp_path / "part.safetensors"), edit(model, tmp_path / "whole.safetensors")
    assert part.tensors.keys() == whole.tensors.keys() == {name} and part.fingerprint == whole.fingerprint
    assert torch.equal(part.tensors[name], new) and part.info["form"] == "unet"


def test_unet_tensors_that_do_not_fit_are_refused(small, tmp_path):
    model, name, new = small
    file = tmp_path / "unet.safetensors"
    for tensors, message in (
        ({name.replace("attn2", "attn3"): new}, f"is no tensor of the model's UNet; did you mean {name}"),
        ({"model.diffusion_model.out.2.weight": new}, "original-layout checkpoint"),
        ({"zzz": new}, "zzz is no tensor of the model's UNet .names are diffusers'"),
        ({name: new.T.contiguous()}, r"is \(32, 64\), the model's is \(64, 32\)"),
        ({name: new.index_fill(0, torch.tensor([3]), torch.nan)}, "holds NaN"),
        ({name: new.index_fill(0, torch.tensor([3]), torch.inf)}, "holds NaN, infinity"),
        ({name: new.double() * 1e200}, "more than torch.float32 can"),
        ({name: new.to(torch.int32)}, "holds torch.int32, weights are floating-point"),
    ):
        save_file(tensors, file)
        with pytest.raises(ValueError, match=message) as caught:
            edit(model, file)
        assert one_line(caught)


# LoRA


def lora(model, rank: int = 3):
    """A LoRA of a linear and of a convolutional layer: {module: (down, up)}."""
    generator = torch.Generator().manual_seed(0)
    linear = next(iter(model.layers("cross_v")))
    made = {}
    for name in (linear, linear.replace("to_v", "to_out.0"), "conv_in"):
        shape = model.unet.get_submodule(name).weight.shape
        tail = (1,) * (len(shape) - 2)
        down = torch.randn(rank, *shape[1:], generator=generator)
        made[name] = down, torch.randn(shape[0], rank, *tail, generator=generator)
    return made


def peft_names(parts):
    return {f"unet.{n}.lora_{x}.weight": t for n, pair in parts.items() for x, t in zip("AB", pair)}


def old_names(parts):
    named = {}
    for name, pair in parts.items():
        for side, tensor in zip(("down", "up"), pair):
            if ".attn2." in name:
                block, _, layer = name.partition(".attn2.")
                named[f"{block}.attn2.processor.{layer.removesuffix('.0')}_lora.{side}.weight"] = tensor
            else:
                named[f"unet.{name}.lora.{side}.weight"] = tensor
    return named


def kohya_names(parts, alpha=None):
    named = {}
    for name, pair in parts.items():
        stem = "lora_unet_" + name.replace(".", "_")
        named |= {f"{stem}.lora_{side}.weight": tensor for side, tensor in zip(("down", "up"), pair)}
        if alpha is not None:
            named[f"{stem}.alpha"] = torch.tensor(float(alpha))
    return named


def merged(model, parts, factor: float) -> dict[str, torch.Tensor]:
    new = {}
    for name, (down, up) in parts.items():
        weight = model.unet.get_submodule(name).weight
        if weight.ndim == 4:
            product = torch.einsum("or,rihw->oihw", up[:, :, 0, 0].double(), down.double())
        else:
            product = up.double() @ down.double()
        new[f"{name}.weight"] = weight.double() + factor * product
    return new


@pytest.mark.parametrize(
    ("names", "metadata", "scale", "factor"),
    [
        (peft_names, {}, 1.0, 1.0),
        (old_names, {}, 0.5, 0.5),
        (kohya_names, {}, -1.0, -1.0),
        (lambda parts: kohya_names(parts, alpha=6), {}, 1.0, 2.0),
        (peft_names, {"unet.lora_alpha": 12, "unet.r": 3}, 1.0, 4.0),
        (peft_names, {"lora_alpha": 12, "use_rslora": True}, 1.0, 12 / 3**0.5),
        (peft_names, {"lora_alpha": 1, "alpha_pattern": {"to_v|to_out.0|conv_in": 9}}, 1.0, 3.0),
    ],
    ids=["peft", "diffusers", "kohya", "alpha", "metadata", "rslora", "pattern"],
)
def test_lora_is_merged_by_its_product(random_sd_model, tmp_path, names, metadata, scale, factor):
    parts = lora(random_sd_model)
    file = tmp_path / "lora.safetensors"
    save_file(names(parts), file, metadata={"lora_adapter_metadata": json.dumps(metadata)} if metadata else None)
    made = edit(random_sd_model, file, lora_scale=scale)
    expected = merged(random_sd_model, parts, factor)
    assert made.info["form"] == "lora" and made.tensors.keys() == expected.keys()
    for name, tensor in made.tensors.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-4)


def test_lora_on_sdxl_and_without_effect(random_sdxl_model, tmp_path):
    parts = lora(random_sdxl_model)
    save_file(peft_names(parts), tmp_path / "lora.safetensors")
    assert len(edit(random_sdxl_model, tmp_path / "lora.safetensors").tensors) == 3
    for zero in ({"lora_scale": 0.0}, {}):
        with pytest.raises(NoEffectError):
            edit(random_sdxl_model, tmp_path / "lora.safetensors", **zero)
        save_file(peft_names({n: (d, 0 * u) for n, (d, u) in parts.items()}), tmp_path / "lora.safetensors")


def test_lora_that_does_not_fit_is_refused(random_sd_model, tmp_path):
    parts = peft_names(lora(random_sd_model))
    copy = parts[next(iter(parts))].clone()
    down, up = list(parts)[:2]
    layer = down.removeprefix("unet.").removesuffix(".lora_A.weight")
    file = tmp_path / "lora.safetensors"
    for tensors, metadata, message in (
        (parts | {"text_encoder.x.lora_A.weight": copy}, {}, "changes the text encoder"),
        (parts | {"lora_te_x.lora_down.weight": copy}, {}, "changes the text encoder"),
        ({down: parts[down]}, {}, "has down only"),
        (parts | {up: parts[up][:, :2].contiguous()}, {}, f"does not fit {layer}"),
        (parts | {down: parts[down][:, :5].contiguous()}, {}, f"does not fit {layer}"),
        ({down.replace("attn2", "attn5"): parts[down]}, {}, "is no weight of the model's UNet"),
        ({down.replace("lora_A", "lora_C"): parts[down]}, {}, "neither a LoRA's down, up nor alpha"),
        ({"lora_unet_x.hada_w1_a": parts[down]}, {}, "neither a LoRA's down, up nor alpha"),
        (parts | {f"{layer}.lora.down.weight": copy}, {}, "two spellings"),
        (parts | {down: parts[down] * torch.nan}, {}, "holds NaN"),
        (parts, {"use_dora": True}, "DoRA"),
    ):
        save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(metadata)})
        with pytest.raises(ValueError, match=message) as caught:
            edit(random_sd_model, file)
        assert one_line(caught)


# Our own edits


def test_an_edit_of_our_own(small, random_sdxl_model, tmp_path):
    model, name, new = small
    for source in (mask_edit(model), Edit.make("delta", {name: new}, model, {"method": "mine"})):
        path = source.save(tmp_path / "edit.safetensors")
        made = edit(model, path)
        assert (made.kind, made.fingerprint) == (source.kind, source.fingerprint)
        assert made.info["form"] == "edit" and made.info["source"] == source.info
        with pytest.raises(WrongBaseError, match="made for the model"):
            edit(random_sdxl_model, path)
    with pytest.raises(NoEffectError):
        edit(model, Edit.make("none", {}, model).save(tmp_path / "none.safetensors"))


# Paths and content


def test_the_content_decides(small, tmp_path):
    model, name, new = small
    file, copy = tmp_path / "unet.safetensors", tmp_path / "copy.safetensors"
    save_file({name: new}, file)
    shutil.copy(file, copy)
    first = Checkpoint(str(file)).content
    assert len(first) == 64 and first == Checkpoint(str(copy)).content
    before = edit(model, file)
    save_file({name: new + 1.0}, file)
    assert Checkpoint(str(file)).content != first and before.info["content"] == first
    assert edit(model, file).fingerprint != before.fingerprint
    folder = export(model, before, tmp_path / "folder")
    whole = Checkpoint(str(folder)).content
    save_file(weights(model) | {name: new + 2.0}, folder / UNET_FILE)
    assert Checkpoint(str(folder)).content != whole


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".pth"])
def test_pickles_are_refused(tmp_path, suffix):
    file = tmp_path / f"unet{suffix}"
    file.write_bytes(b"\x80\x04.")
    with pytest.raises(UnsafeWeightsError, match="never loaded") as caught:
        Checkpoint(str(file))
    assert one_line(caught)


def test_bad_paths_and_files(random_sd_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("note.txt", "broken.safetensors", "unet-00001-of-00002.safetensors"):
        (tmp_path / name).write_text("hello")
    for path, message in (
        ("owner/name", "path=owner/name: no such file or folder"),
        ("", "name a diffusers folder or a .safetensors file"),
        (None, "name a diffusers folder"),
        ("note.txt", "a diffusers folder or a single .safetensors file"),
        ("unet-00001-of-00002.safetensors", "one of several parts"),
        (".", r"no model_index\.json"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            Checkpoint(path)
        assert one_line(caught)
    with pytest.raises(ValueError, match="lora_scale is a number"):
        Checkpoint("broken.safetensors", lora_scale=True)
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        edit(random_sd_model, "broken.safetensors")


def test_configuration(random_sd_folder):
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    with initialize_config_dir(str(CONF), version_base=None):
        unset = compose("config", ["method=checkpoint"]).method
        given = compose("config", ["method=checkpoint", f"method.path={random_sd_folder}"]).method
    assert OmegaConf.is_missing(unset, "path")
    assert instantiate(given) == Checkpoint(str(random_sd_folder))
