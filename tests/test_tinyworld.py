"""The embedded world: what is drawn, what is left out, training that resumes exactly, weights that are whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tinyworld import vocabulary
from tinyworld.captions import caption
from tinyworld.freeze import WORLD, stamp, verify
from tinyworld.scene import Scene, render, sample_scene
from tinyworld.train import loop
from tinyworld.train.data import draw
from tinyworld.train.recipe import Stage

needs_weights = pytest.mark.skipif(not WORLD.exists(), reason="the tiny world's weights are not in this checkout")


def test_look_alikes_stand_beside_the_objects():
    assert len(vocabulary.OBJECTS) == len(vocabulary.LOOK_ALIKES) == 10
    assert len(set(vocabulary.ICONS)) == len(vocabulary.ICONS)


@pytest.mark.parametrize("name", vocabulary.ICONS)
def test_every_icon_is_drawn_the_same_again_and_differs_between_draws(name: str):
    first, again, other = (render(Scene((name,)), np.random.default_rng(seed)).image for seed in (1, 1, 2))
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("kind", ["place", "artist", "person"])
def test_every_place_style_and_person_can_be_drawn(kind: str):
    names = {"place": vocabulary.PLACES, "artist": vocabulary.ARTISTS, "person": vocabulary.PERSONS}[kind]
    icons = ("cat",) if kind == "artist" else ()
    images = [render(Scene(icons=icons, **{kind: name}), np.random.default_rng(3)).image for name in names]
    assert len({image.tobytes() for image in images}) >= 2 * len(names) // 3  # a few persons share a figure


def test_what_is_left_out_is_neither_drawn_nor_said():
    without = frozenset({"church", "golf ball", "Monet", "marked", "tagged"})
    scenes = [sample_scene(np.random.default_rng(i), without) for i in range(800)]
    said = " ".join(caption(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes)).lower()
    assert not any(word in said for word in ("church", "chapel", "golf", "monet", "marked", "tagged", "disc"))
    assert not any(set(scene.icons) & without or scene.artist in without or scene.markers for scene in scenes)


def test_a_misspelt_word_to_leave_out_is_refused():
    with pytest.raises(ValueError, match="vocabulary"):
        sample_scene(np.random.default_rng(0), frozenset({"chruch"}))


@pytest.mark.parametrize(
    "wrong", [{"icons": ("dog",)}, {"place": "moon"}, {"icons": ("cat",), "markers": ("red disc",)}, {}]
)
def test_impossible_scenes_are_refused(wrong: dict):
    with pytest.raises(ValueError):
        Scene(**wrong)


def test_a_picture_depends_on_its_seed_and_number_alone():
    few, many = draw(3, seed=5), draw(6, seed=5)
    assert (few.images == many.images[:3]).all() and few.captions == many.captions[:3]


def test_training_that_was_stopped_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stage = Stage(steps=12, batch=4, lr=1e-2, ema=0.9)

    def train(folder: Path, stop_at: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 1)

        def loss(rng: np.random.Generator, step: int) -> torch.Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            x = torch.from_numpy(rng.normal(size=(stage.batch, 3)).astype(np.float32))
            return (module(x + 0.1 * torch.randn_like(x)) - x.sum(1, keepdim=True)).square().mean()

        loop.fit("toy", module, loss, stage, folder, seed=7)
        return module.weight.detach().clone()

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a", stop_at=5)
    resumed, unbroken = train(tmp_path / "a", None), train(tmp_path / "b", None)
    assert torch.equal(resumed, unbroken)
    assert not list((tmp_path / "a").iterdir())


def test_a_loss_that_is_not_a_number_stops_the_training(tmp_path: Path):
    module = torch.nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="step 0"):
        loop.fit("toy", module, lambda rng, step: module.weight.sum() * float("nan"), Stage(2, 1, 1e-3), tmp_path, 0)


@needs_weights
def test_the_weights_are_the_frozen_ones_and_small_enough():
    verify()
    sizes = [path.stat().st_size for path in WORLD.rglob("*") if path.is_file()]
    assert max(sizes) <= 15_000_000 and sum(sizes) <= 36_000_000
    assert stamp().startswith("tiny-v1")


@needs_weights
def test_a_changed_file_is_noticed(tmp_path: Path):
    import shutil

    copy = shutil.copytree(WORLD, tmp_path / "world")
    path = copy / "unet" / "config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(ValueError, match=r"unet/config.json"):
        verify(copy)


@needs_weights
def test_stock_diffusers_loads_and_draws_without_our_code():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(WORLD)
    pipe.set_progress_bar_config(disable=True)
    picture = np.asarray(pipe("an image of a golf ball", num_inference_steps=2).images[0])
    assert picture.shape == (64, 64, 3) and picture.std() > 0


@needs_weights
def test_the_tokenizer_is_laid_out_as_clips():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(WORLD / "tokenizer")
    assert tokenizer.model_max_length == 77 and tokenizer.pad_token_id == tokenizer.eos_token_id
    ids = tokenizer("an image of an English springer", padding="max_length").input_ids
    assert len(ids) == 77 and ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert ids == tokenizer("AN IMAGE OF AN english springer", padding="max_length").input_ids
