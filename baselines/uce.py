"""UCE, Unified Concept Editing (arXiv 2308.14761): cross-attention keys and values rewritten in closed form.

Every projection W [o, d] is a linear memory of text features. With c_i the features to erase, v_i* the outputs they
shall have, c_j the features to preserve, the new weights W' minimise

    s sum_i ||W' c_i - v_i*||^2 + p sum_j ||W' c_j - W c_j||^2 + lambda ||W' - W||_F^2

    python run.py method=uce            as now released: one feature a text, that of its last subject token
    python run.py method=uce_legacy     as released first: all features from the last subject token on

Both are called UCE and differ much in strength; see docs/methods/uce.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from harness.checks import finite, flag, number, one_of, texts, to_forget
from harness.edit import Edit, NoEffectError
from harness.method import Stage
from harness.model import KINDS, DiffusionModel
from harness.names import check_spelling
from harness.screen import require_unscreened
from harness.task import Concept
from harness.tokens import aligned_rows, last_token_rows

log = logging.getLogger(__name__)

TOKENS = ("last", "aligned")
TECHNIQUES = ("replace", "tensor")
STYLE_TEMPLATES = ("painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}")
TEMPLATES = ("image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}")
# Texts whose features are in memory together.
CHUNK = 32


@dataclass
class UCE:
    """The released values of the current code are the defaults (conf/method/uce.yaml)."""

    name: str = "uce"
    kinds: Sequence[str] = ("cross_k", "cross_v")
    tokens: str = "last"
    technique: str = "replace"
    guides: Any = None
    preserve: Sequence[str] = ()
    preserve_empty: bool = False
    erase_scale: float = 1.0
    preserve_scale: float | None = 1.0
    ridge: float = 0.5
    expand_prompts: bool = False
    expand_guides: bool = True

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not texts("uce: kinds", self.kinds):
            raise ValueError("uce: kinds names at least one of cross_k and cross_v")
        for kind in self.kinds:
            one_of("uce's kinds", kind, [known for known in KINDS if known.startswith("cross")])
        one_of("uce's tokens", self.tokens, TOKENS)
        one_of("uce's technique", self.technique, TECHNIQUES)
        self.preserve = texts("uce: preserve", self.preserve)
        self.erase_scale = number("uce: erase_scale", self.erase_scale)
        if self.preserve_scale is not None:
            self.preserve_scale = number("uce: preserve_scale", self.preserve_scale)
        self.ridge = number("uce: ridge", self.ridge, zero=False)
        for name in ("preserve_empty", "expand_prompts", "expand_guides"):
            flag(f"uce: {name}", getattr(self, name))
        if isinstance(self.guides, Mapping):
            texts("uce: guides", list(self.guides.values()))
        elif not (self.guides is None or isinstance(self.guides, str)):
            raise ValueError(f"uce: guides is null, one text, or a map from concepts to texts, got {self.guides!r}")

    def edit(self, model: DiffusionModel, concepts: Sequence[Concept], seed: int, stage: Stage) -> Edit:
        """New cross-attention projections for all concepts at once. Nothing is drawn at random, nothing is run.

        Raises:
            NoEffectError: no output is asked to change.
            ScreenedPromptError: a text is refused by the prompt screen.
            FloatingPointError: text features or old weights hold NaN or infinity, or new ones in the model's dtype.
        """
        concepts = to_forget("uce", model, concepts)
        # Sorted, so that the sums, and with them the last bits, do not depend on the order of the concepts.
        pairs = self.pairs(sorted(concepts, key=lambda concept: (concept.name, concept.kind)))
        erased = {concept.name.casefold() for concept in concepts}
        preserve = sorted({text for text in self.preserve if text.casefold() not in erased})
        preserve += [""] if self.preserve_empty and "" not in preserve else []
        explicit = any(concept.kind == "explicit" for concept in concepts)
        for text in {*preserve, *(text for pair in pairs for text in pair)}:
            require_unscreened(text, explicit, "a text of uce")
        p = self.preserve_scale if self.preserve_scale is not None else max(0.1, 1 / max(1, len(preserve)))

        layers = {name: layer for kind in self.kinds for name, layer in model.layers(kind).items()}
        # Metal knows no float64.
        device = torch.device("cpu") if model.device.type == "mps" else model.device
        weights = {
            f"{name}.weight": finite(f"uce: {name}", layer.weight.detach()).to(device)
            for name, layer in sorted(layers.items())
        }
        erase = [tuple(_features(rows, device) for rows in self._rows(model, *pair)) for pair in pairs]
        new = solve(
            weights,
            erase,
            self._gram(model, preserve, device),
            technique=self.technique,
            s=self.erase_scale,
            p=p,
            ridge=self.ridge,
        )
        for name, w in new.items():
            finite(f"uce: the new {name}", w)
        moved = sum((new[name].double() - w.double()).square().sum() for name, w in weights.items())
        relative = float((moved / sum(w.double().square().sum() for w in weights.values())).sqrt())
        if not relative:
            raise NoEffectError("uce: nothing changes: erase_scale is 0, or every concept is its own guide")
        log.info(
            "UCE: %d texts to erase (%d features), %d to preserve (p %g), %d matrices, relative change %.4f",
            *(len(pairs), sum(len(c) for c, _ in erase), len(preserve), p, len(weights), relative),
        )
        info = {
            "method": self.name,
            "version": self.version,
            "config": asdict(self),
            "concepts": [asdict(concept) for concept in concepts],
            "pairs": pairs,
            "preserved": len(preserve),
            "preserve_scale": p,
            "relative_change": relative,
        }
        return Edit.make("delta", new, model, info)

    def pairs(self, concepts: Sequence[Concept]) -> list[tuple[str, str]]:
        """(text to erase, its guide): of every concept its name and, with `expand_prompts`, five templates of it."""
        named = self.guides if isinstance(self.guides, Mapping) else {}
        guides = {str(name).casefold(): guide for name, guide in named.items()}
        check_spelling("uce: guides", guides, [concept.name for concept in concepts])
        pairs = []
        for concept in concepts:
            default = self.guides if isinstance(self.guides, str) else "art" if concept.kind == "style" else ""
            guide = guides.get(concept.name.casefold(), default)
            pairs.append((concept.name, guide))
            if self.expand_prompts:
                for template in STYLE_TEMPLATES if concept.kind == "style" else TEMPLATES:
                    expanded = template.format(guide) if self.expand_guides else guide
                    pairs.append((template.format(concept.name), expanded))
        return pairs

    def _rows(self, model: DiffusionModel, text: str, guide: str) -> tuple[Tensor, Tensor]:
        """The features c of a text and g of its guide, row by row: twice [rows, d]."""
        if self.tokens == "aligned":
            return aligned_rows(model, text, guide)
        return last_token_rows(model, [text]), last_token_rows(model, [guide])

    def _gram(self, model: DiffusionModel, preserve: Sequence[str], device: torch.device) -> Tensor:
        """`sum_j c_j c_j^T` [d, d], float64, of the texts to preserve; with aligned tokens every position counts."""
        width = model.encode([""]).hidden.shape[-1]
        gram = torch.zeros(width, width, dtype=torch.float64, device=device)
        for start in range(0, len(preserve), CHUNK):
            part = preserve[start : start + CHUNK]
            if self.tokens == "aligned":
                rows = model.encode(part).hidden.flatten(0, 1)
            else:
                rows = last_token_rows(model, part)
            rows = _features(rows, device)
            gram += rows.T @ rows
        return gram


def _features(rows: Tensor, device: torch.device) -> Tensor:
    return finite("uce: text features", rows).to(device).double()


def solve(
    weights: Mapping[str, Tensor],
    erase: Sequence[tuple[Tensor, Tensor]],
    preserve: Tensor,
    *,
    technique: str,
    s: float,
    p: float,
    ridge: float,
) -> dict[str, Tensor]:
    """The minimiser W' of every layer (section 4 of the paper, with its weights made explicit).

    With targets v_i* = W t_i, the normal equations read

        W' = W + s W (sum_i (t_i - c_i) c_i^T) M^-1        M = s sum_i c_i c_i^T + p sum_j c_j c_j^T + lambda I

    M is the same for every layer. So is all that stands right of W where t_i = g_i, the guide's feature (`replace`):
    one factor of M then serves one solve for all layers. In this form the weights stay as they are, to the bit, where
    nothing is to change.

    `tensor` takes out of the guide's outputs what points along the text's own: with all rows of one text as one vector,
    v* = W g - <U, W g> U, U = W c / ||W c||. That is t_i = g_i - a c_i with a number `a` for every text and layer.

    Args:
        weights: [o, d] by name, any dtype.
        erase: for every text the features c and g of its guide, each [rows, d], float64.
        preserve: sum_j c_j c_j^T [d, d], float64.
        technique: replace or tensor.
        s, p, ridge: the scales s and p, and lambda > 0.

    Returns:
        W' by name, in the dtype of W, on the device of the features. `tensor` needs 2 d^2 numbers a text in between.
    """
    c, g = (torch.cat(rows) for rows in zip(*erase))
    for name, weight in weights.items():
        if weight.shape[1] != c.shape[1]:
            raise ValueError(f"uce: {name} takes {weight.shape[1]} features, the text encoder gives {c.shape[1]}")
    m = s * c.T @ c + p * preserve
    m.diagonal().add_(ridge)
    factor, fault = torch.linalg.cholesky_ex(m)
    if fault:
        raise ValueError(f"uce: ridge={ridge:g} is lost beside the features of the texts; choose a larger one")

    def over_m(change: Tensor) -> Tensor:
        return torch.cholesky_solve(change.T, factor).T

    pull = (g - c).T @ c
    if technique == "replace":
        same = over_m(s * pull)
    else:
        grams = torch.stack([(rows.T @ rows).flatten() for rows, _ in erase])
        crosses = torch.stack([(rows.T @ guide).flatten() for rows, guide in erase])
    new = {}
    for name, weight in weights.items():
        w = weight.to(c)
        if technique == "replace":
            step = same
        else:
            metric = (w.T @ w).flatten()  # <W x, W y> = x^T (W^T W) y
            a = crosses @ metric / (grams @ metric).clamp(min=torch.finfo(c.dtype).tiny)
            step = over_m(s * (pull - (a @ grams).view_as(pull)))
        new[name] = (w + w @ step).to(weight.dtype)
    return new
