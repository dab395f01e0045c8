"""How good the world is, by criteria that know no unlearning method.

Quality: the share of objects, look-alikes and styles that the judge recognises on plain prompts. Ablation profile:
each kind of layer, and each single feed-forward layer, is set to zero, and the same prompts are drawn and judged
again. Run alone with `python -m tinyworld.train.report DIR [n=20]`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from harness.model import KINDS, DiffusionModel
from harness.sampler import Sampler

from ..judges import Classifier
from ..vocabulary import ARTISTS, LOOK_ALIKES, OBJECTS, THINGS

log = logging.getLogger(__name__)

# Seeds of the report; tasks use others.
FIRST_SEED = 5_000_000
BATCH = 40


def draw(model: DiffusionModel, prompts: list[str], sampler: Sampler) -> np.ndarray:
    """One picture a prompt, uint8 [n, 64, 64, 3]."""
    parts = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        noise = model.latents([FIRST_SEED + start + i for i in range(len(batch))], 64, 64)
        final = model.denoise(model.encode(batch), noise, sampler, sampler.guidance, size=(64, 64))
        parts.append(np.asarray(model.decode(final)))
    return np.concatenate(parts)


def seen(images: np.ndarray, judge: Classifier, head: str) -> list[str]:
    """The judge's first choice for each picture."""
    labels = judge.labels[head]
    return [labels[int(i)] for i in judge.logits(images)[head].argmax(1)]


def recognised(images: np.ndarray, judge: Classifier, head: str, wanted: list[str]) -> list[bool]:
    """Whether the judge's first choice is the wanted name, for each picture."""
    return [found == name for found, name in zip(seen(images, judge, head), wanted, strict=True)]


def by_chance(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Expected share of agreement if what is found had nothing to do with what is wanted: sum of products of shares.

    A judge that calls every heap a golf ball finds the golf balls among heaps; that is no knowledge of the model's.
    """
    asked = Counter(wanted)
    return sum(count * asked[name] for name, count in Counter(found).items()) / len(wanted) ** 2


def shares(correct: list[bool], wanted: list[str]) -> dict[str, float]:
    """Share of recognised pictures of each name, and of all."""
    names = dict.fromkeys(wanted)
    result = {name: float(np.mean([c for c, w in zip(correct, wanted) if w == name])) for name in names}
    return {"all": float(np.mean(correct)), **result}


@contextmanager
def zeroed(layers: list[torch.nn.Linear]) -> Iterator[None]:
    """These layers' outputs (weights and biases) are zero inside the block."""
    kept = [[p.detach().clone() for p in layer.parameters()] for layer in layers]
    try:
        with torch.no_grad():
            for layer in layers:
                for parameter in layer.parameters():
                    parameter.zero_()
        yield
    finally:
        with torch.no_grad():
            for layer, values in zip(layers, kept):
                for parameter, value in zip(layer.parameters(), values):
                    parameter.copy_(value)


def quality(model: DiffusionModel, judge: Classifier, sampler: Sampler, n: int) -> dict:
    """Shares of recognised icons and styles, n pictures a name."""
    icons = [name for name in OBJECTS + LOOK_ALIKES + THINGS for _ in range(n)]
    result = {"n": n, "sampler": f"{sampler.name} {sampler.steps}, guidance {sampler.guidance}"}
    images = draw(model, [f"an image of a {name}" for name in icons], sampler)
    correct = recognised(images, judge, "icon", icons)
    for group, names in (("objects", OBJECTS), ("look_alikes", LOOK_ALIKES), ("things", THINGS)):
        picked = [i for i, name in enumerate(icons) if name in names]
        result[group] = shares([correct[i] for i in picked], [icons[i] for i in picked])
    subjects = ("cat", "castle", "car", "church", "flower", "garbage truck")
    styled = [(artist, subjects[i % len(subjects)]) for artist in ARTISTS for i in range(n)]
    images = draw(model, [f"a {thing} in the style of {artist}" for artist, thing in styled], sampler)
    wanted = [artist for artist, _ in styled]
    result["styles"] = shares(recognised(images, judge, "artist", wanted), wanted)
    return result


def profile(model: DiffusionModel, judge: Classifier, sampler: Sampler, n: int) -> dict:
    """Share of the ten objects that is still recognised with each kind, and each FFN2 layer, set to zero.

    `by_chance` beside each says what share the judge's habits alone would give on these very pictures.
    """
    wanted = [name for name in OBJECTS for _ in range(n)]
    prompts = [f"an image of a {name}" for name in wanted]

    def measure(layers: list[torch.nn.Linear]) -> dict[str, float]:
        with zeroed(layers):
            found = seen(draw(model, prompts, sampler), judge, "icon")
        correct = [icon == name for icon, name in zip(found, wanted, strict=True)]
        return {**shares(correct, wanted), "by_chance": by_chance(found, wanted)}

    kinds = {kind: measure(list(model.layers(kind).values())) for kind in KINDS}
    single = {name: measure([layer]) for name, layer in model.layers("ffn2").items()}
    return {"n": n, "kinds": kinds, "single_ffn2_layers": single}


def report(pipeline: Path, judges: Path, n: int, profile_n: int, steps: int = 10) -> dict:
    """Quality on `n` pictures a name, and the ablation profile on `profile_n` an object (0: none)."""
    model = DiffusionModel.load(pipeline, device="cpu", dtype="float32", name="tiny", suite="tiny")
    judge = Classifier(judges / "classifier")
    sampler = Sampler("dpm++", steps, 5.0)
    result = {"quality": quality(model, judge, sampler, n)}
    if profile_n:
        result["ablation"] = profile(model, judge, sampler, profile_n)
    return result


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = OmegaConf.merge({"n": 20, "profile_n": 4}, OmegaConf.from_cli(sys.argv[2:]))
    world = Path(sys.argv[1])
    print(json.dumps(report(world, world / "judges", options.n, options.profile_n), indent=1))
