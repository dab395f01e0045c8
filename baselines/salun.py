"""SalUn for diffusion models (arXiv 2310.12508): relabel a concept by fine-tuning the weights that matter for it.

1. Mask. The gradient of the denoising loss over pictures of the concepts, with guidance,

       pred = (1 + c) eps(z_t, t, prompt) - c eps(z_t, t, "")        G = sum over minibatches of grad MSE(n, pred)

   is summed with its signs; the share r of all UNet weights with the largest |G| may move.

2. Relabelling. On those weights alone, with sg[.] for "no gradient",

       L = MSE(eps(z_t, t, prompt), sg[eps(z'_t, t, pseudo prompt)]) + alpha MSE(eps(zr_t, tr, retain prompt), nr)

   where z and z' are two posterior samples of the same picture under the same noise, and the target is a prediction of
   the very model that is trained.

    python run.py method=salun              classes, all weights; pseudo prompts are anchors
    python run.py method=salun_xattn        classes, cross-attention
    python run.py method=salun_concept      concepts with one neutral prompt, as published for nudity

All concepts are unlearnt together, with one mask. See docs/methods/salun.md.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from harness.checks import fraction, number, one_of, pixels, texts, to_forget, whole
from harness.edit import Edit, NoEffectError
from harness.masks import pack, unpack
from harness.method import Scratch, Stage, scratch
from harness.model import Conditioning, DiffusionModel
from harness.prompts import OBJECTS, PLACES, class_prompt
from harness.sampler import Sampler
from harness.screen import require_unscreened
from harness.task import Concept
from harness.trainer import PARAMETERS, Draw, Network, Settings, parameter_names, summed_gradients, train
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

PSEUDO = ("anchor", "shift", "prompt")


@dataclass
class SalUn:
    """The published values for classes are the defaults (conf/method/salun.yaml)."""

    name: str = "salun"
    # Prompts.
    prompt: str = "an image of {a} {name}"
    pseudo: str = "anchor"
    anchors: Mapping[str, str] = field(default_factory=dict)
    pseudo_prompt: str = ""
    keep: Sequence[str] = ()
    retain_prompts: Sequence[str] | None = None
    # Pictures.
    images: int = 800
    retain_images: int = 800
    forget_folder: str | None = None
    retain_folder: str | None = None
    sampler: Sampler = field(default_factory=lambda: Sampler("ddim", 50, 7.5))
    size: int | Sequence[int] | None = None
    # Mask.
    r: float = 0.5
    c: float = 7.5
    # Relabelling.
    parameters: str = "full"
    alpha: float = 0.5
    epochs: int = 5
    learning_rate: float = 1e-5
    batch: int = 8
    precision: str = "float32"
    # Memory; it does not decide the result.
    accumulate: int = 1

    version: ClassVar[int] = 1
    speed_only: ClassVar[tuple[str, ...]] = ("accumulate",)

    def __post_init__(self) -> None:
        check_template("salun: prompt", self.prompt)
        one_of("salun's pseudo", self.pseudo, PSEUDO)
        if not isinstance(self.anchors, Mapping):
            raise ValueError(f"salun: anchors is a map such as {{tench: fish}}, got {self.anchors!r}")
        texts("salun: anchors", [*self.anchors, *self.anchors.values()])
        texts("salun: pseudo_prompt", [self.pseudo_prompt])
        self.keep = texts("salun: keep", self.keep or ())
        if self.retain_prompts is not None and not texts("salun: retain_prompts", self.retain_prompts):
            raise ValueError("salun: retain_prompts is null or holds at least one prompt")
        for name in ("images", "retain_images", "epochs"):
            whole(f"salun: {name}", getattr(self, name))
        for name in ("forget_folder", "retain_folder"):
            check_folder(f"salun: {name}", getattr(self, name))
        if isinstance(self.sampler, Mapping):
            self.sampler = Sampler(**self.sampler)
        self.size = pixels("salun: size", self.size)
        fraction("salun: r", self.r)
        number("salun: c", self.c)
        one_of("salun's parameters", self.parameters, PARAMETERS)
        number("salun: alpha", self.alpha)
        self.settings.check("salun")

    @property
    def settings(self) -> Settings:
        return Settings(self.learning_rate, self.batch, self.accumulate, self.precision)

    @cached_property
    def content(self) -> str | None:
        """Hex sha256 over the pictures in `forget_folder` and `retain_folder`; None without a folder."""
        return content_of(self.forget_folder, self.retain_folder)

    def edit(self, model: DiffusionModel, concepts: Sequence[Concept], seed: int, stage: Stage) -> Edit:
        """New UNet weights after mask and relabelling, for all concepts at once.

        Args:
            seed: of drawn pictures, noise, timesteps and the order of the pictures.
            stage: read-or-make for drawn pictures and the mask.

        Raises:
            NoEffectError: no weight may move.
        """
        concepts = to_forget("salun", model, concepts)
        pairs = self.pairs(concepts)
        forget = self.forget_pictures(model, concepts, seed, stage)
        retain = self.retain_pictures(model, concepts, seed, stage)
        names = parameter_names(model, self.parameters)
        mask_key = {
            "version": self.version,
            "forget": forget.key,
            "seed": seed,
            "batch": self.batch,
            "precision": self.precision,
            "r": self.r,
            "c": self.c,
        }
        masks, selected = None, None
        if self.r < 1:

            def made() -> dict[str, Tensor]:
                return pack(self.saliency_mask(model, forget, seed, scratch(stage, "salun.mask", mask_key)))

            masks = unpack(stage("salun.mask", mask_key, made))
            selected = {
                "unet": sum(int(mask.sum()) for mask in masks.values()),
                "trained": sum(int(masks[name].sum()) for name in names),
            }
            if not selected["trained"]:
                raise NoEffectError(f"salun: r={self.r:g} lets no weight of parameters={self.parameters} move")
        steps = self.epochs * math.ceil(len(forget) / self.batch)
        pseudo = {prompt: pairs[prompt] for prompt in forget.prompts}
        loss = self.relabelling(model, forget, pseudo, retain)
        train_key = mask_key | {
            "pseudo": pseudo,
            "retain": retain.key,
            "parameters": self.parameters,
            "alpha": self.alpha,
            "steps": steps,
            "learning_rate": self.learning_rate,
        }

        def trained() -> dict[str, Tensor]:
            place = scratch(stage, "salun.training", train_key)
            return train(
                model, names, loss, self.settings,
                steps=steps, seed=seed, label="SalUn", scratch=place, masks=masks,
            )  # fmt: skip

        tensors = stage("salun.training", train_key, trained)
        info = {
            "method": self.name,
            "version": self.version,
            "config": asdict(self),
            "concepts": [asdict(concept) for concept in concepts],
            "pseudo": pseudo,
            "pictures": {"forget": len(forget), "retain": len(retain)},
            "steps": steps,
            "selected": selected,
        }
        return Edit.make("delta", tensors, model, info)

    def pairs(self, concepts: Sequence[Concept]) -> dict[str, str]:
        """The pseudo prompt of every forget prompt.

        Raises:
            ValueError: pseudo=shift without classes to keep.
            ScreenedPromptError: a prompt is refused by the prompt screen.
        """
        if self.pseudo == "shift" and not self.keep:
            raise ValueError("salun: pseudo=shift needs classes to keep; say pseudo=anchor, or pseudo=prompt")
        anchors = {name.casefold(): anchor for name, anchor in self.anchors.items()}
        pairs = {}
        for i, concept in enumerate(concepts):
            other = self.pseudo_prompt
            if self.pseudo == "shift":
                other = filled(self.prompt, self.keep[i % len(self.keep)])
            elif self.pseudo == "anchor" and concept.name.casefold() in anchors:
                other = filled(self.prompt, anchors[concept.name.casefold()])
            pairs[filled(self.prompt, concept.name)] = other
        _screen([*pairs, *pairs.values()], concepts)
        return pairs

    def forget_pictures(self, model: DiffusionModel, concepts: Sequence[Concept], seed: int, stage: Stage) -> Pictures:
        """Pictures of every concept."""
        parts = []
        for concept in concepts:
            prompts = [filled(self.prompt, concept.name)]
            parts.append(
                self._pictures(
                    model, concepts, prompts, concept.name, self.images, self.forget_folder, "forget", seed, stage
                )
            )
        return Pictures.cat(parts)

    def retain_pictures(self, model: DiffusionModel, concepts: Sequence[Concept], seed: int, stage: Stage) -> Pictures:
        """`retain_images` in all: of `retain_prompts`, else of the classes to keep, else of everyday words."""
        if self.retain_prompts is not None:
            groups = {"retain": list(self.retain_prompts)}
        elif self.keep:
            groups = {name: [filled(self.prompt, name)] for name in self.keep}
        else:
            erased = {concept.name.casefold() for concept in concepts}
            groups = {"retain": [class_prompt(word, "test") for word in (*OBJECTS, *PLACES) if word not in erased]}
        _screen([prompt for prompts in groups.values() for prompt in prompts], concepts)
        if self.retain_folder is not None and any(len(prompts) > 1 for prompts in groups.values()):
            raise ValueError(
                "salun: retain_folder goes with classes to keep, or with a single prompt in retain_prompts"
            )
        count = math.ceil(self.retain_images / len(groups))
        return Pictures.cat(
            [
                self._pictures(model, concepts, prompts, name, count, self.retain_folder, "retain", seed, stage)
                for name, prompts in groups.items()
            ]
        )

    def _pictures(
        self,
        model: DiffusionModel,
        concepts: Sequence[Concept],
        prompts: Sequence[str],
        name: str,
        count: int,
        folder: str | None,
        what: str,
        seed: int,
        stage: Stage,
    ) -> Pictures:
        size, explicit = self.size or (model.size, model.size), _explicit(concepts)
        if folder is not None:
            what = f"salun: {what}_folder"
            return folder_pictures(model, folder, name, prompts, size=size, what=what, explicit=explicit)
        return drawn_pictures(
            model, prompts, count, name=name, sampler=self.sampler, size=size, seed=seed, stage=stage, explicit=explicit
        )

    def saliency_mask(
        self, model: DiffusionModel, forget: Pictures, seed: int, place: Scratch | None = None
    ) -> dict[str, Tensor]:
        """Stage 1: bool by UNet parameter name, True for the floor(r N) of all N weights with the largest |G|.

        Args:
            place: for checkpoints of the sums; None keeps none.
        """

        def loss(network: Network, draw: Draw) -> Tensor:
            items = draw.items(len(forget), "forget")
            z0 = forget.sample(items, draw, model.device)
            t, n = draw.timesteps(), draw.noise(z0)
            z_t = network.noised(z0, n, t)
            with_prompt = network.predict(z_t, t, _text(model, [forget.prompts[i] for i in items]))
            without = network.predict(z_t, t, model.unconditional(len(items)))
            return mse_loss((1 + self.c) * with_prompt - self.c * without, n)

        gradients = summed_gradients(
            model, parameter_names(model, "full"), loss, self.settings,
            steps=math.ceil(len(forget) / self.batch), seed=seed, label="SalUn mask", scratch=place,
        )  # fmt: skip
        total = sum(gradient.numel() for gradient in gradients.values())
        k = math.floor(self.r * total)
        if not k:
            raise NoEffectError(f"salun: r={self.r:g} of {total} UNet weights is less than one")
        mask = largest({name: gradient.abs_() for name, gradient in gradients.items()}, k)
        log.info("SalUn mask: %d of %d UNet weights may move (r %g)", k, total, self.r)
        return mask

    def relabelling(self, model: DiffusionModel, forget: Pictures, pseudo: Mapping[str, str], retain: Pictures) -> Any:
        """Stage 2: the loss of a micro-batch of forget pictures and one of retain pictures."""

        def loss(network: Network, draw: Draw) -> Tensor:
            items = draw.items(len(forget), "forget")
            prompts = [forget.prompts[i] for i in items]
            z, z_other = (forget.sample(items, draw, model.device) for _ in range(2))
            t, n = draw.timesteps(), draw.noise(z)
            l_forget = relabel_loss(
                network, z, z_other, t, n, _text(model, prompts), _text(model, [pseudo[prompt] for prompt in prompts])
            )
            items = draw.items(len(retain), "retain")
            z = retain.sample(items, draw, model.device)
            t, n = draw.timesteps(), draw.noise(z)
            text = _text(model, [retain.prompts[i] for i in items])
            return l_forget + self.alpha * mse_loss(network.predict(network.noised(z, n, t), t, text), n)

        return loss


def relabel_loss(
    network: Network, z: Tensor, z_other: Tensor, t: Tensor, n: Tensor, text: Conditioning, pseudo: Conditioning
) -> Tensor:
    """MSE between the prediction for `text` and that for `pseudo`, which gets no gradient.

    Args:
        z, z_other: two posterior samples of the same pictures, [b, channels, h, w].
        t: [b] timesteps; n: noise in the shape of z.
        text, pseudo: features of b prompts.
    """
    with torch.no_grad():
        target = network.predict(network.noised(z_other, n, t), t, pseudo)
    return mse_loss(network.predict(network.noised(z, n, t), t, text), target)


def largest(scores: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """True at the k largest of all entries of all tensors; ties go to the earlier tensor, then to the lower index.

    The k-th largest value is found by counting bit patterns, whose order is that of the numbers they stand for: the
    billions of weights of a large UNet are neither joined nor sorted.

    Args:
        scores: float32, none negative, by name.
        k: at least 1.
    """
    patterns = {name: tensor.contiguous().view(torch.int32).flatten() for name, tensor in scores.items()}
    threshold, wanted = 0, k
    for shift in (16, 0):  # the upper half of the threshold's bits, then the lower half
        counts = torch.zeros(2**16, dtype=torch.int64)
        for bits in patterns.values():
            if shift == 0:
                bits = bits[bits >> 16 == threshold >> 16]
            counts += torch.bincount((bits >> shift) & 0xFFFF, minlength=2**16)
        at_least = counts.flip(0).cumsum(0).flip(0)
        digit = int((at_least >= wanted).sum()) - 1
        wanted -= int(at_least[digit] - counts[digit])
        threshold |= digit << shift
    mask = {}
    for name, bits in patterns.items():
        ties = bits == threshold
        mask[name] = ((bits > threshold) | (ties & (ties.cumsum(0) <= wanted))).view(scores[name].shape)
        wanted = max(wanted - int(ties.sum()), 0)
    return mask


def _text(model: DiffusionModel, prompts: Sequence[str]) -> Conditioning:
    """Features of the prompts, the empty one as guidance has it."""
    return Conditioning.cat([model.encode([prompt]) if prompt else model.unconditional(1) for prompt in prompts])


def _explicit(concepts: Sequence[Concept]) -> bool:
    return any(concept.kind == "explicit" for concept in concepts)


def _screen(prompts: Sequence[str], concepts: Sequence[Concept]) -> None:
    for prompt in prompts:
        require_unscreened(prompt, _explicit(concepts), "a prompt of salun")
