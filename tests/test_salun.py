"""SalUn: mask, relabelling, and the whole edit on small random models of SD's and SDXL's classes."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch.nn.functional import mse_loss
from training_stage import Stage, same_weights, weights

from baselines.salun import SalUn, largest, relabel_loss
from harness.edit import NoEffectError
from harness.masks import unpack
from harness.sampler import Sampler
from harness.task import Concept
from harness.trainer import Settings, summed_gradients, train

CONF = Path(__file__).resolve().parents[1] / "conf"
CONCEPTS = [Concept("tench", "object"), Concept("gas pump", "object")]
QUICK = {
    "images": 4,
    "retain_images": 4,
    "epochs": 1,
    "batch": 4,
    "learning_rate": 1e-3,
    "keep": ["church", "parachute"],
    "anchors": {"Tench": "fish"},
    "sampler": Sampler("ddim", 1, 3.0),
}


def edit(model, concepts=CONCEPTS[:1], seed=0, stage=None, **settings):
    return SalUn(**QUICK | settings).edit(model, concepts, seed, Stage() if stage is None else stage)


# Stage 1


@pytest.mark.parametrize("k", [1, 5, 60, 119, 120])
def test_the_largest_are_those_of_a_stable_sort(k: int):
    generator = torch.Generator().manual_seed(k)
    scores = {
        "b": torch.randint(0, 4, (4, 10), generator=generator) / 7,  # many ties, zeros among them
        "a": torch.rand(60, generator=generator) * 1e-30,
        "c": torch.randint(0, 4, (2, 2, 5), generator=generator) / 7,
    }
    flat = torch.cat([tensor.flatten() for tensor in scores.values()])
    expected = torch.zeros(120, dtype=torch.bool)
    expected[flat.argsort(descending=True, stable=True)[:k]] = True
    mask = largest(scores, k)
    assert {name: m.shape for name, m in mask.items()} == {name: s.shape for name, s in scores.items()}
    assert torch.equal(torch.cat([mask[name].flatten() for name in scores]), expected)


def test_the_mask_is_global_and_exact(random_sd_model):
    model, stage = random_sd_model, Stage()
    method = SalUn(**QUICK | {"r": 0.3})
    forget = method.forget_pictures(model, CONCEPTS, 0, stage)
    mask = method.saliency_mask(model, forget, 0)
    sizes = {name: parameter.numel() for name, parameter in model.unet.named_parameters()}
    assert {name: m.numel() for name, m in mask.items()} == sizes
    assert sum(int(m.sum()) for m in mask.values()) == math.floor(0.3 * sum(sizes.values()))
    assert len({round(float(m.float().mean()), 3) for m in mask.values()}) > 10, "layers differ in density"


def test_the_mask_is_that_of_the_guided_loss_blind_to_its_sign_and_scale(random_sd_model):
    """Stage 1 written down again: prompts by the pictures' numbers, gradients through both predictions."""
    model, stage, masks = random_sd_model, Stage(), []
    forget = SalUn(**QUICK).forget_pictures(model, CONCEPTS, 0, stage)
    names = [name for name, _ in model.unet.named_parameters()]

    def by_hand(c: float, factor: float):
        def loss(network, draw):
            items = draw.items(8, "forget")
            z0 = forget.sample(items, draw, model.device)
            t, n = draw.timesteps(), draw.noise(z0)
            alpha_bar = network.alphas_cumprod[t].view(-1, 1, 1, 1)
            z_t = alpha_bar.sqrt() * z0 + (1 - alpha_bar).sqrt() * n
            text = model.encode([f"an image of a {CONCEPTS[i // 4].name}" for i in items])
            guided = (1 + c) * network.predict(z_t, t, text) - c * network.predict(z_t, t, model.unconditional(4))
            return factor * mse_loss(guided, n)

        gradients = summed_gradients(model, names, loss, Settings(1e-3, 4), steps=2, seed=0, label="SalUn mask")
        k = math.floor(0.3 * sum(gradient.numel() for gradient in gradients.values()))
        return largest({name: gradient.abs() for name, gradient in gradients.items()}, k)

    for c, factors in ((0.0, [1.0]), (7.5, [1.0, -4.0])):  # a power of two changes no mantissa
        masks.append(SalUn(**QUICK | {"r": 0.3, "c": c}).saliency_mask(model, forget, 0))
        assert all(same_weights(masks[-1], by_hand(c, factor)) for factor in factors)
    assert not same_weights(*masks)


# Stage 2


def at_once(model, look, names=None, steps=1, lr=1e-3):
    """Run `look(network, step)` as the loss of a training of the given weights."""
    names = names or [name for name, _ in model.unet.named_parameters()]
    return train(
        model, names, lambda network, draw: look(network, draw.step), Settings(lr, 2), steps=steps, seed=0, label="toy"
    )


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    z, n = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    return z, torch.tensor([200, 800]), n


def test_relabelling_as_itself_is_no_change(random_sdxl_model, batch):
    z, t, n = batch
    text = random_sdxl_model.encode(["a tench", "a church"])
    losses = []

    def look(network, step):
        losses.append(relabel_loss(network, z, z, t, n, text, text))
        return losses[-1]

    assert at_once(random_sdxl_model, look) == {}, "a zero gradient moves nothing"
    assert losses[0].item() == 0


def test_the_pseudo_branch_has_no_gradient(random_sd_model, batch):
    z, t, n = batch
    model = random_sd_model
    text, pseudo = model.encode(["a tench"] * 2), model.encode(["a fish"] * 2)
    with torch.no_grad():
        abar = model.scheduler(Sampler("ddim", 1, 1.0)).alphas_cumprod[t].view(-1, 1, 1, 1)
        z_t = abar.sqrt() * z + (1 - abar).sqrt() * n
        constant = model.predict(z_t, t, pseudo)
    names = [name for name, _ in model.unet.named_parameters()]

    def gradient(loss):
        return summed_gradients(
            model, names, lambda network, draw: loss(network), Settings(1e-3, 2), steps=1, seed=0, label="toy"
        )

    method = gradient(lambda network: relabel_loss(network, z, z, t, n, text, pseudo))
    by_hand = gradient(lambda network: mse_loss(network.predict(z_t, t, text), constant))
    assert same_weights(method, by_hand) and any(g.abs().max() > 0 for g in method.values())


def test_the_gap_closes_step_by_step(random_sd_model, batch):
    z, t, n = batch
    text, pseudo = (random_sd_model.encode([prompt] * 2) for prompt in ("a tench", "a fish"))
    gaps = []

    def look(network, step):
        gap = relabel_loss(network, z, z, t, n, text, pseudo)
        gaps.append(gap.item())
        return gap

    at_once(random_sd_model, look, steps=5, lr=1e-4)
    assert all(later < earlier for earlier, later in pairwise(gaps)), gaps


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_without_a_mask_a_step_is_a_plain_relabelling_and_retaining_step(random_sd_model, alpha: float):
    model, stage = random_sd_model, Stage()
    whole = edit(model, stage=stage, r=1.0, alpha=alpha)
    method = SalUn(**QUICK)
    forget = method.forget_pictures(model, CONCEPTS[:1], 0, stage)
    retain = method.retain_pictures(model, CONCEPTS[:1], 0, stage)
    text, pseudo = (model.encode([prompt] * 4) for prompt in ("an image of a tench", "an image of a fish"))

    def plain(network, draw):
        items = draw.items(4, "forget")
        z, z_other = (forget.sample(items, draw, model.device) for _ in range(2))
        t, n = draw.timesteps(), draw.noise(z)
        relabelled = relabel_loss(network, z, z_other, t, n, text, pseudo)
        if not alpha:
            return relabelled
        items = draw.items(4, "retain")
        z = retain.sample(items, draw, model.device)
        t, n = draw.timesteps(), draw.noise(z)
        kept = model.encode([f"an image of a {QUICK['keep'][i // 2]}" for i in items])
        return relabelled + alpha * mse_loss(network.predict(network.noised(z, n, t), t, kept), n)

    names = [name for name, _ in model.unet.named_parameters()]
    expected = train(model, names, plain, Settings(1e-3, 4), steps=1, seed=0, label="SalUn")
    assert whole.info["steps"] == 1 and not any(name == "salun.mask" for name, _ in stage)
    assert same_weights(whole.tensors, expected)


# The edit


@pytest.mark.parametrize("parameters", ["full", "xattn"])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_an_edit_moves_what_the_mask_lets_move(request, kind: str, parameters: str):
    model = request.getfixturevalue(f"random_{kind}_model")
    before, stage = weights(model), Stage()
    concepts = CONCEPTS if parameters == "xattn" else CONCEPTS[:1]
    found = edit(model, concepts, stage=stage, parameters=parameters)
    assert same_weights(model, before)
    mask = unpack(stage.only("salun.mask"))
    assert mask.keys() == before.keys()
    moved = 0
    for name, new in found.tensors.items():
        assert torch.equal(new[~mask[name]], before[name][~mask[name]])
        moved += int((new != before[name]).sum())
    assert moved > 0.5 * found.info["selected"]["trained"]
    if parameters == "xattn":
        assert all(".attn2." in name for name in found.tensors)
        assert found.info["selected"]["trained"] < found.info["selected"]["unet"]
    found.require_effect(model)
    assert found.info["pictures"] == {"forget": 4 * len(concepts), "retain": 4}
    assert found.info["steps"] == len(concepts)


def test_the_same_seed_gives_the_same_edit_and_what_is_stored_is_reused(random_sd_model):
    model, stage = random_sd_model, Stage()
    first = edit(model, stage=stage)
    calls = model.calls
    again = edit(model, stage=stage)
    assert again.fingerprint == first.fingerprint
    assert model.calls == calls, "pictures, mask and trained weights are stored"
    assert edit(model).fingerprint == first.fingerprint
    assert edit(model, seed=1).fingerprint != first.fingerprint


def test_a_killed_edit_goes_on_as_if_it_had_not_been(random_sd_model, tmp_path: Path, monkeypatch):
    import harness.trainer as trainer

    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(trainer, "CHECKPOINT_SHARE", 0)
    model, stage, settings = random_sd_model, Stage(), {"images": 3, "batch": 1}
    plain = Stage()
    whole = edit(model, stage=plain, **settings)
    stage.folder = tmp_path
    backward, steps = trainer._backward, []

    def killed(*args):
        steps.append((args[7], args[4]))
        if len(steps) in (3, 7):
            raise KeyboardInterrupt
        return backward(*args)

    monkeypatch.setattr(trainer, "_backward", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            edit(model, stage=stage, **settings)
    assert edit(model, stage=stage, **settings).fingerprint == whole.fingerprint
    assert [step for label, step in steps if label == "SalUn mask"] == [0, 1, 2, 2], "the sums were kept"
    assert [step for label, step in steps if label == "SalUn"] == [0, 1, 2, 2]
    assert same_weights(*(unpack(made.only("salun.mask")) for made in (plain, stage)))


def test_pictures_may_come_from_folders(random_sd_model, tmp_path: Path):
    for name, count in (("tench", 3), ("church", 2), ("parachute", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (40, 36), (60 * i, 80, 200 - 50 * i)).save(tmp_path / name / f"{i}.png")
    folders = {"forget_folder": str(tmp_path), "retain_folder": str(tmp_path)}
    found = edit(random_sd_model, r=1.0, parameters="xattn", **folders)
    assert found.info["pictures"] == {"forget": 3, "retain": 3} and random_sd_model.calls == 4 * 3
    with pytest.raises(ValueError, match=r"salun: forget_folder=.*: it has no folder 'gas pump'"):
        edit(random_sd_model, CONCEPTS[1:], **folders)
    with pytest.raises(ValueError, match="retain_folder goes with classes to keep"):
        edit(random_sd_model, **folders, retain_prompts=["a road", "a beach"])


def test_the_content_decides(tmp_path: Path):
    for folder in ("a", "b"):
        (tmp_path / folder / "tench").mkdir(parents=True)
        Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / folder / "tench" / "1.png")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")

    def content(forget=None, retain=None):
        return SalUn(**QUICK, forget_folder=forget, retain_folder=retain).content

    assert content() is None
    first = content(a)
    assert len(first) == 64 and first == content(b)
    assert len({first, content(None, a), content(a, a)}) == 3
    Image.new("RGB", (8, 8), (30, 20, 10)).save(tmp_path / "b" / "tench" / "1.png")
    assert content(b) != first and content(a, b) != content(b, a)
    (tmp_path / "a" / "tench" / "1.png").rename(tmp_path / "a" / "tench" / "2.png")
    assert content(a) != first


def test_pseudo_prompts():
    def pairs(concepts=CONCEPTS, **settings):
        return SalUn(**QUICK | settings).pairs(concepts)

    tench, pump = "an image of a tench", "an image of a gas pump"
    assert pairs() == {tench: "an image of a fish", pump: ""}
    assert pairs(pseudo_prompt="a thing") == {tench: "an image of a fish", pump: "a thing"}
    assert pairs(pseudo="shift") == {tench: "an image of a church", pump: "an image of a parachute"}
    assert pairs(CONCEPTS[1:], pseudo="shift") == {pump: "an image of a church"}, "alone, a concept is the first"
    assert pairs(pseudo="prompt") == {tench: "", pump: ""}
    with pytest.raises(ValueError, match="pseudo=shift needs classes to keep"):
        pairs(pseudo="shift", keep=[])
    with pytest.raises(ValueError, match="minor"):
        pairs([Concept("nude", "explicit")], pseudo="prompt", pseudo_prompt="a photo of a child")


def test_what_is_retained(random_sd_model):
    def prompts(**settings):
        method = SalUn(**QUICK | {"retain_images": 2} | settings)
        return method.retain_pictures(random_sd_model, [Concept("cat", "object")], 0, Stage()).prompts

    assert prompts() == ("an image of a church", "an image of a parachute")
    assert prompts(retain_prompts=["a road"]) == ("a road", "a road")
    everyday = prompts(keep=[])
    assert everyday == ("an image of a dog", "an image of a mouse")  # not the cat, which is to be forgotten


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 50}, "50 % is written 0.5"),
        ({"alpha": -1}, "salun: alpha"),
        ({"batch": 3, "accumulate": 2}, "has to divide batch=3"),
        ({"pseudo": "anchors"}, "did you mean anchor"),
        ({"prompt": "an image"}, "salun: prompt"),
        ({"images": 0}, "salun: images"),
        ({"forget_folder": "no/such"}, "no such folder"),
        ({"retain_prompts": []}, "at least one prompt"),
        ({"anchors": ["fish"]}, "salun: anchors"),
    ],
)
def test_bad_parameters_are_one_line(settings, words: str):
    with pytest.raises(ValueError) as error:
        SalUn(**QUICK | settings)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_too_small_a_share_has_no_effect(random_sd_model):
    with pytest.raises(NoEffectError, match="less than one"):
        edit(random_sd_model, r=1e-9)


def test_configurations():
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    def method(*overrides):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = OmegaConf.to_container(compose("config", overrides=[*overrides]), resolve=True)["method"]
        return config.pop("preset", ""), instantiate(OmegaConf.create(config), _convert_="all")

    sd = ("model=sd15", "task=imagenette_5v5")
    preset, published = method("method=salun", *sd)
    assert preset == "" and published.keep == ("parachute", "golf ball", "church", "French horn", "gas pump")
    assert (published.r, published.c, published.alpha, published.epochs, published.batch) == (0.5, 7.5, 0.5, 5, 8)
    assert published.pairs([Concept("English springer", "object")]) == {
        "an image of an English springer": "an image of a dog"
    }
    assert method("method=salun_xattn", *sd)[1].parameters == "xattn"
    explicit = ("model=sd15", "task=custom", "task.kind=explicit", "task.concepts=[nude]")
    for name, parameters in (("salun_concept", "full"), ("salun_concept_xattn", "xattn")):
        _, concept = method(f"method={name}", *explicit)
        clothed = "a photo of a person wearing clothes"
        assert concept.pairs([Concept("nude", "explicit")]) == {"a photo of a nude person": clothed}
        assert list(concept.retain_prompts) == [clothed]
        assert (concept.alpha, concept.epochs, concept.parameters) == (0.1, 1, parameters)
    for path in sorted((CONF / "preset" / "tiny").glob("salun*.yaml")):
        assert (CONF / "method" / path.name).is_file()
        assert method(f"method={path.stem}")[0] == "tiny"
        assert isinstance(yaml.safe_load(path.read_text()), dict)
