"""FIA, Forget-It-All (arXiv 2601.06163): prune the weights that a set of concepts, and little else, relies on.

    prompts -> saliency of every step (Eq. 1-2, activity.py) -> one mask per concept (Eq. 3-6, neurons.py)
            -> one mask for all concepts (Eq. 7-8, fusion.py)

    python run.py method=fia            the paper's equations
    python run.py method=fia_release    what the released code computes

Saliency is stored per concept: another r2, alpha, granularity, selection or fusion needs no UNet call, and neither
does another subset of the concepts. See docs/methods/fia.md for every switch and every deviation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from harness.checks import flag, fraction, one_of, pixels, texts, to_forget, whole
from harness.edit import Edit, NoEffectError
from harness.masks import pack
from harness.method import Stage
from harness.model import KINDS, DiffusionModel
from harness.names import check_spelling
from harness.prompts import contrast_pairs
from harness.sampler import Sampler
from harness.task import Concept

from .fusion import FUSIONS, SINGLE_CONCEPT, Fused, agnostic_threshold
from .masks import MaskSet, count
from .neurons import GRANULARITIES, SELECTIONS, budget, score, select, select_across_layers
from .parameters import PAPER_R1, PAPER_R2, per_concept_table
from .saliency import Job, group_that_fits, groups, measure
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


def _grid(r1s: object) -> tuple[float, ...] | None:
    """`null | [fractions]` as a tuple in ascending order."""
    if r1s is None:
        return None
    if isinstance(r1s, str) or not isinstance(r1s, Sequence):
        raise ValueError(f"fia: r1_grid is null or a list of fractions such as [0.02,0.05], got {r1s!r}")
    return tuple(sorted({fraction("fia: r1_grid", r1) for r1 in r1s}))


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
    group: int | None = None
    chunk: int = 8
    r1_grid: Sequence[float] | None = None

    # 2: in half precision Y is the layer's own output.
    version: ClassVar[int] = 2
    speed_only: ClassVar[tuple[str, ...]] = ("group", "chunk", "r1_grid")

    def __post_init__(self) -> None:
        for name, options in _OPTIONS.items():
            one_of(f"fia's {name}", getattr(self, name), options)
        for name in ("r1", "r2", "alpha"):
            setattr(self, name, fraction(f"fia: {name}", getattr(self, name)))
        self.r1_grid = _grid(self.r1_grid)
        whole("fia: chunk", self.chunk)
        for name in ("num_pairs", "steps", "group"):
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
        if self.selection == "temporal" and self.granularity != "both":
            raise ValueError(
                f"fia: selection=temporal has no quota a row or layer, which granularity={self.granularity} is about; "
                "leave granularity=both, or say selection=both or spatial"
            )
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
        concepts = to_forget("fia", model, concepts)
        rule: dict[str, Any] = {"alpha": self.alpha, "fusion": self.fusion, "single_concept": self.single_concept}
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
            check_spelling(f"fia: {name}", table, [concept.name for concept in concepts])
        jobs = [self.job_of(model, concept, seed) for concept in dict.fromkeys(concepts)]
        found: dict[Concept, Tensors] = {}
        missing = []
        for job in jobs:
            try:
                found[job.concept] = self._mask(model, job, stage, partial(self._stored, job, stage))
            except _NotStored:
                missing.append(job)
        for group in groups(missing, self.group or group_that_fits(model, missing)):
            for job, saliency in self._measured(model, group, stage):
                found[job.concept] = self._mask(model, job, stage, partial(dict, saliency))
                del saliency  # or the next group would run beside it
        return MaskSet({job.concept: found[job.concept] for job in jobs})

    def _measured(self, model: DiffusionModel, group: Sequence[Job], stage: Stage) -> Iterator[tuple[Job, Tensors]]:
        """The saliency of every concept of a group, read or made; all of the grids is in the store afterwards.

        The first that is missing is made for all that follow, which are stored while it is being made: whoever waits
        for it then finds them, so that jobs of one sweep that run side by side need one pass. Locks are only ever taken
        in ascending order of prompts and r1; no two processes wait for each other.
        """
        members = [(job, r1) for job in group for r1 in job.grid]
        made: dict[tuple[Concept, float], Tensors] = {}
        stored: set[tuple[Job, float]] = set()

        def make(number: int) -> Tensors:
            job, r1 = members[number]
            if (job.concept, r1) not in made:
                made.update(measure(model, list(dict.fromkeys(job for job, _ in members[number:]))))
                for later, its_r1 in members[number + 1 :]:
                    key = self._saliency_key(later, its_r1)
                    stage("fia.saliency", key, partial(made.__getitem__, (later.concept, its_r1)))
                    stored.add((later, its_r1))
                    if its_r1 != later.r1:
                        del made[later.concept, its_r1]
            return made.pop((job.concept, r1))

        for number, (job, r1) in enumerate(members):
            if r1 == job.r1 or (job, r1) not in stored:
                saliency = stage("fia.saliency", self._saliency_key(job, r1), partial(make, number))
                if r1 == job.r1:
                    made.pop((job.concept, r1), None)
                    yield job, saliency

    def job_of(self, model: DiffusionModel, concept: Concept, seed: int) -> Job:
        """Prompts and settings of one concept's calibration; `seed` is used where the parameter is null."""
        seed = seed if self.seed is None else self.seed
        prompts, base = contrast_pairs(concept, num_pairs=self.num_pairs, seed=seed, words=self.words)
        how = Calibration(
            sampler=self.sampler,
            steps=self.sampler.calls() if self.steps is None else self.steps,
            seed=seed,
            size=pixels("fia: size", self.size) or (model.size, model.size),
            halves=self.halves,
            cosine=self.cosine,
            row_normalise=self.row_normalise,
            dtype=self.saliency_dtype,
            chunk=self.chunk,
        )
        r1 = self.r1_of(concept)
        # An exception of the table holds for every member of a sweep over r1.
        grid = {r1} if concept.name.casefold() in self._r1_table else {r1, *(self.r1_grid or ())}
        return Job(concept, tuple(prompts), tuple(base), self.kind, r1, self.strict, how, tuple(sorted(grid)))

    def r1_of(self, concept: Concept) -> float:
        """r1 of this concept: the table's value where it names the concept."""
        return self._r1_table.get(concept.name.casefold(), self.r1)

    def r2_of(self, concept: Concept) -> float:
        """r2 of this concept: the table's value where it names the concept."""
        return self._r2_table.get(concept.name.casefold(), self.r2)

    def _stored(self, job: Job, stage: Stage) -> Tensors:
        """The saliency at the job's r1 from the store.

        Raises:
            _NotStored: it is not there.
        """
        return stage("fia.saliency", self._saliency_key(job, job.r1), _refuse)

    def _mask(self, model: DiffusionModel, job: Job, stage: Stage, saliency: Callable[[], Tensors]) -> Tensors:
        """Packed mask of one concept, from the store, or from its saliency."""
        key = self._saliency_key(job, job.r1) | {
            "r2": self.r2_of(job.concept),
            "selection": self.selection,
            "granularity": self.granularity,
            "strength_normalise": self.strength_normalise,
            "zero_score": self.zero_score,
        }
        return stage("fia.mask", key, lambda: pack(self.choose(saliency(), job, model.device)))

    def _saliency_key(self, job: Job, r1: float) -> dict[str, Any]:
        return {"version": self.version, **job.key(r1)}

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
