"""Text features at subject tokens, as methods that edit cross-attention projections read them.

A prompt of n subject tokens has the start token at position 0, its subject at 1 to n, the end token at n + 1 and
padding behind. The empty prompt has no subject; its last subject token is the start token.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .model import DiffusionModel


def last_token_rows(model: DiffusionModel, texts: Sequence[str]) -> Tensor:
    """The feature of every text's last subject token: [texts, width]."""
    features = model.token_features(texts)
    return features.hidden[range(len(texts)), features.last]


def aligned_rows(model: DiffusionModel, text: str, guide: str) -> tuple[Tensor, Tensor]:
    """Features of two texts from the last subject token on, position by position: twice [rows, width].

    Both begin at their own last subject token, then come end token and padding, as many rows as the longer text has.
    """
    features = model.token_features([text, guide])
    starts = features.last.tolist()
    rows = features.hidden.shape[1] - max(starts)
    first, second = (hidden[start : start + rows] for hidden, start in zip(features.hidden, starts, strict=True))
    return first, second
