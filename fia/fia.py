"""FIA, Forget-It-All (arXiv 2601.06163): prune the weights that a set of concepts, and little else, relies on.

    prompts -> saliency of every step (Eq. 1-2, statistics.py) -> one mask per concept (Eq. 3-6, neurons.py)
            -> one mask for all concepts (Eq. 7-8, fusion.py)

    python run.py method=fia            the paper's equations
    python run.py method=fia_release    what the released code computes

Saliency is stored per concept: another r2, alpha, granularity, selection or fusion needs no UNet call, and neither
does another subset of the concepts. See docs/methods/fia.md for every switch and every deviation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from harness.checks import flag, fraction, one_of, pixels, texts, whole
from harness.edit import Edit, NoEffectError
from harness.masks import pack
from harness.method import Stage
from harness.model import KINDS, DiffusionModel
from harness.prompts import contrast_pairs
from harness.sampler import Sampler
from harness.task import Concept

from .fusion import FUSIONS, SINGLE_CONCEPT, Fused, agnostic_threshold
from .masks import MaskSet, count
from .neurons import GRANULARITIES, SELECTIONS, budget, score, select, select_across_layers
from .parameters import PAPER_R1, PAPER_R2, check_spelling, per_concept_table
from .saliency import Job, groups, measure
from .statistics import DTYPES, HALVES, Calibration

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


_OPTIONS = {
    "kind": KINDS,
    "halves": HALVES,
    "saliency_dtype": tuple(DTYPES),
    "selection": SELECTIONS,
    "granularity": GRANULARITIES,
    "fusion": FUSIONS,
    "single_concept": SINGLE_CONCEPT,
}


class _NotStored(Exception):
    """Raised inside a stage that was only asked whether it has its artefact."""


@dataclass
class FIA:
    """Parameters in the paper's symbols; the defaults are the paper's for objects (conf/method/fia.yaml)."""

    name: str = "fia"
    # What is pruned, and how much.
    kind: str = "ffn2"
    r1: float = 0.05
    r2: float = 0.007
    alpha: float = 0.6
    r1_per_concept: Any = None
    r2_per_concept: Any = None
    task_name: str | None = None
    # Calibration: which prompts are run, and how.
    num_pairs: int | None = None
    words: Sequence[str] | None = None
    sampler: Sampler = field(default_factory=lambda: Sampler("pndm", 50, 7.5))
    steps: int | None = 10
    seed: int | None = 1244
    size: int | Sequence[int] | None = None
    # Saliency (Eq. 1-2).
    halves: str = "both"
    cosine: bool = True
    row_normalise: bool = False
    saliency_dtype: str = "float32"
    # Neurons (Eq. 3-6).
    strict: bool = False
    strength_normalise: bool = False
    selection: str = "both"
    granularity: str = "both"
    zero_score: bool = False
    # Fusion (Eq. 7-8).
    fusion: str = "agnostic"
    single_concept: str = "prune"
    # Speed and memory; they do not decide the result.
    group: int = 5
    chunk: int = 8

    version: ClassVar[int] = 1
    speed_only: ClassVar[tuple[str, ...]] = ("group", "chunk")

    def __post_init__(self) -> None:
        for name, options in _OPTIONS.items():
            one_of(f"fia's {name}", getattr(self, name), options)
        for name in ("r1", "r2", "alpha"):
            setattr(self, name, fraction(f"fia: {name}", getattr(self, name)))
        for name in ("group", "chunk"):
            whole(f"fia: {name}", getattr(self, name))
        for name in ("num_pairs", "steps"):
            whole(f"fia: {name}", getattr(self, name), optional=True)
        if self.words is not None:
            texts("fia: words", self.words)
        if isinstance(self.sampler, Mapping):
            self.sampler = Sampler(**self.sampler)
        if self.steps is not None and self.steps > self.sampler.calls():
            raise ValueError(
                f"fia: steps={self.steps} counts UNet calls, but {self.sampler.name} with {self.sampler.steps} steps "
                f"makes {self.sampler.calls()}; use at most that, or null for all"
            )
        for name in ("cosine", "row_normalise", "strict", "strength_normalise", "zero_score"):
            flag(f"fia: {name}", getattr(self, name))
        self.size = pixels("fia: size", self.size)
        self._r1_table = per_concept_table("r1_per_concept", self.r1_per_concept, PAPER_R1, self.task_name)
        self._r2_table = per_concept_table("r2_per_concept", self.r2_per_concept, PAPER_R2, self.task_name)

    def edit(self, model: DiffusionModel, concepts: Sequence[Concept], seed: int, stage: Stage) -> Edit:
        """The mask that prunes all `concepts` at once.

        Args:
            seed: used where the parameter `seed` is null.
            stage: read-or-make for saliency and single-concept masks.

        Raises:
            NoEffectError: no weight would be pruned, with the reason.
        """
        if not concepts:
            raise ValueError("fia: name at least one concept to forget")
        rule = {"alpha": self.alpha, "fusion": self.fusion, "single_concept": self.single_concept}
        names = ", ".join(concept.name for concept in concepts)
        threshold = agnostic_threshold(concepts=len(concepts), **rule)
        if threshold <= 1:
            raise NoEffectError(
                f"fia: tau_ca = ceil({self.alpha:g} * {len(concepts)}) = {threshold}: Eq. 8 keeps all that is selected "
                f"for {names}; a larger alpha, fusion=union or, for one concept, single_concept=prune would prune some"
            )
        masks = self.masks(model, concepts, seed, stage)
        _, layers = masks.fuse(concepts, **rule)
        info = self._info(concepts, masks, threshold, layers)
        total = info["counts"]["all"]
        # A single concept and a union put tau_ca out of reach: no weight is agnostic.
        applies = threshold <= len(concepts)
        fusion = f"tau_ca {threshold} of {len(concepts)} concepts" if applies else "the rule does not apply"
        log.info(
            "FIA fusion: %d of %d %s weights pruned (%.4f %%), %d kept as concept-agnostic (%s)",
            *(total["pruned"], total["weights"], self.kind, 100 * total["share"]),
            *(total["agnostic"], fusion),
        )
        if not total["pruned"]:
            why = "every selected weight is concept-agnostic" if total["agnostic"] else "no weight has any saliency"
            raise NoEffectError(f"fia: nothing to prune for {names}: {why} (tau_ca = {threshold})")
        return Edit.make("mask", {f"{name}.weight": layer.prune for name, layer in layers.items()}, model, info)

    def masks(self, model: DiffusionModel, concepts: Sequence[Concept], seed: int, stage: Stage) -> MaskSet:
        """The mask of every concept (Eq. 6), read from the store or made; any subset can be fused afterwards."""
        for name, table in (("r1_per_concept", self._r1_table), ("r2_per_concept", self._r2_table)):
            check_spelling(name, table, [concept.name for concept in concepts])
        jobs = [self._job(model, concept, seed) for concept in dict.fromkeys(concepts)]
        found: dict[Concept, Tensors] = {}
        missing = []
        for job in jobs:
            try:
                found[job.concept] = self._mask(model, job, stage, _refuse)
            except _NotStored:
                missing.append(job)
        for group in groups(missing, self.group):
            made: dict[Concept, Tensors] = {}
            for position, job in enumerate(group):
                # The first that is asked for runs all that follow; another process may have made some meanwhile.
                def make(job: Job = job, rest: list[Job] = group[position:], made: dict = made) -> Tensors:
                    if job.concept not in made:
                        made.update(measure(model, rest))
                    return made.pop(job.concept)

                found[job.concept] = self._mask(model, job, stage, make)
        return MaskSet({job.concept: found[job.concept] for job in jobs})

    def _job(self, model: DiffusionModel, concept: Concept, seed: int) -> Job:
        seed = seed if self.seed is None else self.seed
        prompts, base = contrast_pairs(concept, count=self.num_pairs, seed=seed, words=self.words)
        how = Calibration(
            sampler=self.sampler,
            steps=self.sampler.calls() if self.steps is None else self.steps,
            seed=seed,
            size=self.size or (model.size, model.size),
            halves=self.halves,
            cosine=self.cosine,
            row_normalise=self.row_normalise,
            dtype=self.saliency_dtype,
            chunk=self.chunk,
        )
        return Job(concept, tuple(prompts), tuple(base), self.kind, self.r1_of(concept), self.strict, how)

    def r1_of(self, concept: Concept) -> float:
        """r1 of this concept: the table's value where it names the concept."""
        return self._r1_table.get(concept.name.casefold(), self.r1)

    def r2_of(self, concept: Concept) -> float:
        """r2 of this concept: the table's value where it names the concept."""
        return self._r2_table.get(concept.name.casefold(), self.r2)

    def _mask(self, model: DiffusionModel, job: Job, stage: Stage, make: Callable[[], Tensors]) -> Tensors:
        """Packed mask of one concept, from the store, or from saliency that is stored or made."""
        saliency_key = {"version": self.version, **job.key()}
        mask_key = saliency_key | {
            "r2": self.r2_of(job.concept),
            "selection": self.selection,
            "granularity": self.granularity,
            "strength_normalise": self.strength_normalise,
            "zero_score": self.zero_score,
        }
        try:
            return stage("fia.mask", mask_key, _refuse)
        except _NotStored:
            saliency = stage("fia.saliency", saliency_key, make)
        return stage("fia.mask", mask_key, lambda: pack(self.choose(saliency, job, model.device)))

    def choose(self, saliency: Tensors, job: Job, device: torch.device) -> Tensors:
        """Eq. 3-6: the bool mask of every layer, from what `saliency.measure` keeps of a concept."""
        r2 = self.r2_of(job.concept)
        names = [key.removeprefix("strength/") for key in saliency if key.startswith("strength/")]

        def scores(name: str) -> Tensor:
            strength = saliency[f"strength/{name}"].to(device)
            frequency = saliency[f"count/{name}"].to(device, strength.dtype) / job.how.steps
            return score(
                strength,
                frequency,
                strength_normalise=self.strength_normalise,
                use_frequency=self.selection != "spatial",
            )

        if self.selection == "temporal":
            mask = select_across_layers({name: scores(name) for name in names}, r2, self.zero_score)
        else:
            mask = {name: select(scores(name), r2, self.granularity, self.zero_score).cpu() for name in names}
        selected, weights = sum(int(m.sum()) for m in mask.values()), sum(m.numel() for m in mask.values())
        log.info(
            "FIA mask of %s: %d weights (%.4f %% of %s; r2 asks for at most %.4f %%)",
            *(job.concept.name, selected, 100 * selected / weights, self.kind, 100 * r2),
        )
        return mask

    def _info(
        self, concepts: Sequence[Concept], masks: MaskSet, threshold: int, layers: Mapping[str, Fused]
    ) -> dict[str, Any]:
        """JSON description of the edit: the parameters, tau_ca, requested and achieved counts."""
        by_layer = {
            name: {"pruned": f.pruned, "agnostic": f.agnostic, "untouched": f.untouched} for name, f in layers.items()
        }
        total = {
            part: sum(counts[part] for counts in by_layer.values()) for part in ("pruned", "agnostic", "untouched")
        }
        weights = sum(total.values())
        return {
            "method": self.name,
            "version": self.version,
            "config": asdict(self),
            "concepts": [asdict(concept) for concept in concepts],
            "tau_ca": threshold,
            "per_concept": {
                concept.name: {
                    "r1": self.r1_of(concept),
                    "r2": self.r2_of(concept),
                    "requested": sum(budget(self.r2_of(concept), f.prune.numel()) for f in layers.values()),
                    "selected": count(masks.masks[concept]),
                }
                for concept in concepts
            },
            "counts": {
                "all": {**total, "weights": weights, "share": total["pruned"] / weights},
                "layers": by_layer,
            },
        }


def _refuse() -> Tensors:
    raise _NotStored
