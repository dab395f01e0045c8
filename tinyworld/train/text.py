"""The text side: a byte-level CLIP tokenizer made from our captions, and a CLIP text encoder.

The encoder is pretrained contrastively on pictures and captions (Radford et al. 2021) beside a small picture network
that is thrown away afterwards. It is frozen while the UNet trains, as Stable Diffusion's is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .data import Drawn
from .loop import autocast, fit
from .recipe import Recipe
from .vae import to_tensor

START, END = "<|startoftext|>", "<|endoftext|>"
POSITIONS = 77
SUFFIX = "</w>"


def train_tokenizer(captions: list[str], vocabulary: int) -> CLIPTokenizer:
    """Learn byte-pair merges on the captions; the layout of ids is CLIP's (bytes, merges, start, end = padding)."""
    template = CLIPTokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=SUFFIX))
    tokenizer.normalizer, tokenizer.pre_tokenizer = template.normalizer, template.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, end_of_word_suffix=SUFFIX, initial_alphabet=_alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.model.save(folder)
        merges = [tuple(line.split(" ")) for line in Path(folder, "merges.txt").read_text().splitlines()[1:]]
    # CLIP holds every byte twice, inside a word and at its end; merges follow in the order in which they were learnt.
    tokens = [*_alphabet(), *(byte + SUFFIX for byte in _alphabet())]
    known = set(tokens)
    for pair in merges:
        if "".join(pair) not in known:
            known.add("".join(pair))
            tokens.append("".join(pair))
    tokens += [START, END]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=POSITIONS
    )


def _alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


class PictureNet(nn.Module):
    """A small convolutional network: pictures to `width` numbers. Only used while the text encoder is pretrained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for channels in (32, 64, 128, 192):
            layers += [nn.Conv2d(previous, channels, 4, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(True)]
            previous = channels
        layers += [nn.Conv2d(previous, previous, 3, 1, 1, bias=False), nn.BatchNorm2d(previous), nn.ReLU(True)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(previous * 16, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).flatten(1))


class Pair(nn.Module):
    """Text encoder and picture network with their projections."""

    def __init__(self, text: CLIPTextModel, width: int) -> None:
        super().__init__()
        self.text, self.picture = text, PictureNet(width)
        self.project = nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.6))

    def loss(self, ids: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """Symmetric cross-entropy; equal captions in a batch share the target instead of counting as wrong."""
        with autocast():
            text = self.project(self.text(ids).pooler_output)
            picture = self.picture(pictures)
        logits = self.scale.exp() * F.normalize(text.float()) @ F.normalize(picture.float()).T
        same = (ids[:, None] == ids[None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_text(recipe: Recipe, data: Drawn, out: Path, folder: Path) -> None:
    """Write `out/tokenizer` and `out/text_encoder`."""
    tokenizer = train_tokenizer(data.captions, recipe.vocabulary)
    torch.manual_seed(recipe.seed + 1)
    width = recipe.text_width
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=recipe.text_layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=POSITIONS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    pair = Pair(text, width)
    ids = tokenizer(data.captions, padding="max_length", return_tensors="pt").input_ids
    # Under the causal mask the padding after the first end token cannot change the pooled feature.
    longest = int((ids == tokenizer.eos_token_id).int().argmax(1).max()) + 1

    def loss(rng: np.random.Generator, step: int) -> torch.Tensor:
        picked = np.sort(rng.choice(len(data), recipe.text.batch, replace=False))
        return pair.loss(ids[picked, :longest], to_tensor(data.images[picked]))

    fit("text", pair, loss, recipe.text, folder, recipe.seed + 1)
    tokenizer.save_pretrained(out / "tokenizer")
    text.save_pretrained(out / "text_encoder")
