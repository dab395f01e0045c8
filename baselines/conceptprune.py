"""ConceptPrune (arXiv 2405.19237): prune the feed-forward weights that a concept uses more than its surroundings do.

Pairs of prompts differ by the concept alone. In every layer and at every early denoising step, with the inputs X of all
target prompts together and every token's row of X scaled to unit length (X~),

    a_j  = ||X~_j||                    column norms: of the target prompts, and of the reference prompts
    I_ij = |W_ij| a_j                  the Wanda score
    M    = (I_target is among the floor(k Cin) largest of its row) and (I_target > I_reference)

A concept's mask is the union of M over the first tau steps, and the edit is the union of the concepts' masks.

    python run.py method=conceptprune

Column norms are stored for every list of prompts and masks for every concept: another k needs no UNet call, and
neither does another choice of concepts. See docs/methods/conceptprune.md.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from harness.checks import flag, fraction, one_of, pixels, texts, to_forget, whole
from harness.edit import Edit, NoEffectError
from harness.hooks import reading_inputs
from harness.masks import pack, top_entries, unpack
from harness.method import Stage
from harness.model import KINDS, DiffusionModel
from harness.prompts import PERSONS
from harness.sampler import Sampler
from harness.screen import require_unscreened
from harness.task import Concept

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]

STATISTICS = {"float32": torch.float32, "float16": torch.float16}
# Reference and target prompt of a kind of concept, and the released words; PERSONS are those that denote adults.
SCENES = ("road garden beach room park street shelter chair table bag tree forest").split()
THINGS = (
    "cat dog mouse bear car chair bag door rabbit ball bat horse bird flower bowl bottle wall building chicken duck"
).split()
TEMPLATES = {
    "object": ("a {word}", "a {name} in a {word}", SCENES),
    "style": ("a photo of a {word}", "a {word} in the style of {name}", THINGS),
    "explicit": ("a photo of a {word}", "a photo of a {name} {word}", PERSONS),
}
# Two objects have their own released pairs: the word of the reference prompt, and where the target prompt puts it.
CARS = [f"{colour} {thing}" for thing in ("car", "automobile") for colour in ("white", "blue", "black")]
OWN_PAIRS = {
    "church": {
        **{"road": "on a road", "park": "in the park", "beach": "near the beach", "street": "on the street"},
        **{"house": "in front of a house", "statue": "in front of a statue", "tree": "near a tree"},
        **{"forest": "in a forest"},
    },
    "garbage truck": {
        **{"road": "on the road", "park": "in the park", "street": "on the street"},
        **{car: f"near a {car}" for car in CARS},
        **{"truck": "near a big truck", "tree": "near a tree", "forest": "in a forest"},
        **{"house": "in front of a house"},
    },
}


def prompt_pairs(concept: Concept, words: Sequence[str] | None = None, own: bool = True) -> tuple[list[str], list[str]]:
    """Target and reference prompts of a concept, of equal length and in the same order.

    Args:
        words: instead of the released ones.
        own: let the two objects that have released pairs of their own use them (not with `words`).

    Raises:
        ScreenedPromptError: a pair is refused by the prompt screen.
    """
    reference, target, known = TEMPLATES[concept.kind]
    places = OWN_PAIRS.get(concept.name.casefold()) if own and words is None and concept.kind == "object" else None
    if places is not None:
        pairs = [(f"a {concept.name} {place}", f"a {word}") for word, place in places.items()]
    else:
        pairs = [(target.format(name=concept.name, word=word), reference.format(word=word)) for word in words or known]
    for pair in pairs:
        for prompt in pair:
            require_unscreened(prompt, concept.kind == "explicit", f"a prompt of concept {concept.name!r}")
    return [with_concept for with_concept, _ in pairs], [without for _, without in pairs]


@dataclass
class ConceptPrune:
    """The released values for objects are the defaults; conf/method/conceptprune.yaml has those of the other kinds."""

    name: str = "conceptprune"
    kind: str = "ffn2"
    k: float = 0.02
    tau: int = 10
    select_ratio: float = 0.0
    words: Sequence[str] | None = None
    own_prompts: bool = True
    sampler: Sampler = field(default_factory=lambda: Sampler("pndm", 50, 7.5))
    seed: int | None = 0
    size: int | Sequence[int] | None = None
    statistics: str = "float32"
    # Speed and memory; it does not decide the result.
    chunk: int = 8

    version: ClassVar[int] = 1
    speed_only: ClassVar[tuple[str, ...]] = ("chunk",)

    def __post_init__(self) -> None:
        one_of("conceptprune's kind", self.kind, KINDS)
        one_of("conceptprune's statistics", self.statistics, tuple(STATISTICS))
        if isinstance(self.sampler, Mapping):
            self.sampler = Sampler(**self.sampler)
        fraction("conceptprune: k", self.k)
        if whole("conceptprune: tau", self.tau) > self.sampler.calls():
            raise ValueError(
                f"conceptprune: tau={self.tau} counts UNet calls, but {self.sampler.name} with {self.sampler.steps} "
                f"steps makes {self.sampler.calls()}; use at most that"
            )
        fraction("conceptprune: select_ratio", self.select_ratio, zero=True)
        if self.words is not None and not texts("conceptprune: words", self.words):
            raise ValueError("conceptprune: words is null or holds at least one word")
        flag("conceptprune: own_prompts", self.own_prompts)
        whole("conceptprune: seed", self.seed, least=0, optional=True)
        self.size = pixels("conceptprune: size", self.size)
        whole("conceptprune: chunk", self.chunk)

    def edit(self, model: DiffusionModel, concepts: Sequence[Concept], seed: int, stage: Stage) -> Edit:
        """The union of the masks of all concepts.

        Args:
            seed: used where the parameter `seed` is null.
            stage: read-or-make for column norms and masks of single concepts.

        Raises:
            NoEffectError: no weight would be pruned, with the reason.
        """
        concepts = to_forget("conceptprune", model, concepts)
        width = max(layer.in_features for layer in model.layers(self.kind).values())
        if not budget(self.k, width):
            raise NoEffectError(f"conceptprune: k={self.k:g} of a row of {width} weights is less than one; choose more")
        prune: dict[str, Tensor] = {}
        selected = {}
        for concept in concepts:
            mask = unpack(self.mask(model, concept, seed, stage))
            for name, layer in mask.items():
                prune[name] = prune[name] | layer if name in prune else layer
            selected[concept.name] = sum(int(layer.sum()) for layer in mask.values())
        counts = {name: int(layer.sum()) for name, layer in prune.items()}
        pruned, weights = sum(counts.values()), sum(layer.numel() for layer in prune.values())
        log.info(
            "ConceptPrune of %d concepts: %d of %d %s weights pruned (%.4f %%)",
            *(len(selected), pruned, weights, self.kind, 100 * pruned / weights),
        )
        if not pruned:
            raise NoEffectError("conceptprune: nothing to prune: no weight counts more with the concept than without")
        info = {
            "method": self.name,
            "version": self.version,
            "config": asdict(self),
            "concepts": [asdict(concept) for concept in concepts],
            "selected": selected,
            "counts": {"pruned": pruned, "weights": weights, "share": pruned / weights, "layers": counts},
        }
        return Edit.make("mask", {f"{name}.weight": layer for name, layer in prune.items()}, model, info)

    def mask(self, model: DiffusionModel, concept: Concept, seed: int, stage: Stage) -> Tensors:
        """The packed mask of one concept, read from the store or made."""
        prompts = prompt_pairs(concept, self.words, self.own_prompts)
        target, reference = (self._run_key(model, some, seed) for some in prompts)

        def make() -> Tensors:
            a_target, a_reference = (self.norms(model, key, stage) for key in (target, reference))
            mask = {
                name: skilled(layer.weight, a_target[name], a_reference[name], self.k, self.select_ratio).cpu()
                for name, layer in model.layers(self.kind).items()
            }
            selected, weights = sum(int(m.sum()) for m in mask.values()), sum(m.numel() for m in mask.values())
            log.info(
                "ConceptPrune mask of %s: %d weights (%.4f %% of %s, in the union of %d steps of at most %.4f %% each)",
                *(concept.name, selected, 100 * selected / weights, self.kind, self.tau, 100 * self.k),
            )
            return pack(mask)

        key = {"target": target, "reference": reference, "k": self.k, "select_ratio": self.select_ratio}
        return stage("conceptprune.mask", key, make)

    def _run_key(self, model: DiffusionModel, prompts: Sequence[str], seed: int) -> dict[str, Any]:
        """Everything that decides the column norms of a list of prompts."""
        return {
            "version": self.version,
            "kind": self.kind,
            "prompts": list(prompts),
            "tau": self.tau,
            "sampler": asdict(self.sampler),
            "seed": seed if self.seed is None else self.seed,
            "size": list(self.size or (model.size, model.size)),
            "statistics": self.statistics,
        }

    def norms(self, model: DiffusionModel, key: Mapping[str, Any], stage: Stage) -> Tensors:
        """a of every step, [tau, Cin] by layer name on the model's device, read from the store or made."""
        norms = stage("conceptprune.norms", dict(key), lambda: self._measure(model, key))
        return {name: tensor.to(model.device) for name, tensor in norms.items()}

    def _measure(self, model: DiffusionModel, key: Mapping[str, Any]) -> Tensors:
        prompts, tau, size = key["prompts"], key["tau"], tuple(key["size"])
        layers, dtype = model.layers(self.kind), STATISTICS[self.statistics]
        norms = {
            name: torch.zeros(tau, layer.in_features, dtype=dtype, device=model.device)
            for name, layer in layers.items()
        }
        step, rows = 0, 0
        text, noise = model.encode(prompts), model.latents([key["seed"]] * len(prompts), *size)
        chunks = range(0, len(prompts), self.chunk)

        def read(name: str, x: Tensor) -> None:
            # At the first call one unconditional row stands for those of all prompts.
            add_rows(norms[name][step], torch.cat([x[:-rows].expand_as(x[-rows:]), x[-rows:]]))

        with (
            reading_inputs(layers, read),
            tqdm(total=tau * len(chunks), desc="ConceptPrune", unit="call", leave=False, disable=None) as bar,
        ):

            def on_call(call: int, timestep: float) -> None:
                nonlocal step
                step = call
                bar.update()

            for start in chunks:
                part = slice(start, start + self.chunk)
                rows = len(noise[part])
                model.denoise(
                    text[part], noise[part], self.sampler, self.sampler.guidance,
                    size=size, stop_after=tau, on_call=on_call, both_halves=True, same_start=True,
                )  # fmt: skip
        for name, layer in norms.items():
            if not torch.isfinite(layer).all():
                raise FloatingPointError(f"the column norms of {name} hold NaN or infinity; try statistics=float32")
        return {name: layer.cpu() for name, layer in norms.items()}


def add_rows(a: Tensor, x: Tensor) -> None:
    """Add the inputs of some prompts to the column norms `a` [Cin], in place and in the arithmetic of `a`.

    One prompt after the other, as the released code does: in float16 each of them is a rounding.

    Args:
        x: [2 * prompts, tokens, Cin], the unconditional half first; all rows count. A row of zeros stays zero.
    """
    for prompt in x.to(a.dtype).unflatten(0, (2, -1)).unbind(1):
        length = torch.linalg.vector_norm(prompt, dim=-1, keepdim=True)
        unit = prompt / length.clamp(min=torch.finfo(a.dtype).tiny)
        norm = torch.linalg.vector_norm(unit.flatten(0, 1), dim=0)
        a.copy_((a.square() + norm.square()).sqrt())


def budget(k: float, n: int) -> int:
    """floor(k n), possibly 0; the slack keeps products that should be whole from losing one to binary rounding."""
    return math.floor(k * n + 1e-9)


def skilled(weight: Tensor, target: Tensor, reference: Tensor, k: float, select_ratio: float = 0.0) -> Tensor:
    """The mask of one layer and concept: weights that M chooses at more than `select_ratio` of the steps.

    Scores are computed in the arithmetic of the norms. Equal ones go to the lower column.

    Args:
        weight: [Cout, Cin].
        target, reference: a of every step [tau, Cin].

    Returns:
        bool [Cout, Cin].
    """
    magnitude = weight.detach().abs().to(target.dtype)
    steps = torch.zeros(magnitude.shape, dtype=torch.int16, device=magnitude.device)
    wide = torch.promote_types(target.dtype, torch.float32)  # exact; not every device sorts float16
    for pair in zip(target, reference, strict=True):
        with_concept, without = ((magnitude * a).to(wide) for a in pair)
        steps += top_entries(with_concept, budget(k, magnitude.shape[1])) & (with_concept > without)
    return steps > budget(select_ratio, len(target))
