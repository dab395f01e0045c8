"""MiM-MU (arXiv 2603.00992): unlearn by minimising mutual information, with nothing to compensate for it.

The original model phi judges how much a picture x says of an erased concept y: I(x, y) = log p(x|y) - log p(x), by the
ELBO a difference of noise errors. Without the Jacobian of phi, and aligned with phi's marginal rather than just pushed
away from p(x|y), this is a regression on the original model's unconditional prediction:

    L = MSE(eps_theta(z_t, t, y), sg[eps_phi(z_t, t, "")])

No data to retain, no anchor, no other loss. The paper has no released code and its full text was not at hand. Stated in
its abstract or in summaries of it: the pointwise mutual information, the dropped Jacobian, the alignment with the
marginal, cross-attention, a constructed set of forget pictures, 30 epochs. Inferred by us: that the target is the empty
prompt's prediction with no further term, noised forget pictures as z_t, uniform timesteps and weights, optimiser,
learning rate, batch, and how pictures are made. So there are variants:

    B1  z_t is a noised forget picture (default)
    A   the same, by the mutual information alone: target sg[eps_theta(y) + eps_phi("") - eps_phi(y)]
    B2  x is the clean picture that theta predicts on its way to y; the difference is measured on x noised again
    B3  z_t is partly denoised towards y

    python run.py method=mim_mu

See docs/methods/mim_mu.md.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from harness.checks import one_of, pixels, texts, to_forget, whole
from harness.edit import Edit
from harness.method import Stage, scratch
from harness.model import Conditioning, DiffusionModel
from harness.prompts import CLASS_TEMPLATES, contrast_pairs
from harness.sampler import Sampler
from harness.screen import require_unscreened
from harness.task import Concept
from harness.trainer import PARAMETERS, Draw, Loss, Network, Settings, parameter_names, train
from harness.training_data import (
    Pictures,
    check_folder,
    check_template,
    drawn_pictures,
    filled,
    folder_pictures,
)

from .picture_folders import content_of

log = logging.getLogger(__name__)

# Beside the trained tensors: how far the unconditional prediction moved, and what the monitor measured.
DRIFT, INFORMATION = "drift", "information"

VARIANTS = ("B1", "A", "B2", "B3")
ON_PICTURES = ("B1", "A")
ROLLOUTS = ("original", "trained")
TARGETS = ("original", "previous")
PRESERVING = ("ddim", "dpm++")
# Prompts of pictures from a folder: they say what every one of them shows, and nothing of a place or a person.
PLAIN = {
    "object": tuple(CLASS_TEMPLATES.values()),
    "style": ("an image in the style of {name}",),
    "explicit": ("a photo of {a} {name} person",),
}
DRIFT_SAMPLES = 8
# At which the mutual information is measured: the middles of twenty equal parts of the noise schedule.
TIMESTEPS = range(25, 1000, 50)


@dataclass
class MiMMU:
    """Our defaults, see above; the paper's are `epochs` and `parameters` (conf/method/mim_mu.yaml)."""

    name: str = "mim_mu"
    variant: str = "B1"
    # Prompts and pictures of the concepts.
    templates: Sequence[str] | None = None
    images: int = 60
    folder: str | None = None
    sampler: Sampler = field(default_factory=lambda: Sampler("ddim", 50, 7.5))
    size: int | Sequence[int] | None = None
    # Latents of B2 and B3.
    rollout: Sampler = field(default_factory=lambda: Sampler("ddim", 50, 3.0))
    rollout_by: str = "original"
    # Training.
    parameters: str = "xattn"
    target_by: str = "original"
    epochs: int = 30
    learning_rate: float = 1e-5
    batch: int = 4
    precision: str = "bfloat16"
    # Measured beside; it does not change the edit. Off, for it costs about a sixth of the training.
    monitor: int = 0
    # Memory; it does not decide the result.
    accumulate: int = 1

    version: ClassVar[int] = 1
    speed_only: ClassVar[tuple[str, ...]] = ("accumulate",)

    def __post_init__(self) -> None:
        one_of("mim_mu's variant", self.variant, VARIANTS)
        if self.templates is not None:
            if not texts("mim_mu: templates", self.templates):
                raise ValueError("mim_mu: templates is null or holds at least one template")
            for template in self.templates:
                check_template("mim_mu: a template", template)
        whole("mim_mu: images", self.images)
        check_folder("mim_mu: folder", self.folder)
        for name in ("sampler", "rollout"):
            if isinstance(getattr(self, name), Mapping):
                setattr(self, name, Sampler(**getattr(self, name)))
        if self.variant not in ON_PICTURES:
            one_of("mim_mu's rollout.name", self.rollout.name, PRESERVING)
            if self.folder is not None:
                raise ValueError(f"mim_mu: folder={self.folder}: variant {self.variant} takes no pictures; B1 and A do")
        one_of("mim_mu's rollout_by", self.rollout_by, ROLLOUTS)
        self.size = pixels("mim_mu: size", self.size)
        one_of("mim_mu's parameters", self.parameters, PARAMETERS)
        one_of("mim_mu's target_by", self.target_by, TARGETS)
        whole("mim_mu: epochs", self.epochs)
        whole("mim_mu: monitor", self.monitor, least=0)
        self.settings.check("mim_mu")

    def idle(self, schedule: str) -> tuple[str, ...]:
        """See `harness.method.Method`: only after other edits is there a choice of targets."""
        return (
            *(("target_by",) if schedule != "sequential" else ()),
            *(("monitor",) if not self.monitor else ()),
        )

    @property
    def settings(self) -> Settings:
        return Settings(self.learning_rate, self.batch, self.accumulate, self.precision)

    @cached_property
    def content(self) -> str | None:
        """Hex sha256 over the pictures in `folder` and the templates of their prompts; None without a folder."""
        pictures = content_of(self.folder)
        return pictures and hashlib.sha256(repr((pictures, PLAIN)).encode()).hexdigest()

    def edit(self, model: DiffusionModel, concepts: Sequence[Concept], seed: int, stage: Stage) -> Edit:
        """New cross-attention weights, for all concepts at once.

        Args:
            seed: of drawn pictures, noise, timesteps and the order of the pictures.
            stage: read-or-make for drawn pictures.

        Raises:
            ScreenedPromptError: a prompt is refused by the prompt screen.
        """
        concepts = to_forget("mim_mu", model, concepts)
        pictures, prompts = None, [prompt for c in concepts for prompt in self._cycled(self.prompts(c))]
        if self.variant in ON_PICTURES:
            pictures = Pictures.cat([self._pictures(model, concept, seed, stage) for concept in concepts])
            prompts = list(pictures.prompts)
        size = self.size or (model.size, model.size)
        steps = self.epochs * math.ceil(len(prompts) / self.batch)
        decisive = ("version", "variant", "parameters", "learning_rate", "batch", "precision")
        key = {name: getattr(self, name) for name in decisive} | {
            "prompts": prompts,
            "pictures": pictures.key if pictures else None,
            "size": list(size),
            "steps": steps,
            "seed": seed,
        }
        if pictures is None:
            key |= {"rollout": asdict(self.rollout), "rollout_by": self.rollout_by}
        untouched = model.untouched if self.target_by == "original" else {}
        if untouched:
            key["target_by"] = self.target_by
        held_out = {c.name: self.prompts(c)[: self.monitor] for c in concepts} if self.monitor else {}
        if held_out:
            key["monitor"] = {"pictures": self.monitor, "prompts": held_out, "sampler": asdict(self.sampler)}
        names, loss = parameter_names(model, self.parameters), self.loss(model, prompts, pictures, size)

        def trained() -> dict[str, Tensor]:
            seen: dict[str, Tensor] = {}

            def look(network: Network) -> None:
                seen[DRIFT] = torch.tensor([self.drift(model, network, size, seed)], dtype=torch.float64)
                if held_out:
                    rows = [self.information(model, network, prompts, size, seed) for prompts in held_out.values()]
                    seen[INFORMATION] = torch.tensor(rows, dtype=torch.float64)

            tensors = train(
                model, names, loss, self.settings, steps=steps, seed=seed, label="MiM-MU",
                scratch=scratch(stage, "mim_mu.training", key), untouched=untouched, at_end=look,
            )  # fmt: skip
            return tensors | seen

        tensors = dict(stage("mim_mu.training", key, trained))
        drift = {"unconditional": float(tensors.pop(DRIFT))}
        log.info("MiM-MU: the unconditional prediction moved by %.3g of its size", drift["unconditional"])
        information = {}
        if held_out:
            for name, (before, after) in zip(held_out, tensors.pop(INFORMATION).tolist(), strict=True):
                information[name] = {"original": before, "edited": after}
                log.info("MiM-MU: mutual information of pictures and %s: %.3g, before %.3g", name, after, before)
        info = {
            "method": self.name,
            "version": self.version,
            "config": asdict(self),
            "concepts": [asdict(concept) for concept in concepts],
            "pairs": len(prompts),
            "steps": steps,
            "drift": drift,
            **({"information": information} if information else {}),
        }
        return Edit.make("delta", tensors, model, info)

    def prompts(self, concept: Concept) -> list[str]:
        """Prompts that contain a concept: `templates`, or the harness's class and scene prompts of its kind.

        Pictures from a folder have no scene prompts, since nobody knows where they were taken.
        """
        templates, scenes = self.templates, []
        if templates is None and self.folder is not None:
            templates = PLAIN[concept.kind]
        elif templates is None:
            templates, scenes = PLAIN["object"] if concept.kind == "object" else (), contrast_pairs(concept)[0]
        prompts = [filled(template, concept.name) for template in templates] + scenes
        for prompt in prompts:
            require_unscreened(prompt, concept.kind == "explicit", f"a prompt of concept {concept.name!r}")
        return prompts

    def _cycled(self, prompts: Sequence[str]) -> list[str]:
        return [prompts[i % len(prompts)] for i in range(self.images)]

    def _pictures(self, model: DiffusionModel, concept: Concept, seed: int, stage: Stage) -> Pictures:
        size, prompts = self.size or (model.size, model.size), self.prompts(concept)
        explicit = concept.kind == "explicit"
        if self.folder is not None:
            what = "mim_mu: folder"
            return folder_pictures(model, self.folder, concept.name, prompts, size=size, what=what, explicit=explicit)
        return drawn_pictures(
            model, prompts, self.images, name=concept.name, sampler=self.sampler, size=size, seed=seed, stage=stage,
            explicit=explicit,
        )  # fmt: skip

    def loss(
        self, model: DiffusionModel, prompts: Sequence[str], pictures: Pictures | None, size: tuple[int, int]
    ) -> Loss:
        """The loss of a micro-batch by the variant; `pictures` belong to the prompts, B2 and B3 take none."""

        def conditioning(draw: Draw) -> tuple[list[int], Conditioning, Conditioning]:
            items = draw.items(len(prompts), "forget")
            return items, model.encode([prompts[i] for i in items]), model.unconditional(len(items))

        def on_pictures(network: Network, draw: Draw) -> Tensor:
            items, text, empty = conditioning(draw)
            z0 = pictures.sample(items, draw, model.device)
            t = draw.timesteps()
            target = aligned if self.variant == "B1" else repelled
            return target(network, network.noised(z0, draw.noise(z0), t), t, text, empty)

        def on_rollouts(network: Network, draw: Draw) -> Tensor:
            _, text, empty = conditioning(draw)
            noise = draw.noise(_latents(model, len(draw), size))
            by_original = self.variant == "B3" and self.rollout_by == "original"
            with network.original() if by_original else nullcontext():
                z_s, s = network.partly_denoised(text, noise, self.rollout, draw.common(self.rollout.calls()))
            if self.variant == "B3":
                return aligned(network, z_s, s, text, empty)
            with torch.no_grad():
                x = network.clean(z_s, network.predict(z_s, s, text), s)
            t = draw.timesteps()
            return distilled(network, z_s, s, network.noised(x, draw.noise(x), t), t, text, empty)

        return on_pictures if self.variant in ON_PICTURES else on_rollouts

    def drift(self, model: DiffusionModel, network: Network, size: tuple[int, int], seed: int) -> float:
        """||eps_theta(z, t, "") - eps_phi(z, t, "")|| / ||eps_phi(z, t, "")|| on noise: no loss holds it at zero.

        Every picture that guidance draws depends on this prediction, so it is what to look at when quality drops.
        """
        draw = Draw(("drift", seed), 0, range(DRIFT_SAMPLES))
        z, t, empty = draw.noise(_latents(model, len(draw), size)), draw.timesteps(), model.unconditional(len(draw))
        with torch.no_grad():
            now = network.predict(z, t, empty)
        with network.original():
            before = network.predict(z, t, empty)
        return float((now - before).norm() / before.norm())

    def information(
        self, model: DiffusionModel, network: Network, prompts: Sequence[str], size: tuple[int, int], seed: int
    ) -> tuple[float, float]:
        """The mutual information of prompts and pictures drawn for them: by the original model, and by the trained one.

        The pictures, `monitor` of them, are drawn as pictures to forget are, from noise of their own, and stay latents.
        """
        draw = Draw(("monitor", seed), 0, range(self.monitor))
        text = model.encode([prompts[i % len(prompts)] for i in range(self.monitor)])
        noise, empty = draw.noise(_latents(model, len(draw), size)), model.unconditional(len(draw))
        with network.original():
            drawn = [network.denoised(text, noise, self.sampler)]
        drawn.append(network.denoised(text, noise, self.sampler))
        fresh = [draw.noise(noise) for _ in TIMESTEPS]
        before, after = (mutual_information(network, x, fresh, text, empty) for x in drawn)
        return before, after


def aligned(network: Network, z_t: Tensor, t: Tensor, text: Conditioning, empty: Conditioning) -> Tensor:
    """B1 and B3: MSE(eps_theta(z_t, t, y), eps_phi(z_t, t, "")), the target without gradient.

    Args:
        z_t: [b, channels, h, w]; t: [b].
        text, empty: features of b prompts, and of "no prompt" as guidance has it.
    """
    with network.original():
        target = network.predict(z_t, t, empty)
    return mse_loss(network.predict(z_t, t, text), target)


def repelled(network: Network, z_t: Tensor, t: Tensor, text: Conditioning, empty: Conditioning) -> Tensor:
    """A: a loss with the gradient of the mutual information, whose direction eps_phi("") - eps_phi(y) never changes."""
    with network.original():
        direction = network.predict(z_t, t, empty) - network.predict(z_t, t, text)
    prediction = network.predict(z_t, t, text)
    return mse_loss(prediction, prediction.detach() + direction)


def distilled(
    network: Network, z_s: Tensor, s: Tensor, x_t: Tensor, t: Tensor, text: Conditioning, empty: Conditioning
) -> Tensor:
    """B2: half of MSE(e, sg[e + eps_phi(x_t, t, "") - eps_theta(x_t, t, y)]) with e = eps_theta(z_s, s, y).

    With x_t = z_s and t = s it has half the gradient of `aligned`.
    """
    with network.original():
        marginal = network.predict(x_t, t, empty)
    with torch.no_grad():
        own = network.predict(x_t, t, text)
    prediction = network.predict(z_s, s, text)
    return 0.5 * mse_loss(prediction, prediction.detach() + marginal - own)


def mutual_information(
    network: Network, x: Tensor, noise: Sequence[Tensor], text: Conditioning, empty: Conditioning
) -> float:
    """I(x, y) as the original model judges it, from the ELBO (step 1 of docs/methods/mim_mu.md), with w = 1:

        mean over pictures and TIMESTEPS of 1/2 (||eps_phi(x_t, t, "") - n||^2 - ||eps_phi(x_t, t, y) - n||^2)

    where ||.||^2 is the mean over the entries of a latent. Zero for the empty prompt; positive where a picture fits its
    prompt better than none.

    Args:
        x: [b, channels, h, w], clean latents.
        noise: for every one of TIMESTEPS its n, in the shape of x.
        text, empty: features of the b prompts, and of "no prompt" as guidance has it.
    """
    gaps = []
    with network.original():
        for step, n in zip(TIMESTEPS, noise, strict=True):
            t = torch.full((len(x),), step)
            x_t = network.noised(x, n, t)
            marginal, conditional = (mse_loss(network.predict(x_t, t, given), n) for given in (empty, text))
            gaps.append(0.5 * (marginal - conditional))
    return float(torch.stack(gaps).double().mean())


def _latents(model: DiffusionModel, n: int, size: tuple[int, int]) -> Tensor:
    """Zeros in the shape of n latents, float32 on the model's device."""
    width, height = (side // model.factor for side in size)
    return torch.zeros(n, model.unet.config.in_channels, height, width, device=model.device)
