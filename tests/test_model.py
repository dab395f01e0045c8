"""The model: it computes what stock diffusers computes, finds its layers, and loads nothing but safetensors."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import diffusers
import huggingface_hub
import numpy as np
import pytest
import single_file
import torch
import yaml

from harness import weights
from harness.method import Cost
from harness.model import KINDS, DiffusionModel, LazyModel, ModelNotFound, UnsafeWeightsError, fingerprint_of
from harness.releases import RELEASES, SINGLE_FILE, Release
from harness.sampler import Sampler

PROMPTS = ["a dog", "an image of a church in a forest, too long for 20 positions"]
SAMPLERS = ("ddim", "pndm", "lms", "euler", "dpm++")


@pytest.mark.parametrize("name", SAMPLERS)
def test_denoise_and_decode_equal_the_stock_pipeline(random_sd_model, random_sd_folder, name):
    check_against_stock(random_sd_model, random_sd_folder, Sampler(name, 5, 4.0))


@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_sdxl_equals_the_stock_pipeline(random_sdxl_model, random_sdxl_folder, name):
    check_against_stock(random_sdxl_model, random_sdxl_folder, Sampler(name, 4, 4.0))


def check_against_stock(model: DiffusionModel, folder: Path, sampler: Sampler) -> None:
    noise = model.latents([3, 2**31], 32, 48)
    ours = model.denoise(model.encode(PROMPTS), noise, sampler, sampler.guidance)
    # Another one: the model's own modules compute as `harness.inference` lets them.
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = sampler.scheduler(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": sampler.steps, "guidance_scale": sampler.guidance, "latents": noise, "width": 32}
    stock = pipe(PROMPTS, height=48, output_type="latent", **call).images
    # Each of our prompts is encoded alone, stock encodes them as one batch: the last bits differ and grow with the
    # steps. The latents are of order 1 to 10.
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)
    pictures = pipe(PROMPTS, height=48, output_type="np", **call).images
    difference = model.decode(ours).numpy().astype(int) - (pictures * 255).round().astype(int)
    assert np.abs(difference).max() <= 1
    assert np.asarray(pictures).std() > 0.01


def test_guidance_can_differ_by_row_and_halves_are_left_out_at_one(random_sd_model):
    model, sampler = random_sd_model, Sampler("ddim", 3, 5.0)
    text, noise = model.encode(PROMPTS), model.latents([1, 2])
    mixed = model.denoise(text, noise, sampler, [1.0, 6.0])
    assert model.calls == 3 * 4
    plain = model.denoise(text, noise, sampler, 1.0)
    assert model.calls == 3 * 4 + 3 * 2
    strong = model.denoise(text, noise, sampler, 6.0)
    torch.testing.assert_close(mixed[0], plain[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed[1], strong[1], rtol=1e-4, atol=1e-4)
    assert (plain - strong).abs().max() > 1e-2
    before = model.calls
    both = model.denoise(text, noise, sampler, 1.0, both_halves=True)
    assert model.calls - before == 3 * 4
    torch.testing.assert_close(both, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_common_start_needs_one_unconditional_row_in_the_first_call(request, family):
    model, sampler = request.getfixturevalue(f"random_{family}_model"), Sampler("ddim", 3, 5.0)
    text, noise, seen = model.encode(["a dog", "a church", "a lawn"]), model.latents([1, 1, 1]), []
    options = {"guidance": [5.0, 1.0, 3.0], "both_halves": True}
    plain = list(model.trajectory(text, noise, sampler, **options))
    before = model.calls
    handle = model.unet.register_forward_pre_hook(lambda unet, args: seen.append(len(args[0])))
    shared = list(model.trajectory(text, noise, sampler, same_start=True, keep_text=True, **options))
    handle.remove()
    assert seen == [4, 6, 6] and model.calls - before == 16
    for one, other in zip(plain, shared, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="rows of the latents differ"):
        next(model.trajectory(text, model.latents([1, 1, 2]), sampler, same_start=True, **options))


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("half", ["cond", "uncond"])
def test_a_walk_can_end_with_a_call_of_one_half(request, family, half):
    model, sampler = request.getfixturevalue(f"random_{family}_model"), Sampler("ddim", 4, 5.0)
    text, noise = model.encode(["a dog", "a church"]), model.latents([1, 2])
    layer = next(iter(model.layers("ffn2").values()))

    def seen(**options):
        inputs = []
        handle = layer.register_forward_pre_hook(lambda layer, args: inputs.append(args[0]))
        states = list(itertools.islice(model.trajectory(text, noise, sampler, 1.0, **options), 4))
        handle.remove()
        return inputs, states

    plain, states = seen(both_halves=True)
    ended, own = seen(ends_with=(2, half), keep_text=True)
    assert [len(x) for x in ended] == [4, 4, 2] and len(own) == 4
    rows = slice(0, 2) if half == "uncond" else slice(2, 4)
    torch.testing.assert_close(ended[2], plain[2][rows], rtol=1e-4, atol=1e-4)
    assert torch.equal(own[2], own[3]) and torch.equal(own[2], states[2])


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 6, 998, 999])
def test_a_sampler_knows_its_number_of_calls(random_sd_model, name, steps):
    if name == "dpm++" and steps == 999:
        pytest.skip("one more than it takes")
    sampler = Sampler(name, steps, 5.0)
    scheduler = random_sd_model.scheduler(sampler)
    assert len(scheduler.timesteps) == sampler.calls()
    assert len(set(scheduler.timesteps.tolist())) == steps
    # What the model was trained on; one more step would leave it.
    assert 0 <= scheduler.timesteps.min() and scheduler.timesteps.max() <= 999
    sample = torch.zeros(1, 4, 8, 8)
    for t in (*scheduler.timesteps[:2], *scheduler.timesteps[2:][-1:]):
        sample = scheduler.step(sample, t, scheduler.scale_model_input(sample, t), return_dict=False)[0]


def test_stop_after_ends_the_walk_and_on_call_sees_every_call(random_sd_model):
    model, sampler, seen = random_sd_model, Sampler("pndm", 5, 5.0), []
    text, noise = model.encode(["a dog"]), model.latents([1])
    states = list(model.trajectory(text, noise, sampler, 5.0))
    model.calls = 0
    early = model.denoise(text, noise, sampler, 5.0, stop_after=2, on_call=lambda i, t: seen.append((i, t)))
    assert model.calls == 4
    assert seen == [(0, 801), (1, 601)]
    assert torch.equal(early, states[2])
    assert len(states) == sampler.calls() + 1


def test_a_batch_of_four_agrees_with_single_pictures(random_sd_model):
    model, sampler = random_sd_model, Sampler("ddim", 4, 5.0)
    prompts, seeds = ["a dog", "a church", "a lawn", ""], [1, 2, 3, 4]
    together = model.denoise(model.encode(prompts), model.latents(seeds), sampler, 5.0)
    alone = [model.denoise(model.encode([p]), model.latents([s]), sampler, 5.0) for p, s in zip(prompts, seeds)]
    # Other batch sizes choose other kernels: float32 rounding, amplified by four steps of guidance 5.
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_found_by_kind(random_sd_model, random_sdxl_model, kind):
    # One transformer layer in down, mid and two in up; SDXL's has two in each of them.
    assert len(random_sd_model.layers(kind)) == 4
    assert len(random_sdxl_model.layers(kind)) == 8
    layers = random_sd_model.layers(kind)
    assert list(layers) == sorted(layers)
    text, width = random_sd_model.encode(["a"]).hidden.shape[-1], 64
    shape = {"ffn1": (8 * width, width), "ffn2": (width, 4 * width), "cross_k": (width, text), "cross_v": (width, text)}
    for layer in layers.values():
        assert tuple(layer.weight.shape) == shape.get(kind, (width, width))


def test_unknown_names_come_with_near_matches(random_sd_model):
    with pytest.raises(ValueError, match="did you mean cross_v"):
        random_sd_model.layers("crossv")
    with pytest.raises(ValueError, match=r"unknown sampler 'dim'; did you mean ddim"):
        Sampler("dim", 5, 5.0)
    for name, bad, most in (("ddim", 0, 999), ("pndm", 1000, 999), ("dpm++", 999, 998), ("euler", True, 999)):
        with pytest.raises(ValueError, match=rf"steps: {re.escape(name)} takes a whole number from 1 to {most}, got"):
            Sampler(name, bad, 5.0)
    for guidance in (-1, float("nan"), float("inf"), "7.5", True, None):
        with pytest.raises(ValueError, match=r"sampler\.guidance must be a finite number >= 0"):
            Sampler("ddim", 5, guidance)
    assert Sampler("ddim", 5, 0).guidance == 0


def test_features_are_kept_and_do_not_depend_on_the_neighbours(random_sd_model):
    first = random_sd_model.encode(["a dog", "a cat", "a dog"])
    assert torch.equal(first.hidden[0], first.hidden[2])
    assert torch.equal(random_sd_model.encode(["a cat"]).hidden, first[1].hidden)
    assert first.hidden.shape[1] == random_sd_model.pipe.tokenizer.model_max_length
    with pytest.raises(ValueError, match="list of prompts"):
        random_sd_model.encode("a dog")


def test_the_last_subject_token_is_found(random_sd_model):
    # One token a letter: the start token, 4 letters, the end token.
    features = random_sd_model.token_features(["a dog", "", "x" * 99])
    assert features.last.tolist() == [4, 0, 18]


def test_a_prompt_that_is_cut_is_warned_of_once(random_sd_model, caplog):
    random_sd_model.encode(["y" * 30, "z" * 40])
    assert [record.getMessage() for record in caplog.records if "cut" in record.getMessage()] == [
        f"prompts are cut after 20 tokens; first: {'y' * 30!r} loses 12"
    ]


def test_noise_belongs_to_the_seed_alone(random_sd_model):
    noise = random_sd_model.latents([7, 8, 7 + 2**32, 2**64 - 1])
    assert torch.equal(noise[1], random_sd_model.latents([8])[0])
    assert torch.equal(noise[0], torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(7)))
    # torch's generator reads 32 bits only; without care the third row would repeat the first.
    assert not torch.equal(noise[0], noise[2])
    with pytest.raises(ValueError, match="2\\*\\*64"):
        random_sd_model.latents([-1])
    with pytest.raises(ValueError, match="multiples of 4"):
        random_sd_model.latents([1], 33, 32)


def test_nan_is_an_error_unless_black_is_asked_for(random_sd_model):
    latents = random_sd_model.latents([1, 2])
    clean = random_sd_model.decode(latents)
    latents[1, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="1 of 2 pictures"):
        random_sd_model.decode(latents)
    pictures = random_sd_model.decode(latents, nan_to_black=True)
    assert pictures[1].max() == 0 and clean[1].max() > 0
    assert (pictures[0].int() - clean[0].int()).abs().max() <= 1


def test_features_and_latents_can_be_trained_on(random_sd_model):
    """Methods take gradients through what denoise and encode return; inference mode would forbid it."""
    model = random_sd_model
    text = model.encode(["a dog"])
    latents = model.denoise(text, model.latents([1]), Sampler("ddim", 2, 5.0), 5.0, stop_after=1)
    weight = next(iter(model.layers("cross_k").values())).weight.requires_grad_(True)
    model.unet(latents, 10, encoder_hidden_states=text.hidden).sample.square().mean().backward()
    assert weight.grad.abs().sum() > 0


def test_the_fingerprint_is_known_from_files_and_names_weights_and_dtype(random_sd_folder, tmp_path):
    model = DiffusionModel.load(random_sd_folder, dtype="float32")
    lazy = LazyModel(random_sd_folder)
    assert model.fingerprint == fingerprint_of(random_sd_folder, torch.float32) == lazy.fingerprint
    assert lazy.size == 32 and lazy.calls == 0 and not lazy.loaded
    assert lazy() is lazy() and lazy.loaded
    assert fingerprint_of(random_sd_folder, "float16") != model.fingerprint
    copy = shutil.copytree(random_sd_folder, tmp_path / "copy")
    config = json.loads((copy / "unet" / "config.json").read_text())
    (copy / "unet" / "config.json").write_text(json.dumps({**config, "_diffusers_version": "0.0"}))
    assert fingerprint_of(copy, "float32") == model.fingerprint
    with torch.no_grad():
        model.unet.conv_in.bias.add_(1.0)
    model.unet.save_pretrained(copy / "unet")
    assert fingerprint_of(copy, "float32") != model.fingerprint


def test_a_copy_in_the_hub_cache_has_the_same_fingerprint_until_a_blob_changes(random_sd_folder, tmp_path, monkeypatch):
    """The cache keeps large files as links to blobs named by their sha256; only their bytes say what they are."""
    copy = shutil.copytree(random_sd_folder, tmp_path / "snapshots" / "abc")
    for file in list(copy.rglob("*.safetensors")):
        blob = tmp_path / "blobs" / weights.file_sha256(file)
        blob.parent.mkdir(exist_ok=True)
        file.rename(blob)
        file.symlink_to(blob)
    whole = fingerprint_of(random_sd_folder, "float32")
    monkeypatch.setattr(weights, "RELEASES", {"us/sd": release_of(random_sd_folder)})
    assert fingerprint_of(copy, "float32") == whole and weights.published("us/sd", copy) is True
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    assert fingerprint_of(copy, "float32") != whole and weights.published("us/sd", copy) is False


def test_a_pipeline_in_memory_is_known_by_its_tensors(random_sd_folder):
    first, second = (
        DiffusionModel(diffusers.StableDiffusionPipeline.from_pretrained(random_sd_folder)) for _ in range(2)
    )
    assert first.fingerprint == second.fingerprint
    with torch.no_grad():
        second.unet.conv_in.bias.add_(1.0)
    assert DiffusionModel(second.pipe).fingerprint != first.fingerprint


def test_fp16_files_load_in_the_asked_dtype(random_sd_folder, tmp_path):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(random_sd_folder)
    pipe.to(torch.float16).save_pretrained(tmp_path / "half")
    model = DiffusionModel.load(tmp_path / "half")
    for module in (model.unet, model.pipe.vae, *model.encoders):
        assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.unet.parameters())


def test_the_xl_vae_stays_in_float32_under_float16(random_sdxl_folder, random_sd_folder):
    model = DiffusionModel.load(random_sdxl_folder, dtype="float16")
    assert (model.unet.dtype, model.pipe.vae.dtype) == (torch.float16, torch.float32)
    assert model.decode(model.latents([1])).shape == (1, 32, 32, 3)
    assert DiffusionModel.load(random_sd_folder, dtype="float16").pipe.vae.dtype == torch.float16


def halved(folder, *parts):
    """The folder with the weights of some parts in float16, as files of that variant only."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    for part in parts:
        getattr(pipe, part).half().save_pretrained(folder / part)
        (file,) = (folder / part).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))
    return folder


@pytest.mark.parametrize("parts", [("unet",), ("unet", "vae", "text_encoder", "text_encoder_2")])
def test_files_of_the_fp16_variant_are_taken_where_there_are_no_others(random_sdxl_folder, tmp_path, parts):
    folder = halved(shutil.copytree(random_sdxl_folder, tmp_path / "half"), *parts)
    files = weights.component_files(folder)
    assert [name for name in files if ".fp16." in name] == sorted(
        f"{part}/{'model' if part.startswith('text') else 'diffusion_pytorch_model'}.fp16.safetensors" for part in parts
    )
    model, plain = DiffusionModel.load(folder), DiffusionModel.load(random_sdxl_folder)
    assert model.fingerprint == LazyModel(folder).fingerprint != plain.fingerprint
    assert model.unet.dtype == torch.float32
    rounded = plain.unet.conv_in.weight.half().float()
    assert torch.equal(model.unet.conv_in.weight, rounded) and not torch.equal(rounded, plain.unet.conv_in.weight)


def test_plain_files_win_over_the_fp16_variant(random_sd_folder, tmp_path):
    folder = shutil.copytree(random_sd_folder, tmp_path / "both")
    diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").half().save_pretrained(
        folder / "unet", variant="fp16"
    )
    assert DiffusionModel.load(folder).fingerprint == DiffusionModel.load(random_sd_folder).fingerprint


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_sdxl_in_every_precision(random_sdxl_folder, dtype):
    model = DiffusionModel.load(random_sdxl_folder, dtype=dtype)
    sampler = Sampler("euler", 2, 4.0)
    latents = model.denoise(model.encode(PROMPTS), model.latents([1, 2]), sampler, 4.0)
    assert latents.dtype == model.dtype and bool(latents.isfinite().all())
    assert {p.dtype for p in model.pipe.vae.parameters()} == {
        torch.bfloat16 if dtype == "bfloat16" else torch.float32  # its VAE overflows in float16
    }
    assert model.decode(latents).float().std() > 0


# Single files


@pytest.fixture(params=["sd", "sdxl"])
def configs_and_file(request, tmp_path):
    """A diffusers folder, and the same model as one file elsewhere."""
    folder = request.getfixturevalue(f"random_{request.param}_folder")
    (tmp_path / "one").mkdir()
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    return folder, single_file.save_single_file(pipe, tmp_path / "one" / "model.safetensors")


def bare(folder, target):
    """A copy of a diffusers folder without its weights."""
    return shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)


def test_a_single_file_gives_the_folders_pictures(configs_and_file, monkeypatch):
    folder, file = configs_and_file
    bare(folder, file.parent)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    lazy, model, plain = LazyModel(file), DiffusionModel.load(file), DiffusionModel.load(folder)
    assert lazy.fingerprint == model.fingerprint != plain.fingerprint
    assert lazy.size == model.size == plain.size and not lazy.loaded
    assert getattr(model.pipe, "safety_checker", None) is None
    for one, other in zip(
        (model.unet, model.pipe.vae, *model.encoders), (plain.unet, plain.pipe.vae, *plain.encoders), strict=True
    ):
        tensors = other.state_dict()
        assert one.state_dict().keys() == tensors.keys()
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in one.state_dict().items())
    sampler = Sampler("ddim", 2, 4.0)
    ours, theirs = (m.denoise(m.encode(PROMPTS), m.latents([1, 2]), sampler, 4.0) for m in (model, plain))
    # Tensors that lie otherwise in memory may meet other kernels: float32 rounding.
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    # The configs are a part of the model: what the UNet predicts stands there.
    scheduler = file.parent / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "v_prediction"}))
    assert LazyModel(file).fingerprint != lazy.fingerprint


def refuse(*_, **__):
    raise AssertionError("the Hub's cache was asked")


def test_a_single_file_takes_configs_from_the_cache_of_its_release(configs_and_file, tmp_path, monkeypatch):
    folder, file = configs_and_file
    cached, asked = bare(folder, tmp_path / "cached"), []

    def in_cache(repo, revision, local_files_only):
        assert local_files_only
        asked.append((repo, revision))
        if revision is not None:
            raise FileNotFoundError("not this revision")
        return str(cached)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", in_cache)
    model = DiffusionModel.load(file)
    assert model.unet.conv_in.weight.abs().sum() > 0
    repo = "stabilityai/stable-diffusion-xl-base-1.0" if model.is_xl else "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert asked[:2] == [(repo, RELEASES[repo].revision), (repo, None)]
    shutil.rmtree(cached / "tokenizer")
    with pytest.raises(ModelNotFound, match=rf"lacks the model's configs.*hf download {repo} --revision [^\n]*$"):
        LazyModel(file)


def test_single_files_that_are_no_whole_model_are_refused_in_one_line(random_sd_folder, random_sdxl_folder, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"no weights at all")
    with pytest.raises(ModelNotFound, match=r"damaged or no safetensors file[^\n]*$"):
        LazyModel(file)
    shutil.copy(random_sd_folder / "unet" / "diffusion_pytorch_model.safetensors", file)
    with pytest.raises(ModelNotFound, match=r"not a whole model.* no UNet, no VAE, no text encoder"):
        LazyModel(file)
    single_file.save_single_file(diffusers.DiffusionPipeline.from_pretrained(random_sd_folder), file)
    bare(random_sdxl_folder, tmp_path)
    with pytest.raises(ModelNotFound, match=r"holds a StableDiffusionPipeline, and the model_index\.json beside it"):
        LazyModel(file)


# Published releases


def test_known_releases_are_the_ones_of_the_configs():
    for name in ("sd15", "sdxl"):
        config = yaml.safe_load((weights.REPOSITORY / "conf" / "model" / f"{name}.yaml").read_text())["model"]
        assert RELEASES[config["path"]].revision == config["revision"]
    # SD 1.4 has no digests of its own: only its revision says which files are meant.
    config = yaml.safe_load((weights.REPOSITORY / "conf" / "model" / "sd14.yaml").read_text())["model"]
    assert config["path"] == "CompVis/stable-diffusion-v1-4"
    assert config["revision"] == "133a221b8aa7292a167afc5127cb63fb5005638b"
    digests = [digest for release in RELEASES.values() for digest in release.files.values()]
    assert len(set(digests)) == len(digests) and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


def release_of(folder, **changed) -> Release:
    files = {
        name: weights.file_sha256(file)
        for name, file in weights.component_files(folder).items()
        if file.suffix == ".safetensors"
    }
    return Release("0" * 40, files | changed)


def test_files_are_compared_with_those_of_the_releases(random_sd_folder, random_sdxl_folder, monkeypatch):
    monkeypatch.setattr(weights, "RELEASES", {"us/sd": release_of(random_sd_folder)})
    assert weights.published(random_sd_folder, random_sd_folder) is True
    assert weights.published(random_sdxl_folder, random_sdxl_folder) is None
    assert weights.published("us/sd", random_sd_folder) is True
    assert weights.published("us/sd", random_sdxl_folder) is False
    assert weights.published("others/sd", random_sdxl_folder) is None
    # A release of which not every file is known cannot be confirmed, only refuted.
    known = release_of(random_sd_folder)
    del known.files["vae/diffusion_pytorch_model.safetensors"]
    monkeypatch.setattr(weights, "RELEASES", {"us/sd": known})
    assert weights.published("us/sd", random_sd_folder) is None
    file = random_sd_folder / "unet" / "diffusion_pytorch_model.safetensors"
    monkeypatch.setattr(weights, "RELEASES", {"us/sd": Release("", {SINGLE_FILE: weights.file_sha256(file)})})
    assert weights.published(file, file) is True


def test_other_weights_under_a_published_id_are_refused(random_sd_folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(random_sd_folder))
    unet = {"unet/diffusion_pytorch_model.safetensors": "f" * 64}
    monkeypatch.setattr(weights, "RELEASES", {"us/sd": release_of(random_sd_folder, **unet)})
    with pytest.raises(ModelNotFound) as error:
        weights.locate("us/sd", "0" * 40)
    line = str(error.value)
    assert "\n" not in line and "us/sd: unet/diffusion_pytorch_model.safetensors" in line
    assert f"model=folder model.path={random_sd_folder}" in line
    # Another revision may hold other files; the record then says that they are not the published ones.
    assert weights.locate("us/sd", "1" * 40) == random_sd_folder
    assert weights.locate(random_sd_folder) == random_sd_folder


def test_a_cached_snapshot_may_lack_what_is_not_read(random_sd_folder, monkeypatch):
    """After a download of what we need, the Hub's client calls the snapshot incomplete: the pickles are missing."""

    def incomplete(*_, **__):
        raise huggingface_hub.errors.IncompleteSnapshotError("files are missing", snapshot_path=str(random_sd_folder))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", incomplete)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", refuse)
    assert weights.locate("us/sd", "0" * 40) == random_sd_folder


def test_pickles_are_refused_and_missing_parts_named(random_sd_folder, tmp_path):
    folder = shutil.copytree(random_sd_folder, tmp_path / "model")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UnsafeWeightsError, match="never loaded"):
        DiffusionModel.load(folder)
    (folder / "unet" / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(ModelNotFound, match=r"no diffusion_pytorch_model\.safetensors"):
        DiffusionModel.load(folder)
    shutil.rmtree(folder / "scheduler")
    with pytest.raises(ModelNotFound, match=r"incomplete model, scheduler/ missing"):
        DiffusionModel.load(folder)
    (folder / "model_index.json").unlink()
    with pytest.raises(ModelNotFound, match=r"no model_index\.json"):
        DiffusionModel.load(folder)
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(UnsafeWeightsError, match=r"convert it to \.safetensors"):
        DiffusionModel.load(tmp_path / "model.ckpt")
    with pytest.raises(ModelNotFound, match="no such folder"):
        DiffusionModel.load("./nowhere/at-all")


def test_a_hub_model_that_is_not_to_be_had_says_how_to_get_it(monkeypatch):
    asked = []

    def offline(repo, **options):
        asked.append((repo, options["revision"]))
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", offline)
    with pytest.raises(ModelNotFound) as error:
        weights.locate("nobody/no-such-model", "abc123")
    assert asked == [("nobody/no-such-model", "abc123")]
    message = str(error.value)
    assert "\n" not in message
    assert "nobody/no-such-model" in message and "--revision abc123" in message and "model=folder" in message


def test_without_downloading_the_hub_is_not_asked(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", fail)
    with pytest.raises(ModelNotFound, match=r"nobody/no-such-model.*a dry run downloads nothing; run `hf download"):
        weights.locate("nobody/no-such-model", download=False)
    assert weights.local("nobody/no-such-model") is None


def test_cost_counts_seconds_and_unet_samples_by_stage(random_sd_model):
    cost = Cost(random_sd_model, "cpu")
    for _ in range(2):
        with cost.stage("edit"):
            random_sd_model.denoise(
                random_sd_model.encode(["a"]), random_sd_model.latents([1]), Sampler("ddim", 2, 5), 5
            )
    with pytest.raises(RuntimeError, match="do not nest"), cost.stage("outer"), cost.stage("inner"):
        pass
    report = cost.as_dict()
    assert report["stages"]["edit"]["unet_samples"] == report["unet_samples"] == 8
    assert 0 < report["stages"]["edit"]["seconds"] <= report["seconds"]
    assert report["peak_memory_bytes"] > 50e6 and report["device"] == "cpu"
    assert json.loads(json.dumps(report)) == report


def test_what_is_done_aside_counts_for_its_own_stage_alone():
    model = SimpleNamespace(calls=0)
    cost = Cost(model, "cpu")
    with cost.stage("pictures"):
        model.calls += 4
        with cost.aside("scores"):
            model.calls += 1
            time.sleep(0.02)
        model.calls += 2
        with pytest.raises(ZeroDivisionError), cost.aside("scores"):
            1 / 0  # noqa: B018
        model.calls += 8
    with cost.aside("scores"):
        model.calls += 16
    stages = cost.as_dict()["stages"]
    assert {name: stage["unet_samples"] for name, stage in stages.items()} == {"pictures": 14, "scores": 17}
    assert stages["pictures"]["seconds"] < 0.02 <= stages["scores"]["seconds"]
    with cost.stage("grid"):
        pass
