"""The shared training loop and its pictures: restored weights, exact resume, draws, latents, messages."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import mse_loss
from training_stage import Stage, same_weights, weights

import harness.progress as progress
import harness.trainer as trainer
from harness.edit import Edit
from harness.files import StoreError
from harness.method import Scratch, scratch
from harness.model import DiffusionModel
from harness.sampler import Sampler
from harness.screen import ScreenedPromptError
from harness.store import Store
from harness.trainer import Draw, Settings, parameter_names, summed_gradients, train
from harness.training_data import Pictures, check_template, drawn_pictures, filled, folder_pictures

SETTINGS = Settings(learning_rate=1e-3, batch=4)
FAST = Sampler("ddim", 2, 3.0)


def toy_loss(model, at=None, then=None):
    """Pull the prediction for a prompt on noise to the unconditional one; `then` happens in step `at`."""

    def loss(network, draw):
        if draw.step == at:
            then()
        z, t = draw.noise(torch.zeros(len(draw), 4, 8, 8)), draw.timesteps()
        # A call without gradients comes first, as in most methods: autocast must not hand its weights on.
        with torch.no_grad():
            target = network.predict(z, t, model.unconditional(len(draw)))
        return mse_loss(network.predict(z, t, model.encode(["a tench"] * len(draw))), target + 0.1)

    return loss


def run(model, *, loss=None, settings=SETTINGS, names=None, steps=3, seed=0, **more):
    names = parameter_names(model, "xattn_kv") if names is None else names
    return train(model, names, loss or toy_loss(model), settings, steps=steps, seed=seed, label="toy", **more)


def stop():
    raise KeyboardInterrupt


def test_training_changes_what_is_named_and_leaves_the_model_as_it_was(random_sdxl_model):
    model = random_sdxl_model
    before, pointers = weights(model), {name: p.data_ptr() for name, p in model.unet.named_parameters()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    names = parameter_names(model, "xattn")
    calls = model.calls
    changed = run(model, names=names, steps=2)
    assert model.calls - calls == 2 * 4 * 2
    assert set(changed) == set(names) and all(".attn2." in name for name in names)
    assert not any(torch.equal(changed[name], before[name]) for name in changed)
    assert same_weights(model, before) and torch.equal(torch.get_rng_state(), state)
    assert {name: p.data_ptr() for name, p in model.unet.named_parameters()} == pointers
    assert not any(p.requires_grad or p.grad is not None for p in model.unet.parameters())
    for stopped in (stop, lambda: 1 / 0):
        with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
            run(model, loss=toy_loss(model, at=1, then=stopped))
        assert same_weights(model, before) and not any(p.requires_grad for p in model.unet.parameters())


def test_parameter_names_follow_the_layer_kinds(random_sd_model, random_sdxl_model):
    for model in (random_sd_model, random_sdxl_model):
        blocks = len(model.layers("cross_k"))
        assert len(parameter_names(model, "xattn_kv")) == 2 * blocks
        assert len(parameter_names(model, "xattn")) == 5 * blocks  # to_q, to_k, to_v, to_out and its bias
        assert parameter_names(model, "full") == [name for name, _ in model.unet.named_parameters()]
    with pytest.raises(ValueError, match="did you mean xattn"):
        parameter_names(random_sd_model, "xatn")


def test_a_resumed_run_equals_an_unbroken_one(random_sd_model, tmp_path: Path, monkeypatch, caplog):
    model = random_sd_model
    whole = run(model, steps=4)
    assert same_weights(run(model, steps=4), whole), "the same seed gives the same bits"
    assert not same_weights(run(model, steps=4, seed=1), whole)

    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(trainer, "CHECKPOINT_SHARE", 0)
    seen, place = [], Scratch(tmp_path)

    def counted(network, draw):
        seen.append(draw.step)
        return toy_loss(model)(network, draw)

    with pytest.raises(KeyboardInterrupt):
        run(model, steps=4, loss=toy_loss(model, at=2, then=stop), scratch=place)
    assert same_weights(run(model, steps=4, loss=counted, scratch=place), whole) and seen == [2, 3]
    assert same_weights(run(model, steps=4, loss=counted, scratch=place), whole) and seen == [2, 3], "it was finished"
    assert [path.name for path in tmp_path.iterdir()] == [trainer.CHECKPOINT]

    checkpoint = tmp_path / trainer.CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert same_weights(run(model, steps=4, loss=counted, scratch=place), whole) and seen[2:] == [0, 1, 2, 3]
    assert "is damaged" in caplog.text


def test_a_kill_within_a_write_leaves_the_former_checkpoint(random_sd_model, tmp_path: Path, monkeypatch):
    whole = run(random_sd_model)
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(trainer, "CHECKPOINT_SHARE", 0)
    replace, times = trainer.os.replace, []

    def dying(source, target):
        times.append(target)
        if len(times) == 2:
            stop()
        replace(source, target)

    monkeypatch.setattr(trainer.os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        run(random_sd_model, scratch=Scratch(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [trainer.CHECKPOINT]
    assert same_weights(run(random_sd_model, scratch=Scratch(tmp_path)), whole)


def test_a_checkpoint_keeps_account_of_what_it_cost(random_sd_model, tmp_path: Path, monkeypatch):
    model, told = random_sd_model, []
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(trainer, "CHECKPOINT_SHARE", 0)
    place = Scratch(tmp_path, spent=lambda: {"run": model.calls}, found=told.append)
    with pytest.raises(KeyboardInterrupt):
        run(model, steps=4, loss=toy_loss(model, at=2, then=stop), scratch=place)
    assert told == [], "nothing was found"
    run(model, steps=4, scratch=place)
    assert told == [{"run": 2 * 2 * SETTINGS.batch}], "two calls a step, two steps before the kill"


def test_what_cannot_be_resumed_is_not_left_behind(random_sd_model, tmp_path: Path, monkeypatch):
    model, place = random_sd_model, Scratch(tmp_path / "training")
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(trainer, "CHECKPOINT_SHARE", 0)

    def nan(network, draw):
        return toy_loss(model)(network, draw) * (float("nan") if draw.step == 2 else 1)

    with pytest.raises(FloatingPointError):
        run(model, loss=nan, scratch=place)  # every run would come to the same NaN
    assert not place.folder.exists()
    with pytest.raises(ZeroDivisionError):
        run(model, loss=toy_loss(model, at=0, then=lambda: 1 / 0), scratch=place)
    assert not place.folder.exists(), "no step was finished"
    with pytest.raises(ZeroDivisionError):
        run(model, loss=toy_loss(model, at=1, then=lambda: 1 / 0), scratch=place)
    assert (place.folder / trainer.CHECKPOINT).exists(), "one step was"

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise trainer.SafetensorError("no space left")

    monkeypatch.setattr(trainer, "save_file", full)
    with pytest.raises(StoreError, match="no space left"):
        run(model, scratch=place)
    assert [path.name for path in place.folder.iterdir()] == [trainer.CHECKPOINT], "the former one"
    with pytest.raises(StoreError, match="no space left"):
        run(model, scratch=Scratch(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_micro_batches_change_rounding_only(random_sd_model):
    gradients = [
        summed_gradients(
            random_sd_model, parameter_names(random_sd_model, "xattn_kv"), toy_loss(random_sd_model), settings,
            steps=2, seed=0, label="toy",
        )
        for settings in (SETTINGS, Settings(1e-3, 4, accumulate=2))
    ]  # fmt: skip
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def test_sums_that_were_interrupted_go_on_bit_for_bit(random_sd_model, tmp_path: Path, monkeypatch, caplog):
    model, names, place = random_sd_model, parameter_names(random_sd_model, "xattn_kv"), Scratch(tmp_path / "sums")
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(trainer, "CHECKPOINT_SHARE", 0)

    def sums(at=None, then=None, scratch=place):
        loss = toy_loss(model, at=at, then=then)
        return summed_gradients(model, names, loss, SETTINGS, steps=3, seed=0, label="toy", scratch=scratch)

    whole = sums(scratch=None)
    with pytest.raises(KeyboardInterrupt):
        sums(at=2, then=stop)
    # What was summed is not summed again: the second step would fail.
    assert same_weights(sums(at=1, then=stop), whole)
    (checkpoint,) = place.folder.iterdir()
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert same_weights(sums(), whole) and "is damaged" in caplog.text


def test_the_log_says_how_far_it_is(random_sd_model, tmp_path: Path, monkeypatch, caplog):
    """A batch job has no terminal for a bar. Here a step takes 160 seconds and a line is due every 300."""
    model, place, clock = random_sd_model, Scratch(tmp_path), [0.0]
    for module in (trainer, progress):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    caplog.set_level("INFO")

    def slow(network, draw):
        clock[0] += 160
        return toy_loss(model, at=stopped_at, then=stop)(network, draw)

    def said():
        lines = [text for text in caplog.messages if text.endswith(" left")]
        caplog.clear()
        return [re.sub(r"loss \d\.\d+,", "loss,", text) for text in lines]

    stopped_at = 3
    with pytest.raises(KeyboardInterrupt):
        run(model, loss=slow, steps=6, scratch=place)
    assert said() == ["toy: step 2 of 6, loss, about 0:10:40 left"]
    stopped_at = None
    run(model, loss=slow, steps=6, scratch=place)
    assert said() == ["toy: step 5 of 6, loss, about 0:02:40 left"], "what was done before takes no time"
    summed_gradients(model, ["conv_in.weight"], slow, SETTINGS, steps=5, seed=0, label="toy")
    assert said() == [f"toy: step {n} of 5, loss, about {left} left" for n, left in ((2, "0:08:00"), (4, "0:02:40"))]
    monkeypatch.setattr(progress, "SECONDS", 0)
    draw_some(model, 17, Stage())
    assert said() == [f"pictures of tench: picture {n} of 17, about 0:00:00 left" for n in (16, 17)]


def test_a_draw_depends_on_seed_and_sample_alone():
    like = torch.zeros(4, 2, 3)
    whole = Draw(5, 1, range(4, 8))
    noise, t = whole.noise(like), whole.timesteps()
    halves = [Draw(5, 1, range(4, 6)), Draw(5, 1, range(6, 8))]
    assert torch.equal(torch.cat([half.noise(like[:2]) for half in halves]), noise)
    assert torch.equal(torch.cat([half.timesteps() for half in halves]), t)
    assert {half.common(1000) for half in halves} == {whole.common(1000)}
    assert not torch.equal(Draw(6, 1, range(4, 8)).noise(like), noise)
    assert noise.dtype == torch.float32 and 0 <= int(t.min()) and int(t.max()) < 1000


def test_every_round_meets_every_item_once():
    rounds = [Draw(0, 0, range(5 * i, 5 * i + 5)).items(5, "forget") for i in range(6)]
    assert all(sorted(items) == list(range(5)) for items in rounds)
    assert len({tuple(items) for items in rounds}) > 3
    assert rounds[0] + rounds[1] == Draw(0, 0, range(10)).items(5, "forget"), "steps may straddle rounds"
    assert rounds != [Draw(0, 0, range(5 * i, 5 * i + 5)).items(5, "retain") for i in range(6)]


def test_masked_entries_stay_bit_for_bit(random_sd_model):
    names = parameter_names(random_sd_model, "xattn_kv")
    before = weights(random_sd_model)
    masks = {name: torch.rand(before[name].shape, generator=torch.Generator().manual_seed(0)) < 0.5 for name in names}
    for name, new in run(random_sd_model, masks=masks).items():
        assert torch.equal(new[~masks[name]], before[name][~masks[name]])
        assert not torch.equal(new[masks[name]], before[name][masks[name]])


def test_the_original_weights_can_be_asked_while_training(random_sd_model):
    model, gaps, ends = random_sd_model, [], []
    z, t = torch.ones(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        untrained = model.predict(z, t, model.encode(["a tench"]))

    def loss(network, draw):
        now = network.predict(z, t, model.encode(["a tench"]))
        with network.original():
            before = network.predict(z, t, model.encode(["a tench"]))
            assert not before.requires_grad
        assert torch.equal(before, untrained)
        gaps.append(float((now - before).detach().abs().max()))
        return (now - before - 1).square().mean()

    run(model, loss=loss, at_end=lambda network: ends.append(network.predict(z, t, model.encode(["a tench"]))))
    assert gaps[0] == 0 and 0 < gaps[1] and not torch.equal(ends[0], untrained)


def test_noise_is_added_and_taken_away_at_the_model_s_schedule(random_sdxl_model):
    seen = {}

    def loss(network, draw):
        z0, t = draw.noise(torch.zeros(4, 4, 8, 8)), torch.tensor([0, 10, 500, 999])
        n = draw.noise(z0)
        z_t = network.noised(z0, n, t)
        seen.update(z0=z0, n=n, z_t=z_t, back=network.clean(z_t, n, t), alpha_bar=network.alphas_cumprod)
        seen["partly"] = network.partly_denoised(model.encode(["a tench"] * 4), n, Sampler("ddim", 4, 3.0), 2)
        return network.predict(z_t, t, model.encode(["a tench"] * 4)).square().mean()

    model = random_sdxl_model  # its own scheduler is Euler's, in another space
    run(model, loss=loss, steps=1)
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = (1 - beta).cumprod(0)
    torch.testing.assert_close(seen["alpha_bar"].double(), alpha_bar, rtol=1e-4, atol=1e-6)
    expected = alpha_bar[500].sqrt() * seen["z0"][2] + (1 - alpha_bar[500]).sqrt() * seen["n"][2]
    torch.testing.assert_close(seen["z_t"][2], expected.float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(seen["back"][:3], seen["z0"][:3], rtol=1e-3, atol=1e-3)
    z, t = seen["partly"]
    with torch.no_grad():
        walk = list(model.trajectory(model.encode(["a tench"] * 4), seen["n"], Sampler("ddim", 4, 3.0), 3.0))
    torch.testing.assert_close(z, walk[2])
    assert t.tolist() == [251] * 4  # the third of 751, 501, 251, 1


def test_half_precision_models_train_in_float32_and_get_their_bits_back(random_sd_folder: Path):
    model = DiffusionModel.load(random_sd_folder, dtype="bfloat16")
    before = weights(model)
    dtypes = []

    def loss(network, draw):
        dtypes.append({parameter.dtype for parameter in network.trained.values()})
        return toy_loss(model)(network, draw)

    for precision in ("float32", "bfloat16"):
        changed = run(model, loss=loss, settings=Settings(1e-2, 4, precision=precision), steps=1)
        assert dtypes.pop() == {torch.float32}
        assert changed and all(tensor.dtype == torch.bfloat16 for tensor in changed.values())
        assert same_weights(model, before) and model.dtype == torch.bfloat16
        assert {p.dtype for p in model.unet.parameters()} == {torch.bfloat16}


def test_a_nan_stops_with_one_line_and_restores(random_sd_model):
    before = weights(random_sd_model)

    def nan(network, draw):
        return toy_loss(random_sd_model)(network, draw) * (float("nan") if draw.step == 1 else 1)

    with pytest.raises(
        FloatingPointError, match=r"^toy: the loss is nan at step 2 of 3; try a smaller learning rate[^\n]*$"
    ):
        run(random_sd_model, loss=nan)
    assert same_weights(random_sd_model, before)


def test_what_cannot_be_trained_is_refused(random_sd_model):
    model = random_sd_model
    for bad in ({"learning_rate": 0}, {"batch": 0}, {"accumulate": 3}, {"precision": "fp16"}):
        with pytest.raises(ValueError, match="toy") as error:
            Settings(**{"learning_rate": 1e-5, "batch": 4} | bad).check("toy")
        assert next(iter(bad)) in str(error.value)
    with pytest.raises(ValueError, match="no parameter 'nowhere'"):
        run(model, names=["nowhere"])
    edit = Edit.make("delta", {parameter_names(model, "full")[0]: next(model.unet.parameters()) + 1}, model)
    with edit.applied(model), pytest.raises(RuntimeError, match="revert"):
        run(model)
    model.pipe.scheduler.register_to_config(prediction_type="v_prediction")
    before = weights(model)
    with pytest.raises(ValueError, match="predicts v_prediction"):
        run(model)
    assert same_weights(model, before) and model.dtype == torch.float32


def test_scratch_folders_come_from_the_stage(tmp_path: Path):
    store = Store(tmp_path)
    stage = Stage()
    stage.scratch = lambda name, key: Scratch(store.scratch(name, {"key": key}))
    place, other = (scratch(stage, "toy.training", {"seed": seed}).folder for seed in (0, 1))
    assert place == scratch(stage, "toy.training", {"seed": 0}).folder != other
    assert tmp_path in place.parents and not place.exists()
    place.mkdir(parents=True)
    assert Store(tmp_path).root and place.is_dir(), "a store that is opened again leaves it alone"
    assert scratch(lambda name, key, make: make(), "toy.training", {}) is None


# Latents of pictures


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pictures_are_encoded_at_the_scale_of_the_latents(random_sdxl_folder: Path, dtype: str):
    model = DiffusionModel.load(random_sdxl_folder, dtype=dtype)
    pictures = torch.randint(0, 256, (3, 32, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = model.encode_images(pictures)
    assert model.vae_dtype == torch.float32  # SDXL's VAE overflows in float16
    assert mean.shape == std.shape == (3, 4, 8, 8) and mean.dtype == torch.float32 and bool((std > 0).all())
    vae = model.pipe.vae
    with torch.no_grad():
        posterior = vae.encode(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist
    torch.testing.assert_close(mean, posterior.mean * 0.18215)
    torch.testing.assert_close(std, posterior.std * 0.18215)
    vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
    mean, std = model.encode_images(pictures)
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    torch.testing.assert_close(
        mean / 0.18215 * scale + scale.new_tensor([0.1, 0.2, 0.3, 0.4]).view_as(scale), posterior.mean
    )
    torch.testing.assert_close(std / 0.18215 * scale, posterior.std)
    with pytest.raises(ValueError, match="multiples of 4, got 30 x 32"):
        model.encode_images(pictures[:, :, :30])


def draw_some(model, count, stage, **more):
    settings = {"name": "tench", "sampler": FAST, "size": (32, 32), "seed": 0, "stage": stage, "explicit": False}
    return drawn_pictures(model, ["a tench", "one tench"], count, **settings | more)


def test_drawn_pictures_are_kept_and_more_begin_with_the_same(random_sd_model):
    stage = Stage()
    first = draw_some(random_sd_model, 17, stage)
    assert len(first) == 17 and first.prompts[:3] == ("a tench", "one tench", "a tench")
    calls = random_sd_model.calls
    assert calls == 17 * 2 * 2
    again = draw_some(random_sd_model, 17, stage)
    assert again.key == first.key and torch.equal(again.mean, first.mean) and random_sd_model.calls == calls
    more = draw_some(random_sd_model, 18, stage)
    assert random_sd_model.calls == calls + 2 * 4, "the first sixteen were there"
    assert torch.equal(more.mean[:16], first.mean[:16]) and more.key != first.key
    other = draw_some(random_sd_model, 2, stage, seed=1)
    assert not torch.equal(other.mean, first.mean[:2])
    joined = Pictures.cat([first, other])
    assert len(joined) == 19 and torch.equal(joined.mean[17:], other.mean)
    draw = Draw(0, 0, range(2))
    z, z_other = (joined.sample([0, 18], draw, torch.device("cpu")) for _ in range(2))
    assert z.shape == (2, 4, 8, 8) and not torch.equal(z, z_other)
    assert bool(((z - joined.mean[[0, 18]]).abs() < 6 * joined.std[[0, 18]]).all())


def test_explicit_pictures_are_drawn_again_and_never_kept(random_sd_model, monkeypatch):
    def stage(*_):
        raise AssertionError("explicit pictures went to the store")

    kept = draw_some(random_sd_model, 2, Stage())
    drawn = draw_some(random_sd_model, 2, stage, explicit=True)
    assert drawn.key == kept.key and torch.equal(drawn.mean, kept.mean) and torch.equal(drawn.std, kept.std)
    settings = {"name": "x", "sampler": FAST, "size": (32, 32), "seed": 0, "stage": stage}
    monkeypatch.setattr("harness.training_data.is_sexual", lambda prompt: "marked" in prompt)
    assert len(drawn_pictures(random_sd_model, ["a marked figure"], 1, explicit=False, **settings)) == 1
    calls = random_sd_model.calls
    with pytest.raises(ScreenedPromptError, match=r"^a training prompt of 'x' is refused by the prompt screen"):
        drawn_pictures(random_sd_model, ["a school"], 1, explicit=True, **settings)
    assert random_sd_model.calls == calls


def test_a_folder_of_pictures_is_read_or_refused_in_one_line(random_sd_model, tmp_path: Path):
    place = tmp_path / "Gas_Pump"
    place.mkdir()

    def read(name="gas pump"):
        settings = {"size": (32, 32), "what": "toy: folder", "explicit": False}
        return folder_pictures(random_sd_model, str(tmp_path), name, ["a", "b"], **settings)

    with pytest.raises(ValueError, match=r"^toy: folder=.*: Gas_Pump holds no pictures \([^\n]*\)$"):
        read()
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 16:64] = 255  # the middle square, and a little for the filter's edge
    Image.fromarray(wide).save(place / "b.png")
    Image.fromarray(np.full((32, 32, 3), 255, np.uint8)).save(place / "a.PNG")
    (place / "notes.txt").write_text("no picture")
    found = read()
    assert found.prompts == ("a", "b")
    torch.testing.assert_close(found.mean[0], found.mean[1])
    with pytest.raises(ValueError, match=r"it has no folder 'church' \(it has: Gas_Pump\)$"):
        read("church")
    (place / "c.jpg").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"c\.jpg cannot be read as a picture"):
        read()


def test_templates():
    assert filled("an image of {a} {name}", "English springer") == "an image of an English springer"
    assert check_template("x", "a painting by {name}") == "a painting by {name}"
    for bad in ("an image", "an image of {nme}", "an image of {", 3):
        with pytest.raises(ValueError, match="x is a prompt with"):
            check_template("x", bad)
