"""Pictures for training methods: drawn by the model itself and kept in the store, or read from a folder; as latents.

Drawn pictures are stored sixteen at a time, so a run that was stopped goes on where it stopped, and their seeds follow
from the run's seed, the name and the number alone: more pictures begin with the same ones. Explicit pictures are not
stored: a run that needs them again, such as one that was stopped in the training, draws the same ones again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .method import Stage
from .model import DiffusionModel
from .progress import Progress
from .prompts import class_prompt
from .sampler import Sampler
from .screen import is_sexual, require_unscreened
from .trainer import Draw

# Raised by hand when the same key would give other pictures.
VERSION = 1
CHUNK = 16
ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


@dataclass(frozen=True)
class Pictures:
    """Pictures with their prompts, as the VAE's posterior.

    Attributes:
        prompts: one a picture.
        mean, std: [n, channels, h, w], float32 on the CPU.
        key: hex sha256 over prompts and pixels, for keys of what is computed from them.
    """

    prompts: tuple[str, ...]
    mean: Tensor
    std: Tensor
    key: str

    def __len__(self) -> int:
        return len(self.prompts)

    @staticmethod
    def cat(parts: Sequence[Pictures]) -> Pictures:
        """The pictures of all parts, one after the other."""
        return Pictures(
            tuple(prompt for part in parts for prompt in part.prompts),
            torch.cat([part.mean for part in parts]),
            torch.cat([part.std for part in parts]),
            hashlib.sha256(" ".join(part.key for part in parts).encode()).hexdigest(),
        )

    def sample(self, items: Sequence[int], draw: Draw, device: torch.device) -> Tensor:
        """Fresh posterior samples of some pictures: z0 [items, channels, h, w] on `device`."""
        mean, std = self.mean[items].to(device), self.std[items].to(device)
        return mean + std * draw.noise(mean)


def filled(template: str, name: str) -> str:
    """A prompt from a template with {name} and, if it likes, {a}: `an image of {a} {name}`."""
    return class_prompt(name, "training", {"training": template})


def check_template(what: str, template: object) -> str:
    """`template`, or a ValueError in one line where `filled` could not use it."""
    try:
        if isinstance(template, str) and "church" in filled(template, "church"):
            return template
    except (KeyError, IndexError, ValueError):
        pass
    raise ValueError(
        f"{what} is a prompt with {{name}} and {{a}} in it, such as 'an image of {{a}} {{name}}', not {template!r}"
    )


def drawn_pictures(
    model: DiffusionModel,
    prompts: Sequence[str],
    count: int,
    *,
    name: str,
    sampler: Sampler,
    size: tuple[int, int],
    seed: int,
    stage: Stage,
    explicit: bool,
) -> Pictures:
    """`count` pictures of the model as it is, from the prompts in turn.

    Args:
        name: of what they show; it is part of the seeds.
        size: (width, height) in pixels.
        explicit: a concept to forget is explicit content. The prompt screen is then strict and nothing is stored; nor
            is it where a prompt has a sexual word.

    Raises:
        ScreenedPromptError: a prompt is refused by the prompt screen.
    """
    _screen(prompts, explicit, name)
    kept = not (explicit or any(map(is_sexual, prompts)))
    rows = [(prompts[i % len(prompts)], _seed(seed, name, i)) for i in range(count)]

    def chunks() -> Iterator[Tensor]:
        with Progress(f"pictures of {name}", count, "picture") as progress:
            for start in range(0, count, CHUNK):
                part = rows[start : start + CHUNK]

                def make(part: list[tuple[str, int]] = part) -> dict[str, Tensor]:
                    text = model.encode([prompt for prompt, _ in part])
                    noise = model.latents([seed for _, seed in part], *size)
                    return {"pictures": model.decode(model.denoise(text, noise, sampler, sampler.guidance, size=size))}

                key = {"version": VERSION, "rows": part, "sampler": asdict(sampler), "size": list(size)}
                yield (stage("training.pictures", key, make) if kept else make())["pictures"]
                progress.advance(len(part))

    return _encoded(model, chunks(), tuple(prompt for prompt, _ in rows))


def folder_pictures(
    model: DiffusionModel,
    folder: str,
    name: str,
    prompts: Sequence[str],
    *,
    size: tuple[int, int],
    what: str,
    explicit: bool,
) -> Pictures:
    """The pictures of `folder`/`name`, by file name, with the prompts in turn.

    The shorter side is resized and the middle is cut out. The folder's name may be in any case and have `_` for spaces.

    Args:
        size: (width, height) in pixels.
        what: the setting that named the folder; messages begin with it.
        explicit: as in `drawn_pictures`.

    Raises:
        ScreenedPromptError: a prompt is refused by the prompt screen.
        ValueError: the folder is missing or empty, or a file in it is no picture.
    """
    _screen(prompts, explicit, name)
    place = _subfolder(Path(folder).expanduser(), name, what)
    files = sorted(path for path in place.iterdir() if path.suffix.lower() in ENDINGS)
    if not files:
        raise ValueError(f"{what}={folder}: {place.name} holds no pictures ({' '.join(ENDINGS)})")
    groups = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    chunks = (torch.from_numpy(np.stack([_read(path, size, what) for path in group])) for group in groups)
    return _encoded(model, chunks, tuple(prompts[i % len(prompts)] for i in range(len(files))))


def check_folder(what: str, folder: object) -> None:
    """Raise ValueError unless `folder` is null or names a folder that is there."""
    if folder is not None and (not isinstance(folder, str) or not Path(folder).expanduser().is_dir()):
        raise ValueError(f"{what}={folder!r}: no such folder; name one with a folder of pictures for every name in it")


def _screen(prompts: Sequence[str], explicit: bool, name: str) -> None:
    for prompt in prompts:
        require_unscreened(prompt, explicit, f"a training prompt of {name!r}")


def _encoded(model: DiffusionModel, chunks: Iterable[Tensor], prompts: tuple[str, ...]) -> Pictures:
    """Pictures that arrive as uint8 [<= CHUNK, height, width, 3]; only their latents stay in memory."""
    digest = hashlib.sha256(repr(prompts).encode())
    means, stds = [], []
    for chunk in chunks:
        digest.update(repr(tuple(chunk.shape)).encode() + chunk.numpy().tobytes())
        mean, std = model.encode_images(chunk)
        means.append(mean.cpu())
        stds.append(std.cpu())
    return Pictures(prompts, torch.cat(means), torch.cat(stds), digest.hexdigest())


def _subfolder(root: Path, name: str, what: str) -> Path:
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    for path in folders:
        if path.name.replace("_", " ").casefold() == name.casefold():
            return path
    has = ", ".join(path.name for path in folders[:12]) or "no folders"
    raise ValueError(f"{what}={root}: it has no folder {name!r} (it has: {has})")


def _read(path: Path, size: tuple[int, int], what: str) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(
                ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), size, Image.Resampling.BICUBIC)
            )
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{what}: {path} cannot be read as a picture ({error})") from error


def _seed(seed: int, name: str, index: int) -> int:
    """63 bits of a sha256: pictures of no two names and numbers, and none that are scored, are likely to meet."""
    digest = hashlib.sha256(f"training\n{seed}\n{name.casefold()}\n{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
