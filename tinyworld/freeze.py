"""The world's name and hash: `python -m tinyworld.freeze TRAINED TARGET name=NAME`.

Copies a trained pipeline and its judges into one folder, UNet and VAE in 16 bits, files of at most 15 MB, and writes
`world.json`: the name, the sha256 of every file and one hash over all of them, and what the recipe left out. The hash
is stamped on every record that was measured on the world. Quality and ablation profile are measured afterwards, on
these very weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from harness.weights import file_sha256

WORLD = Path(__file__).parent / "tiny-v1"
CARD = "world.json"
REPORT = "report.json"
RECIPE = "recipe.json"
SHARD = "14MB"


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file that decides what the world draws or how it judges, by relative name."""
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (CARD, REPORT, "README.md")
    }


def world_hash(hashes: dict[str, str]) -> str:
    """One hash over all files: sha256 of the sorted lines `sha256  name`."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def card(folder: Path = WORLD) -> dict:
    """The world's `world.json`.

    Raises:
        ValueError: The folder holds no frozen world.
    """
    path = folder / CARD
    if not path.exists():
        raise ValueError(f"{folder} holds no frozen world: {CARD} is missing")
    return json.loads(path.read_text())


def stamp(folder: Path = WORLD) -> str:
    """What records and tables carry: the world's name and the start of its hash, `tiny-v1@0123456789ab`.

    Raises:
        ValueError: The folder is not as it was frozen.
    """
    verify(folder)
    found = card(folder)
    return f"{found['name']}@{found['hash'][:12]}"


def verify(folder: Path = WORLD) -> None:
    """Raise ValueError with the first file that is not the one that was frozen; a process reads a file only once."""
    said, found = card(folder), file_hashes(folder)
    frozen = said["files"]
    wrong = [name for name in sorted(frozen.keys() | found.keys()) if frozen.get(name) != found.get(name)]
    if wrong or said["hash"] != world_hash(found):
        raise ValueError(
            f"{folder / (wrong or [CARD])[0]} is not the file that was frozen as {said['name']}; put it back, or "
            "freeze a world of your own under another name"
        )


def freeze(trained: Path, target: Path, name: str) -> dict:
    """Write the frozen folder; returns its card."""
    import torch
    from diffusers import StableDiffusionPipeline

    from harness.folder import tidy

    pipe = StableDiffusionPipeline.from_pretrained(trained / "pipeline", safety_checker=None)
    # The text encoder stays as it is: transformers loads a model in the type it was stored in, diffusers in float32.
    for part in (pipe.unet, pipe.vae):
        part.to(torch.float16)
    partial = target.with_name(target.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    pipe.save_pretrained(partial, max_shard_size=SHARD)
    if (trained / "judges").exists():
        shutil.copytree(trained / "judges", partial / "judges")
    if (target / "README.md").exists():
        shutil.copy(target / "README.md", partial)
    tidy(partial)
    hashes = file_hashes(partial)
    result = {"name": name, "hash": world_hash(hashes), "files": hashes}
    if (trained / RECIPE).exists() and (without := json.loads((trained / RECIPE).read_text())["without"]):
        result["without"] = without
    (partial / CARD).write_text(json.dumps(result, indent=1) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    return result


if __name__ == "__main__":
    if len(sys.argv) != 4 or not sys.argv[3].startswith("name="):
        raise SystemExit("give the world a name of its own: python -m tinyworld.freeze TRAINED TARGET name=NAME")
    print(json.dumps(freeze(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].removeprefix("name=")), indent=1))
