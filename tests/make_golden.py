"""Golden values of the tiny world: `python tests/make_golden.py` measures them and writes tests/golden/tiny.json.

Run it when the world's weights are replaced; tests/test_golden.py compares with it. Every number is a summary of a
part's output on fixed inputs: a few hundred numbers say whether any part computes something else than it did.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import conftest  # noqa: F401  (it makes the project importable)
import numpy as np
import torch
from torch import Tensor, nn

from fia.fia import FIA
from harness.masks import unpack
from harness.model import DiffusionModel
from harness.sampler import Sampler
from harness.task import Concept
from tinyworld.freeze import WORLD, card
from tinyworld.judges import Classifier, MarkerDetector, SecondClassifier, TinyClip, to_input
from tinyworld.scene import Scene, render

GOLDEN = Path(__file__).with_name("golden") / "tiny.json"
PROMPTS, SEEDS = ["an image of a golf ball", "a painting of a church in a forest"], [7, 8]
SAMPLER = Sampler("ddim", 4, 7.5)

Values = dict[str, list[float]]


def load() -> DiffusionModel:
    """The world's model in float32 on the CPU."""
    return DiffusionModel.load(WORLD, name="tiny", suite="tiny", device="cpu", dtype="float32")


def text(model: DiffusionModel) -> Values:
    """Norms of the text features, by prompt, and their first entries at the first positions: the encoder's last
    normalisation leaves the norms almost as they are."""
    hidden = model.encode(PROMPTS).hidden
    return {"text norms": _list(hidden.flatten(1).norm(dim=1)), "text": _list(hidden[:, :8, :6])}


def pictures(model: DiffusionModel) -> Values:
    """Of the latents after every UNet call mean and deviation, by picture, and the means of their sixteenths, by
    channel; of the decoded pictures the mean colours of their sixteenths."""
    walk = model.trajectory(model.encode(PROMPTS), model.latents(SEEDS), SAMPLER, SAMPLER.guidance)
    values: Values = {}
    for call, latents in enumerate(walk):
        values[f"latents/{call}"] = _list(torch.stack([latents.mean((1, 2, 3)), latents.std((1, 2, 3))]))
        values[f"latents/{call}/sixteenths"] = _list(nn.functional.adaptive_avg_pool2d(latents, 4))
    return values | {"pictures": _colours(model.decode(latents).numpy())}


def masks(model: DiffusionModel) -> Values:
    """FIA on one concept: the sum of the saliency, and how many weights the mask selects, by layer."""
    method = FIA(num_pairs=2, sampler=SAMPLER, steps=2, r1=0.1, r2=0.2)
    made: dict[str, dict[str, Tensor]] = {}

    def stage(name: str, key: dict, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        made[name] = make()
        return made[name]

    concept = Concept("golf ball", "object")
    found = method.masks(model, [concept], 0, stage)
    strengths = [value.sum() for name, value in sorted(made["fia.saliency"].items()) if name.startswith("strength/")]
    counts = [float(layer.sum()) for layer in unpack(found.masks[concept]).values()]
    return {"saliency": _list(torch.stack(strengths)), "masks": counts}


def drawings() -> list[np.ndarray]:
    """A golf ball, a church in a style and a marked figure."""
    scenes = [Scene(("golf ball",)), Scene(("church",), artist="Monet"), Scene(person="woman", markers=("red disc",))]
    return [render(scene, np.random.default_rng(seed)).image for seed, scene in enumerate(scenes)]


def classifiers() -> Values:
    """What the classifiers say about the drawings; the drawings themselves."""
    images, classifier = drawings(), Classifier.of()
    return {
        "drawings": _colours(np.stack(images)),
        **{f"classifier/{head}": _list(values) for head, values in sorted(classifier.logits(images).items())},
        "features": _list(classifier.features(images).norm(dim=1)),
        "second classifier": _list(SecondClassifier.of().logits(images)["icon"]),
    }


def clip_and_markers() -> Values:
    """CLIP scores of the drawings with three texts, and the detector's highest logit of every marker."""
    images, clip = drawings(), TinyClip.of()
    similar = clip.image_features(images) @ clip.text_features([*PROMPTS, "a woman"]).T
    heat = MarkerDetector.of().network(to_input(images))[0]
    return {"clip": _list(100 * similar), "detector": _list(heat.amax((2, 3)))}


def _colours(images: np.ndarray) -> list[float]:
    """Mean colour of every sixteenth of every picture: [n, h, w, 3] to n * 4 * 4 * 3 numbers from 0 to 255."""
    n, side = len(images), images.shape[1] // 4
    return images.reshape(n, 4, side, 4, side, 3).mean((2, 4)).flatten().round(4).tolist()


def _list(values: Tensor) -> list[float]:
    return [float(f"{value:.7g}") for value in values.flatten().tolist()]


def main() -> None:
    """Measure, and write the file."""
    model = load()
    values = text(model) | pictures(model) | masks(model) | classifiers() | clip_and_markers()
    GOLDEN.parent.mkdir(exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in values.items())
    GOLDEN.write_text(f'{{\n "world": "{card()["hash"]}",\n "values": {{\n{lines}\n }}\n}}\n')
    print(f"{GOLDEN}: {sum(map(len, values.values()))} numbers")


if __name__ == "__main__":
    main()
