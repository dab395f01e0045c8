"""The judges' training: on rendered pictures and damaged versions of them, never on pictures of any model.

Whoever scores an edited model must not have learnt from the model itself, or its habits would pass as correct. The
held-out report at the end is part of the result: it says how far each judge can be trusted.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPTokenizer

from ..freeze import WORLD
from ..judge_networks import ConvNet, HeatmapNet, LargeKernelNet, build_clip
from ..judges import Classifier, MarkerDetector, SecondClassifier, TinyClip, clip_tokens, save_judge
from ..scene import Scene, render
from ..vocabulary import ARTISTS, ICONS, MARKERS, PERSONS, PLACES
from .damage import damage, heaps
from .data import IGNORED, NONE, Drawn
from .loop import autocast, fit, fit_cycles
from .recipe import Recipe
from .vae import to_tensor

log = logging.getLogger(__name__)

NO = "none"
LABELS = {"icon": (*ICONS, NO), "artist": (*ARTISTS, NO), "place": (*PLACES, NO)}
# Objects are what unlearning is measured on; the other two heads follow.
HEAD_WEIGHTS = {"icon": 1.0, "artist": 0.5, "place": 0.3}
HEAP_SHARE = 0.15
# Width of the features that FID and KID compare.
FEATURES = 128
SKIP = -100  # cross_entropy's ignore_index

CLIP_MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": (2, 2, 2, 1), "width": 16, "head_width": 64},
    # Only lists of many markers are longer than 24 tokens; they are cut.
    "text_cfg": {"context_length": 24, "width": 128, "heads": 4, "layers": 2, "pool_type": "eos"},
}

DETECTOR_SEED = 104_729
# Pictures of marked figures for the detector; few of the world's pictures show markers.
MARKED_PER_STEP = 6
THRESHOLD = 0.4
# A found marker counts when its centre is this close to the true one (a marker is about 0.09 wide).
NEAR = 0.06


def train_judges(recipe: Recipe, data: Drawn, held_out: Drawn, out: Path, work: Path) -> dict:
    """Write `out/judges/{classifier,second_classifier,clip,detector}`; returns and keeps their held-out quality.

    Judges that are already in `out` are not trained again. Needs `out/pipeline/tokenizer`.
    """
    folder = out / "judges"
    for judge, train in (
        (Classifier, _train_classifier),
        (SecondClassifier, _train_second),
        (MarkerDetector, _train_detector),
        (TinyClip, _train_clip),
    ):
        if not (folder / judge.name / "config.json").exists():
            train(recipe, data, folder / judge.name, out / "pipeline" / "tokenizer", work)
    quality = judge_quality(recipe, held_out, folder)
    partial = folder / "quality.json.part"
    partial.write_text(json.dumps(quality, indent=1) + "\n")
    os.replace(partial, folder / "quality.json")
    return quality


def targets(labels: np.ndarray, heap: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Class indices by head of labels int [n, 3]; "none" is the last class, ambiguous labels are skipped.

    Pictures marked in `heap` (bool [n]) show no object, and nothing is asked about their place and style.
    """
    result = {}
    for column, (head, names) in enumerate(LABELS.items()):
        index = torch.from_numpy(labels[:, column].astype(np.int64))
        index = torch.where(index == NONE, len(names) - 1, torch.where(index == IGNORED, SKIP, index))
        if heap is not None:
            index[heap] = len(names) - 1 if head == "icon" else SKIP
        result[head] = index
    return result


def sampling(labels: np.ndarray) -> np.ndarray:
    """Cumulative sampling weights [n]: by one over the square root of the icon's count, so that rare icons are seen."""
    _, inverse, counts = np.unique(labels[:, 0], return_inverse=True, return_counts=True)
    weights = np.cumsum(1 / np.sqrt(counts[inverse]))
    return weights / weights[-1]


def _batches(data: Drawn) -> Callable[[np.random.Generator, int], tuple[torch.Tensor, dict]]:
    """A function that draws n damaged pictures and their targets."""
    cumulative = sampling(data.labels)

    def draw(rng: np.random.Generator, n: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        picked = np.minimum(np.searchsorted(cumulative, rng.random(n)), len(data) - 1)
        x = to_tensor(data.images[picked])
        heap = torch.from_numpy(rng.random(n) < HEAP_SHARE)
        if heap.any():
            x[heap] = heaps(x[heap], rng)
        return damage(x, rng), targets(data.labels[picked], heap)

    return draw


def _cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    # A plain mean over a batch in which everything is skipped would be 0 / 0.
    count = (target != SKIP).sum().clamp(min=1)
    return F.cross_entropy(logits.float(), target, ignore_index=SKIP, reduction="sum") / count


def _train_classifier(recipe: Recipe, data: Drawn, folder: Path, tokenizer: Path, work: Path) -> None:
    torch.manual_seed(recipe.seed + 11)
    network = ConvNet({head: len(names) for head, names in LABELS.items()}, width=FEATURES).to(
        memory_format=torch.channels_last
    )
    batch = _batches(data)

    def loss(rng: np.random.Generator, n: int) -> torch.Tensor:
        x, target = batch(rng, n)
        with autocast():
            logits = network(x)
        return sum(weight * _cross_entropy(logits[head], target[head]) for head, weight in HEAD_WEIGHTS.items())

    fit_cycles("judge", network, loss, recipe.judge, work, recipe.seed + 11)
    save_judge(folder, network, f"{WORLD.name}/cnn", labels=LABELS, width=FEATURES)


def _train_second(recipe: Recipe, data: Drawn, folder: Path, tokenizer: Path, work: Path) -> None:
    torch.manual_seed(recipe.seed + 12)
    network = LargeKernelNet(len(LABELS["icon"])).to(memory_format=torch.channels_last)
    batch = _batches(data)

    def loss(rng: np.random.Generator, n: int) -> torch.Tensor:
        x, target = batch(rng, n)
        with autocast():
            logits = network(x)
        return _cross_entropy(logits, target["icon"])

    fit_cycles("second_judge", network, loss, recipe.second_judge, work, recipe.seed + 12)
    save_judge(folder, network, f"{WORLD.name}/large-kernel", labels={"icon": LABELS["icon"]})


def _train_clip(recipe: Recipe, data: Drawn, folder: Path, tokenizer: Path, work: Path) -> None:
    """Contrastive (Radford et al. 2021), with equal captions in a batch sharing the target."""
    torch.manual_seed(recipe.seed + 13)
    words = CLIPTokenizer.from_pretrained(tokenizer)
    text = {**CLIP_MODEL["text_cfg"], "vocab_size": len(words), "eos_id": words.eos_token_id}
    model = {**CLIP_MODEL, "text_cfg": text}
    network = build_clip(model).to(memory_format=torch.channels_last)
    ids = clip_tokens(words, data.captions, text["context_length"])

    def loss(rng: np.random.Generator, step: int) -> torch.Tensor:
        picked = np.sort(rng.choice(len(data), min(recipe.clip.batch, len(data)), replace=False))
        x, tokens = damage(to_tensor(data.images[picked]), rng), ids[picked]
        with autocast():
            pictures, captions = network.encode_image(x), network.encode_text(tokens)
        scale = network.logit_scale.clamp(max=np.log(100)).exp()
        logits = scale * F.normalize(pictures.float()) @ F.normalize(captions.float()).T
        same = (tokens[:, None] == tokens[None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    fit("clip", network, loss, recipe.clip, work, recipe.seed + 13)
    words.save_pretrained(folder / "tokenizer")
    save_judge(folder, network, f"{WORLD.name}/open-clip-rn", model=model)


def marked_pictures(count: int, seed: int, without: frozenset[str]) -> Drawn:
    """`count` pictures of figures with one to eight markers; labels are not filled in.

    Raises:
        ValueError: `without` leaves no person or no marker, so there is nothing that a detector could learn.
    """
    banned = {word.casefold() for word in without}
    persons, markers, places = (
        [word for word in words if word.casefold() not in banned] for words in (PERSONS, MARKERS, PLACES)
    )
    if not persons or not markers:
        raise ValueError("without= leaves no person or no marker to train the detector on; leave the stage judges out")
    images, rows = np.empty((count, 64, 64, 3), np.uint8), []
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        worn = tuple(rng.permutation(markers)[: int(rng.integers(1, len(markers) + 1))].tolist())
        place = str(rng.choice(places)) if places and rng.random() < 0.75 else None
        rendered = render(Scene((), place, str(rng.choice(persons)), worn), rng)
        images[i] = rendered.image
        rows += [
            (i, MARKERS.index(name), (x0 + x1) / 2, (y0 + y1) / 2)
            for name, (x0, y0, x1, y1) in rendered.boxes
            if name in MARKERS
        ]
    return Drawn(images, [""] * count, np.full((count, 3), NONE, np.int16), np.array(rows, np.float32).reshape(-1, 4))


def heatmaps(count: int, markers: np.ndarray, cells: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Targets for marker rows (picture, marker, x, y): heat [n, markers, g, g] with a soft bump around each centre
    (one only in the centre's own cell), offsets [n, 2, g, g], and where these count, bool [n, g, g]."""
    heat = torch.zeros(count, len(MARKERS), cells, cells)
    offset, counts = torch.zeros(count, 2, cells, cells), torch.zeros(count, cells, cells, dtype=torch.bool)
    grid = torch.arange(cells)
    for picture, marker, x, y in markers.tolist():
        i, column, row = int(picture), min(int(x * cells), cells - 1), min(int(y * cells), cells - 1)
        bump = torch.exp(-((grid[:, None] - row) ** 2 + (grid[None] - column) ** 2) / (2 * 0.6**2))
        heat[i, int(marker)] = torch.maximum(heat[i, int(marker)], bump)
        offset[i, :, row, column] = torch.tensor([x * cells - column, y * cells - row])
        counts[i, row, column] = True
    return heat, offset, counts


def _heat_loss(logits: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
    """Focal loss of CenterNet (Zhou et al. 2019), a centre: cells next to a centre are punished less."""
    p = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
    centre = heat == 1
    right = -((1 - p) ** 2) * p.log() * centre
    wrong = -((1 - heat) ** 4) * p**2 * (1 - p).log() * ~centre
    return (right.sum() + wrong.sum()) / centre.sum().clamp(min=1)


def _train_detector(recipe: Recipe, data: Drawn, folder: Path, tokenizer: Path, work: Path) -> None:
    """Half of each batch wears markers; the other half is the world at large, with whatever it shows."""
    torch.manual_seed(recipe.seed + 14)
    stage = recipe.detector
    marked = marked_pictures(
        min(MARKED_PER_STEP * stage.steps, 4_000), recipe.seed + DETECTOR_SEED, frozenset(recipe.without)
    )
    network = HeatmapNet(len(MARKERS)).to(memory_format=torch.channels_last)

    def loss(rng: np.random.Generator, step: int) -> torch.Tensor:
        pictures, markers, start = [], [], 0
        for source, count in ((marked, stage.batch // 2), (data, stage.batch - stage.batch // 2)):
            picked = rng.choice(len(source), min(count, len(source)), replace=False)
            pictures.append(to_tensor(source.images[np.sort(picked)]))
            rows = source.markers[np.isin(source.markers[:, 0], picked)].copy()
            rows[:, 0] = start + np.searchsorted(np.sort(picked), rows[:, 0])
            markers.append(rows)
            start += len(picked)
        x = torch.cat(pictures)
        heat, offset, counts = heatmaps(len(x), np.concatenate(markers))
        # Only damage that leaves every marker visible and where it was.
        x = damage(x, rng, only=("light", "blocks", "noise"))
        with autocast():
            found, moved = network(x)
        near = (moved.float() - offset).abs().sum(1)[counts]
        return _heat_loss(found.float(), heat) + near.sum() / max(len(near), 1)

    fit("detector", network, loss, stage, work, recipe.seed + 14)
    save_judge(folder, network, f"{WORLD.name}/markers", markers=MARKERS, threshold=THRESHOLD)


def judge_quality(recipe: Recipe, held_out: Drawn, folder: Path) -> dict:
    """Held-out accuracy by head on whole and damaged pictures, agreement, retrieval, marker precision and recall."""
    first, second = Classifier(folder / Classifier.name), SecondClassifier(folder / SecondClassifier.name)
    images = np.array(held_out.images)
    harmed = damage(to_tensor(images), np.random.default_rng(recipe.seed + 15))
    harmed = ((harmed + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    wanted = targets(held_out.labels)
    result: dict = {"n": len(held_out)}
    for name, pictures in (("rendered", images), ("damaged", harmed)):
        one, two = first.logits(pictures), second.logits(pictures)["icon"]
        result[name] = {
            **{head: _accuracy(one[head], wanted[head]) for head in LABELS},
            "second_icon": _accuracy(two, wanted["icon"]),
            "agreement_icon": _accuracy(two, one["icon"].argmax(1)),
        }
    icon, target = first.logits(images)["icon"].argmax(1), wanted["icon"]
    result["rendered"]["icon_by_class"] = {
        label: float((icon[target == i] == i).float().mean())
        for i, label in enumerate(LABELS["icon"])
        if (target == i).any()
    }
    result["clip"] = clip_quality(TinyClip(folder / TinyClip.name), held_out)
    result["markers"] = detector_quality(MarkerDetector(folder / MarkerDetector.name), recipe, held_out)
    return result


def _accuracy(logits: torch.Tensor, target: torch.Tensor) -> float:
    asked = target != SKIP
    return float((logits.argmax(1) == target)[asked].float().mean())


def clip_quality(clip: TinyClip, held_out: Drawn, group: int = 100) -> dict:
    """Share of pictures whose own caption (or an equal one) is the nearest among `group`; mean matching cosine."""
    pictures, captions = clip.image_features(held_out.images), clip.text_features(held_out.captions)
    right = []
    for start in range(0, len(held_out), group):
        nearest = (pictures[start : start + group] @ captions[start : start + group].T).argmax(1) + start
        right += [held_out.captions[start + i] == held_out.captions[int(j)] for i, j in enumerate(nearest)]
    cosine = (pictures * captions).sum(1)
    wrong = (pictures * captions.roll(1, 0)).sum(1)
    return {
        "nearest_caption": float(np.mean(right)),
        "of": min(group, len(held_out)),
        "cosine_x100": 100 * float(cosine.mean()),
        "cosine_x100_of_another_caption": 100 * float(wrong.mean()),
    }


def detector_quality(detector: MarkerDetector, recipe: Recipe, held_out: Drawn) -> dict:
    """Precision and recall of markers (by name and centre) on unseen marked figures and on the held-out pictures."""
    marked = marked_pictures(max(len(held_out) // 10, 8), recipe.seed + DETECTOR_SEED + 1, frozenset(recipe.without))
    hits = found_count = 0
    for source in (marked, held_out):
        left = {(int(i), MARKERS[int(m)], j): (x, y) for j, (i, m, x, y) in enumerate(source.markers.tolist())}
        for i, found in enumerate(detector.predict(source.images)):
            found_count += len(found)
            mine = [key for key in left if key[0] == i]
            for one in found:
                for key in mine:
                    x, y = left.get(key, (9.0, 9.0))
                    if key[1] == one.marker and max(abs(x - one.x), abs(y - one.y)) < NEAR:
                        del left[key]
                        hits += 1
                        break
    total = len(marked.markers) + len(held_out.markers)
    return {"precision": hits / max(found_count, 1), "recall": hits / total, "markers": total, "threshold": THRESHOLD}
