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

from harness.checks import one_of, pixels, texts, whole
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

# Beside the trained tensors: how far the unconditional prediction moved.
DRIFT = "drift"

VARIANTS = ("B1", "A", "B2", "B3")
ON_PICTURES = ("B1", "A")
ROLLOUTS = ("original", "trained")
PRESERVING = ("ddim", "dpm++")
DRIFT_SAMPLES = 8


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
    epochs: int = 30
    learning_rate: float = 1e-5
    batch: int = 4
    precision: str = "bfloat16"
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
        one_of("mim_mu's rollout_by", self.rollout_by, ROLLOUTS)
        self.size = pixels("mim_mu: size", self.size)
        one_of("mim_mu's parameters", self.parameters, PARAMETERS)
        whole("mim_mu: epochs", self.epochs)
        self.settings.check("mim_mu")

    @property
    def settings(self) -> Settings:
        return Settings(self.learning_rate, self.batch, self.accumulate, self.precision)

    @cached_property
    def content(self) -> str | None:
        """Hex sha256 over the pictures in `folder`; None without a folder."""
        return content_of(self.folder)

    def edit(self, model: DiffusionModel, concepts: Sequence[Concept], seed: int, stage: Stage) -> Edit:
        """New cross-attention weights, for all concepts at once.

        Args:
            seed: of drawn pictures, noise, timesteps and the order of the pictures.
            stage: read-or-make for drawn pictures.

        Raises:
            ScreenedPromptError: a prompt is refused by the prompt screen.
        """
        if not concepts:
            raise ValueError("mim_mu: name at least one concept to forget")
        concepts = list(dict.fromkeys(concepts))
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
        names, loss = parameter_names(model, self.parameters), self.loss(model, prompts, pictures, size)

        def trained() -> dict[str, Tensor]:
            drift: list[float] = []
            place = scratch(stage, "mim_mu.training", key)
            tensors = train(
                model, names, loss, self.settings, steps=steps, seed=seed, label="MiM-MU", scratch=place,
                at_end=lambda network: drift.append(self.drift(model, network, size, seed)),
            )  # fmt: skip
            return tensors | {DRIFT: torch.tensor(drift, dtype=torch.float64)}

        tensors = dict(stage("mim_mu.training", key, trained))
        drift = {"unconditional": float(tensors.pop(DRIFT))}
        log.info("MiM-MU: the unconditional prediction moved by %.3g of its size", drift["unconditional"])
        info = {
            "method": self.name,
            "version": self.version,
            "config": asdict(self),
            "concepts": [asdict(concept) for concept in concepts],
            "pairs": len(prompts),
            "steps": steps,
            "drift": drift,
        }
        return Edit.make("delta", tensors, model, info)

    def prompts(self, concept: Concept) -> list[str]:
        """Prompts that contain a concept: `templates`, or the harness's class and scene prompts of its kind."""
        if self.templates is not None:
            prompts = [filled(template, concept.name) for template in self.templates]
        else:
            plain = CLASS_TEMPLATES.values() if concept.kind == "object" else ()
            prompts = [filled(template, concept.name) for template in plain] + contrast_pairs(concept)[0]
        for prompt in prompts:
            require_unscreened(prompt, concept.kind == "explicit", f"a prompt of concept {concept.name!r}")
        return prompts

    def _cycled(self, prompts: Sequence[str]) -> list[str]:
        return [prompts[i % len(prompts)] for i in range(self.images)]

    def _pictures(self, model: DiffusionModel, concept: Concept, seed: int, stage: Stage) -> Pictures:
        size, prompts = self.size or (model.size, model.size), self.prompts(concept)
        if self.folder is not None:
            return folder_pictures(model, self.folder, concept.name, prompts, size=size, what="mim_mu: folder")
        return drawn_pictures(
            model, prompts, self.images, name=concept.name, sampler=self.sampler, size=size, seed=seed, stage=stage
        )

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


def _latents(model: DiffusionModel, n: int, size: tuple[int, int]) -> Tensor:
    """Zeros in the shape of n latents, float32 on the model's device."""
    width, height = (side // model.factor for side in size)
    return torch.zeros(n, model.unet.config.in_channels, height, width, device=model.device)
