"""MiM-MU: the variants' losses, and the whole edit on small random models of SD's and SDXL's classes."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from training_stage import Stage, same_weights, weights

import harness.trainer as trainer
from baselines.mim_mu import TIMESTEPS, MiMMU, aligned, distilled, mutual_information, repelled
from harness.sampler import Sampler
from harness.schedule import rebased
from harness.task import Concept
from harness.trainer import Draw, Network, Settings, parameter_names, summed_gradients, train

CONF = Path(__file__).resolve().parents[1] / "conf"
CONCEPTS = [Concept("tench", "object"), Concept("gas pump", "object")]
QUICK = {
    "images": 4,
    "epochs": 2,
    "learning_rate": 1e-3,
    "precision": "float32",
    "sampler": Sampler("ddim", 1, 3.0),
    "rollout": Sampler("ddim", 3, 3.0),
}


def edit(model, concepts=CONCEPTS[:1], seed=0, stage=None, **settings):
    return MiMMU(**QUICK | settings).edit(model, concepts, seed, Stage() if stage is None else stage)


@pytest.fixture
def batch():
    """Noised latents and timesteps of two samples, twice."""
    generator = torch.Generator().manual_seed(0)
    z_t, x_t = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    return z_t, torch.tensor([200, 800]), x_t, torch.tensor([400, 100])


def gradients(model, loss, batch=2):
    """The gradient of `loss(network)` by cross-attention parameter."""
    return summed_gradients(
        model, parameter_names(model, "xattn"), lambda network, draw: loss(network), Settings(1e-3, batch),
        steps=1, seed=0, label="toy",
    )  # fmt: skip


def flat(tensors):
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


class Normal:
    """An exact `Network` in float64: pictures are normal around zero, those of the prompt around the parameter `mean`.

    `text` and `empty` are the words themselves. The noise that is expected of x_t around a mean m with unit variance is
    sqrt(1 - alpha_bar) (x_t - sqrt(alpha_bar) m).
    """

    alphas_cumprod = torch.linspace(0.999, 0.001, 1000, dtype=torch.float64)
    noised = Network.noised

    def __init__(self, mean: torch.Tensor) -> None:
        self.frozen, self.mean = mean, torch.nn.Parameter(mean.clone())

    def predict(self, z_t, t, text):
        alpha_bar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (1 - alpha_bar).sqrt() * (z_t - alpha_bar.sqrt() * (self.mean if text == "y" else 0))

    @contextmanager
    def original(self):
        now, self.mean = self.mean, self.frozen
        with torch.no_grad():
            yield
        self.mean = now


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_empty_prompt_has_nothing_to_lose(request, kind: str, batch):
    model, (z_t, t, *_) = request.getfixturevalue(f"random_{kind}_model"), batch
    empty, losses = model.unconditional(2), []

    def loss(network):
        losses.append(aligned(network, z_t, t, empty, empty))
        return losses[-1]

    assert not flat(gradients(model, loss)).any() and losses[0].item() == 0


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_first_loss_is_the_gap_of_the_original_model(request, kind: str, batch):
    model, (z_t, t, *_) = request.getfixturevalue(f"random_{kind}_model"), batch
    text, empty, losses = model.encode(["a tench", "a church"]), model.unconditional(2), []
    if kind == "sdxl":
        assert not empty.pooled.any() and text.pooled.any(), "the target has pooled features of its own"
    with torch.no_grad():
        gap = (model.predict(z_t, t, text) - model.predict(z_t, t, empty)).square().mean()

    def loss(network):
        losses.append(aligned(network, z_t, t, text, empty).detach())
        return aligned(network, z_t, t, text, empty)

    assert flat(gradients(model, loss)).any()
    torch.testing.assert_close(losses[0], gap)


def test_the_target_stays_the_original_model_s(random_sd_model, batch):
    z_t, t, *_ = batch
    model = random_sd_model
    text, empty = model.encode(["a tench"] * 2), model.unconditional(2)
    with torch.no_grad():
        target, gaps = model.predict(z_t, t, empty), []

    def loss(network, draw):
        value = aligned(network, z_t, t, text, empty)
        by_hand = (network.predict(z_t, t, text) - target).square().mean()
        gaps.append(value.item())
        torch.testing.assert_close(value.detach(), by_hand.detach())
        return value

    train(model, parameter_names(model, "xattn"), loss, Settings(1e-4, 2), steps=4, seed=0, label="toy")
    assert all(later < earlier for earlier, later in pairwise(gaps)), gaps


@pytest.fixture
def exact(batch):
    """An exact network and the batch in float64."""
    z_t, t, x_t, other = batch
    mean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    return Normal(mean), z_t.double(), t, x_t.double(), other


def pull(network, loss):
    """The gradient of a loss with the exact network."""
    return torch.autograd.grad(loss, network.mean)[0]


def close(one, other):
    """Whether the two agree up to the last digits of float64."""
    return torch.allclose(one, other, rtol=1e-12, atol=1e-15)


def test_the_first_loss_is_exactly_the_gap(exact):
    network, z_t, t, *_ = exact
    gap = (network.predict(z_t, t, "y") - network.predict(z_t, t, "")).square().mean()
    alpha_bar = network.alphas_cumprod[t]
    assert close(aligned(network, z_t, t, "y", ""), gap)
    assert close(gap, (alpha_bar * (1 - alpha_bar)).mean() * network.mean.square().mean())


def test_b2_on_the_same_latents_is_b1(exact):
    network, z_t, t, x_t, other = exact
    network.mean.data *= 0.7  # somewhere on its way
    b1 = pull(network, aligned(network, z_t, t, "y", ""))
    assert b1.abs().max() > 0 and close(2 * pull(network, distilled(network, z_t, t, z_t, t, "y", "")), b1)
    assert not close(2 * pull(network, distilled(network, z_t, t, x_t, other, "y", "")), b1)


@pytest.mark.parametrize("eta", [1.0, 3.0])
def test_variant_a_starts_in_the_direction_of_esd(exact, eta: float):
    """ESD's target eps_phi("") - eta (eps_phi(y) - eps_phi("")) lies (eta + 1) times as far away."""
    network, z_t, t, *_ = exact
    a = pull(network, repelled(network, z_t, t, "y", ""))
    prediction, marginal = network.predict(z_t, t, "y"), network.predict(z_t, t, "")
    target = marginal - eta * (prediction.detach() - marginal)
    assert a.abs().max() > 0 and close((eta + 1) * a, pull(network, (prediction - target).square().mean()))


@pytest.mark.parametrize(
    ("variant", "rollout_by"),
    [("B1", "original"), ("A", "original"), ("B2", "original"), ("B3", "original"), ("B3", "trained")],
)
def test_every_variant_follows_its_own_gradient(random_sd_model, variant: str, rollout_by: str):
    """Each written down again, on weights that have left phi: at phi's own, A cannot be told from B1."""
    model, generator = random_sd_model, torch.Generator().manual_seed(0)
    method = MiMMU(**QUICK | {"variant": variant, "rollout_by": rollout_by})
    pictures = method._pictures(model, CONCEPTS[0], 0, Stage()) if variant in ("B1", "A") else None
    prompts = method.prompts(CONCEPTS[0])[:4]
    loss, found = method.loss(model, prompts, pictures, (32, 32)), []

    def by_hand(network, draw):
        items = draw.items(4, "forget")
        text, empty = model.encode([prompts[i] for i in items]), model.unconditional(4)
        if pictures:
            z0 = pictures.sample(items, draw, model.device)
            s = draw.timesteps()
            z_s = network.noised(z0, draw.noise(z0), s)
        else:
            noise = draw.noise(torch.zeros(4, 4, 8, 8))
            assert draw.common(3) > 0, "or nothing is denoised"
            with network.original() if (variant, rollout_by) == ("B3", "original") else nullcontext():
                z_s, s = network.partly_denoised(text, noise, QUICK["rollout"], draw.common(3))
        prediction = network.predict(z_s, s, text)
        x_t, t = z_s, s
        if variant == "B2":
            x = network.clean(z_s, prediction.detach(), s)
            t = draw.timesteps()
            x_t = network.noised(x, draw.noise(x), t)
        with network.original():
            marginal, conditional = network.predict(x_t, t, empty), network.predict(x_t, t, text)
        own = conditional if variant == "A" else network.predict(x_t, t, text).detach()
        return (1 if variant == "B2" else 2) * ((own - marginal) * prediction).mean()

    def look(network, draw):
        values = loss(network, draw), by_hand(network, Draw(draw.seed, draw.step, draw.samples))
        parameters = [*network.trained.values()]
        for value in values:
            found.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, retain_graph=True)]))
        return values[0]

    names = parameter_names(model, "xattn")
    phi = {name: w + 0.1 * torch.randn(w.shape, generator=generator) for name, w in weights(model).items()}
    train(
        model, names, look, method.settings, steps=1, seed=0, label="MiM-MU",
        untouched={name: phi[name] for name in names},
    )  # fmt: skip
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5 * float(found[1].abs().max()))


def test_variant_a_keeps_its_direction(random_sd_model, batch):
    """B1 comes to rest at its target; A is pulled as strongly as before wherever it is."""
    z_t, t, *_ = batch
    text, empty = random_sd_model.encode(["a tench"] * 2), random_sd_model.unconditional(2)
    losses = {}
    for loss in (aligned, repelled):
        values = losses[loss] = []

        def step(network, draw, loss=loss, values=values):
            value = loss(network, z_t, t, text, empty)
            values.append(value.item())
            return value

        names = parameter_names(random_sd_model, "xattn")
        train(random_sd_model, names, step, Settings(1e-4, 2), steps=4, seed=0, label="toy")
    assert losses[repelled] == pytest.approx([losses[aligned][0]] * 4, rel=1e-4)
    assert losses[aligned][-1] < 0.99 * losses[aligned][0]


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_pictures_say_nothing_of_the_empty_prompt(request, kind: str, batch):
    model, found = request.getfixturevalue(f"random_{kind}_model"), []
    text, empty = model.encode(["a tench"] * 2), model.unconditional(2)

    def look(network):
        x, draw = batch[0][:1], Draw("toy", 0, range(1))
        noise = [draw.noise(x) for _ in TIMESTEPS]
        found.extend(mutual_information(network, x, noise, given[0], empty[0]) for given in (empty, text))

    def loss(network, draw):
        return aligned(network, *batch[:2], text, empty)

    train(model, parameter_names(model, "xattn"), loss, Settings(1e-3, 2), steps=1, seed=0, label="toy", at_end=look)
    assert found[0] == 0 != found[1]


def test_the_information_falls_as_the_concept_is_unlearned():
    """On a model whose densities are known: for pictures around m, of a prompt whose pictures were around mu, the
    estimate is the mean over t of c^2 mu (m - mu / 2) with c^2 = alpha_bar (1 - alpha_bar)."""
    generator = torch.Generator().manual_seed(0)
    mu = torch.full((1, 4, 8, 8), 0.7, dtype=torch.float64)
    network = Normal(mu)
    noise = [torch.randn(64, 4, 8, 8, generator=generator).double() for _ in TIMESTEPS]
    pictures = torch.randn(64, 4, 8, 8, generator=generator).double()
    optimizer, measured = torch.optim.Adam([network.mean], lr=0.012), []
    for step in range(60):
        if step % 12 == 0:
            m = network.mean.detach()
            measured.append(mutual_information(network, pictures + m, noise, "y", ""))
            alpha_bar = network.alphas_cumprod[list(TIMESTEPS)]
            exact = (alpha_bar * (1 - alpha_bar)).mean() * (mu * (m - mu / 2)).mean()
            # One picture's deviation is mean_t c mu |noise| over 256 entries; here over 64 pictures.
            assert measured[-1] == pytest.approx(float(exact), abs=4 * 0.7 * 0.5 / (64 * 256) ** 0.5)
        z_t, t = mu + torch.randn(8, 4, 8, 8, generator=generator), torch.randint(1000, (8,), generator=generator)
        optimizer.zero_grad()
        aligned(network, z_t, t, "y", "").backward()
        optimizer.step()
    assert measured[0] > 0.03 and all(later < earlier for earlier, later in pairwise(measured))


def test_the_monitor_changes_no_weight(random_sd_model):
    plain, watched = (edit(random_sd_model, CONCEPTS, monitor=n, epochs=1, images=2) for n in (0, 1))
    assert watched.fingerprint == plain.fingerprint and "information" not in plain.info
    assert set(watched.info["information"]) == {"tench", "gas pump"}
    assert all(found["original"] != found["edited"] for found in watched.info["information"].values())


def test_after_other_edits_the_target_is_still_the_untouched_model_s(random_sd_model):
    model, settings = random_sd_model, {"epochs": 1, "images": 1, "batch": 1}
    first = edit(model, CONCEPTS[:1], **settings)
    stage, seconds = Stage(), []
    for by in ("original", "previous"):
        assert edit(model, CONCEPTS[:1], target_by=by, **settings).fingerprint == first.fingerprint
        with rebased(model, first):
            seconds.append(edit(model, CONCEPTS[1:], stage=stage, target_by=by, **settings))
    assert seconds[0].fingerprint != seconds[1].fingerprint
    # The drift is measured from whoever gives the target: the untouched model lies two edits back.
    assert seconds[0].info["drift"]["unconditional"] > seconds[1].info["drift"]["unconditional"]
    z, t, empty = torch.ones(1, 4, 8, 8), torch.tensor([500]), model.unconditional(1)
    with torch.no_grad():
        target = model.predict(z, t, empty)
    with rebased(model, first):
        now, seen = weights(model), []

        def loss(network, draw):
            with network.original():
                seen.append(network.predict(z, t, empty))
            return network.predict(z, t, empty).mean()

        for handed_on in (model.untouched, {}):
            train(
                model, parameter_names(model, "xattn_kv"), loss, Settings(1e-3, 1), steps=2, seed=0, label="toy",
                untouched=handed_on,
            )  # fmt: skip
            assert same_weights(model, now)
    assert torch.equal(seen[0], target) and torch.equal(seen[1], target)
    assert torch.equal(seen[2], seen[3]) and not torch.equal(seen[2], target)


def test_keys_of_joint_edits_are_those_from_before_the_switches(random_sd_folder, tmp_path: Path):
    """`target_by` counts after other edits only and `monitor` where it is on: else stored edits are found again."""
    from hydra import compose, initialize_config_dir

    from experiments.setup import setup

    def parameters(*overrides):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            own = ["method=mim_mu", "model=folder", f"model.path={random_sd_folder}", "task=custom", "edit_only=true"]
            config = compose("config", [*own, "task.concepts=[tench,church]", f"store={tmp_path}", *overrides])
        parts = setup(config)
        return set(parts.config["method"]), parts.config["speed"]

    new = {"target_by", "monitor"}
    before = {field.name for field in fields(MiMMU)} - {"accumulate"} - new | {"_target_", "_convert_"}
    for schedule in ("joint", "merged"):
        assert parameters(f"schedule={schedule}", "method.target_by=previous") == (
            before, {"accumulate": 1, "target_by": "previous", "monitor": 0}
        )  # fmt: skip
    assert parameters("schedule=sequential")[0] == before | {"target_by"}
    assert parameters("method.monitor=4")[0] == before | {"monitor"}


@pytest.mark.parametrize("variant", ["B1", "A", "B2", "B3"])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_an_edit_changes_cross_attention_only(request, kind: str, variant: str):
    model = request.getfixturevalue(f"random_{kind}_model")
    before = weights(model)
    concepts = CONCEPTS if kind == "sdxl" else CONCEPTS[:1]
    found = edit(model, concepts, variant=variant)
    assert same_weights(model, before)
    assert set(found.tensors) == set(parameter_names(model, "xattn"))
    found.require_effect(model)
    assert found.info["pairs"] == 4 * len(concepts) and found.info["steps"] == 2 * len(concepts)
    assert found.info["drift"]["unconditional"] > 0


def test_the_same_seed_gives_the_same_edit(random_sd_model):
    found = {variant: edit(random_sd_model, variant=variant).fingerprint for variant in ("B1", "A", "B2", "B3")}
    assert len(set(found.values())) == 4, "four variants, four edits"
    for variant in ("B1", "B2"):
        assert edit(random_sd_model, variant=variant).fingerprint == found[variant]
        assert edit(random_sd_model, variant=variant, seed=1).fingerprint != found[variant]


def test_bfloat16_trains(random_sd_model):
    assert set(edit(random_sd_model, precision="bfloat16").tensors) == set(parameter_names(random_sd_model, "xattn"))


def test_a_rollout_decides_where_there_is_one(random_sd_model):
    """Seen in the key of the scratch folder: work that was begun under other settings is not taken up."""

    def key(**settings):
        stage = Stage()
        stage.scratch = lambda name, key: keys.append(key) or None
        keys = []
        edit(random_sd_model, stage=stage, epochs=1, images=1, **settings)
        return keys[0]

    other = {"rollout": Sampler("dpm++", 2, 3.0), "rollout_by": "trained"}
    assert key() == key(**other)
    assert key(variant="B3") != key(variant="B3", rollout_by="trained")
    assert key(variant="B3") != key(variant="B3", rollout=other["rollout"])


def test_a_killed_edit_goes_on_as_if_it_had_not_been(random_sd_model, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(trainer, "CHECKPOINT_SHARE", 0)
    model, stage = random_sd_model, Stage()
    whole = edit(model, epochs=3)
    stage.folder = tmp_path
    backward, steps = trainer._backward, []

    def killed(*args):
        steps.append(args[4])
        if len(steps) == 3:
            raise KeyboardInterrupt
        return backward(*args)

    monkeypatch.setattr(trainer, "_backward", killed)
    with pytest.raises(KeyboardInterrupt):
        edit(model, stage=stage, epochs=3)
    again = edit(model, stage=stage, epochs=3)
    assert again.fingerprint == whole.fingerprint and again.info["drift"] == whole.info["drift"]
    assert steps == [0, 1, 2, 2]


def test_a_concept_given_twice_is_a_concept(random_sd_model, monkeypatch):
    """A data set that holds everything twice trains to the same weights when its items come in the same order."""
    method = MiMMU(**QUICK)
    stage = Stage()
    once = method._pictures(random_sd_model, CONCEPTS[0], 0, stage)
    twice = type(once).cat([once, once])
    order = trainer.Draw.items
    monkeypatch.setattr(trainer.Draw, "items", lambda draw, n, stream: order(draw, 4, stream))
    tensors = [
        train(
            random_sd_model,
            parameter_names(random_sd_model, "xattn"),
            method.loss(random_sd_model, pictures.prompts, pictures, (32, 32)),
            method.settings,
            steps=2,
            seed=0,
            label="MiM-MU",
        )
        for pictures in (once, twice)
    ]
    assert tensors[0] and same_weights(*tensors)


def test_prompts_hold_the_concept():
    for concept in (CONCEPTS[0], Concept("Van Gogh", "style"), Concept("sexual", "explicit")):
        prompts = MiMMU(**QUICK).prompts(concept)
        assert len(prompts) >= 10 and all(concept.name in prompt for prompt in prompts)
    own = MiMMU(**QUICK | {"templates": ["{a} {name} at sea"]})
    assert own.prompts(CONCEPTS[0]) == ["a tench at sea"]
    assert MiMMU(**QUICK).prompts(CONCEPTS[0])[:3] == [
        "an image of a tench", "a photo of a tench", "a tench in a bag",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="minor"):
        MiMMU(**QUICK | {"templates": ["a {name} child"]}).prompts(Concept("nude", "explicit"))


def test_pictures_may_come_from_a_folder(random_sd_model, tmp_path: Path):
    (tmp_path / "tench").mkdir()
    for i in range(3):
        Image.new("RGB", (36, 40), (60 * i, 80, 200)).save(tmp_path / "tench" / f"{i}.png")
    assert edit(random_sd_model, folder=str(tmp_path), epochs=1).info["pairs"] == 3
    given = MiMMU(**QUICK, folder=str(tmp_path))
    pictures = given._pictures(random_sd_model, CONCEPTS[0], 0, Stage())
    assert pictures.prompts == ("an image of a tench", "a photo of a tench", "an image of a tench"), "no place is named"
    assert given.prompts(Concept("Van Gogh", "style")) == ["an image in the style of Van Gogh"]
    own = MiMMU(**QUICK | {"folder": str(tmp_path), "templates": ["{a} {name} at sea"]})
    assert own.prompts(CONCEPTS[0]) == ["a tench at sea"]
    with pytest.raises(ValueError, match=r"mim_mu: folder=.*: it has no folder 'gas pump'"):
        edit(random_sd_model, CONCEPTS, folder=str(tmp_path))


def test_the_content_decides(tmp_path: Path):
    for folder in ("a", "b"):
        (tmp_path / folder / "tench").mkdir(parents=True)
        Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / folder / "tench" / "1.png")

    def content(folder):
        return MiMMU(**QUICK, folder=str(tmp_path / folder)).content

    assert MiMMU(**QUICK).content is None
    first = content("a")
    assert len(first) == 64 and first == content("b")
    (tmp_path / "b" / "notes.txt").write_text("no picture")
    assert content("b") == first
    Image.new("RGB", (8, 8), (30, 20, 10)).save(tmp_path / "b" / "tench" / "1.png")
    assert content("b") != first
    (tmp_path / "a" / "tench").rename(tmp_path / "a" / "church")
    assert content("a") != first


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"variant": "B4"}, "B4"),
        ({"variant": "B2", "rollout": Sampler("euler", 4, 3.0)}, "euler"),
        ({"variant": "B3", "rollout": Sampler("pndm", 4, 3.0)}, "pndm"),
        ({"rollout_by": "teacher"}, "teacher"),
        ({"target_by": "theta"}, "theta"),
        ({"monitor": -1}, "mim_mu: monitor"),
        ({"templates": ["a fish"]}, "mim_mu: a template"),
        ({"epochs": 0}, "mim_mu: epochs"),
        ({"learning_rate": -1}, "mim_mu: learning_rate"),
        ({"folder": "no/such"}, "no such folder"),
        ({"folder": ".", "variant": "B3"}, "variant B3 takes no pictures"),
        ({"parameters": "xatt"}, "did you mean xattn"),
    ],
)
def test_bad_parameters_are_one_line(settings, words: str):
    with pytest.raises(ValueError) as error:
        MiMMU(**QUICK | settings)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_configurations():
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    def method(*overrides):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = OmegaConf.to_container(compose("config", overrides=["method=mim_mu", *overrides]), resolve=True)
        preset = config["method"].pop("preset", "")
        return preset, instantiate(OmegaConf.create(config["method"]), _convert_="all")

    preset, default = method("model=sdxl", "task=imagenette")
    assert preset == "" and (default.variant, default.epochs, default.parameters) == ("B1", 30, "xattn")
    assert default == MiMMU()
    _, pndm = method("sampler=pndm50")
    assert pndm.variant == "B1" and pndm.rollout.name == "pndm", "B1 never rolls out"
    preset, tiny = method("method.variant=B3")
    assert preset == "tiny" and tiny.rollout.name == tiny.sampler.name == "dpm++" and tiny.variant == "B3"
