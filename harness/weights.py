"""Where a model's files lie and what identifies them.

Nothing here imports torch: a run whose edits and pictures are all stored learns the model's fingerprint from its files
and loads no weights. Only safetensors count as weights; a folder that holds pickles instead is refused.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path

from .names import unknown

REPOSITORY = Path(__file__).resolve().parents[1]
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
WEIGHT_NAMES = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
SETTINGS = ("scheduler", "tokenizer", "tokenizer_2")
DTYPES = ("float32", "float16", "bfloat16")
PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
# Written by whichever library version saved the folder; they do not change what the model computes.
NEUTRAL_KEYS = {"_name_or_path", "_diffusers_version", "transformers_version", "torch_dtype", "dtype"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class ModelNotFound(ValueError):
    """No usable model lies at the given place; the message says how to get one."""


class UnsafeWeightsError(ValueError):
    """The weights exist only as pickles, which are never loaded."""


def locate(path: str | Path, revision: str | None = None, download: bool = True) -> Path:
    """The diffusers folder or .safetensors file that `path` names, checked to be complete.

    Args:
        path: a folder or file, relative to the working directory or else to the repository, or a Hub id
            (`owner/name`). A path that begins with `.`, `/` or `~` is never taken for a Hub id.
        revision: commit of the Hub repository.
        download: ask the Hub for what is not in its local cache.

    Raises:
        ModelNotFound: nothing usable is there.
        UnsafeWeightsError: the weights are pickles.
    """
    return local(path) or _hub_snapshot(str(path), revision, download)


def local(path: str | Path) -> Path | None:
    """The folder or file that `path` names, as `locate` would find it; None where it is a Hub id instead."""
    text = str(path)
    for base in (Path.cwd(), REPOSITORY):
        found = base / Path(text).expanduser()
        if found.is_dir():
            component_files(found)
            return found
        if found.is_file():
            if found.suffix in PICKLES:
                raise UnsafeWeightsError(f"{text}: pickled weights are never loaded; convert it to .safetensors first")
            if found.suffix != ".safetensors":
                raise ModelNotFound(f"{text}: a model is a diffusers folder or a single .safetensors file")
            return found
    if HUB_ID.fullmatch(text) and text[0] not in "./~":
        return None
    raise ModelNotFound(f"{text}: no such folder or file, neither in {Path.cwd()} nor in the repository")


def component_files(folder: Path) -> dict[str, Path]:
    """Every file of a diffusers folder that decides what the model computes, by its name inside the folder.

    Raises:
        ModelNotFound: model_index.json or a component's weights are missing.
        UnsafeWeightsError: a component's weights are there only as pickles.
        ValueError: the folder holds another class of pipeline.
    """
    files = {"model_index.json": folder / "model_index.json"}
    index = model_index(folder)
    for name, stem in WEIGHT_NAMES.items():
        if index.get(name, [None, None])[0] is None:
            continue
        files[f"{name}/config.json"] = folder / name / "config.json"
        files.update({f"{name}/{file.name}": file for file in _weight_files(folder / name, stem)})
    for name in SETTINGS:
        if (folder / name).is_dir():
            found = [file for file in (folder / name).iterdir() if file.suffix in {".json", ".txt"}]
            files.update({f"{name}/{file.name}": file for file in found})
    missing = sorted(name for name, file in files.items() if not file.is_file())
    if missing:
        raise ModelNotFound(f"{folder}: incomplete model, {', '.join(missing)} missing")
    return dict(sorted(files.items()))


def model_index(folder: Path) -> dict:
    """The folder's model_index.json, checked to name a pipeline of a class that we know."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelNotFound(f"{folder}: not a diffusers model, it has no model_index.json")
    index = json.loads(path.read_text())
    if index.get("_class_name") not in PIPELINES:
        raise unknown(f"pipeline class in {path}:", index.get("_class_name"), PIPELINES)
    return index


def default_size(folder: Path) -> int:
    """Width and height in pixels of the pictures that the model in `folder` was trained for."""
    sample = json.loads((folder / "unet" / "config.json").read_text())["sample_size"]
    levels = json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"]
    return sample * 2 ** (len(levels) - 1)


def fingerprint_of(path: str | Path, dtype: object, *, vae_dtype: object = None, revision: str | None = None) -> str:
    """Hex sha256 that identifies a model before any edit, computed from its files alone.

    It covers the sha256 of every weight and tokenizer file, the settings without the saving library's version, and the
    dtypes the weights are loaded in. A loaded `DiffusionModel` carries the same value.
    """
    source = locate(path, revision)
    if source.is_file():
        content: object = file_sha256(source)
    else:
        content = {name: _digest(file) for name, file in component_files(source).items()}
    parts = {"content": content, "dtype": dtype_name(dtype), "vae_dtype": dtype_name(vae_dtype)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def dtype_name(dtype: object) -> str | None:
    """`torch.float16` or "float16" -> "float16"."""
    return None if dtype is None else str(dtype).removeprefix("torch.")


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, computed once a process; the Hub's cache names large files by it already."""
    real = path.resolve()
    if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    state = real.stat()
    return _sha256(real, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(file: Path) -> str:
    if file.suffix != ".json" or file.parent.name in {"tokenizer", "tokenizer_2"}:
        return file_sha256(file)
    settings = {key: value for key, value in json.loads(file.read_text()).items() if key not in NEUTRAL_KEYS}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _weight_files(folder: Path, stem: str) -> list[Path]:
    single, sharded = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        return [single]
    if sharded.is_file():
        shards = sorted(set(json.loads(sharded.read_text())["weight_map"].values()))
        return [sharded, *(folder / shard for shard in shards)]
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
    if pickles:
        raise UnsafeWeightsError(
            f"{folder}: only pickled weights ({pickles[0]}), which are never loaded; save the model as safetensors"
        )
    raise ModelNotFound(f"{folder}: no {single.name}")


def _hub_snapshot(repo: str, revision: str | None, download: bool) -> Path:
    """The Hub repository's folder in the local cache; downloaded when it is not there and the Hub answers."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        component_files(folder)
        return folder
    except (OSError, ModelNotFound, UnsafeWeightsError):
        pass  # Not in the cache, or only a part of it or the pickles: one try online.
    missing = f"{repo}: no such folder, not in the Hub's local cache (revision {revision or 'main'}), and"
    at = f" --revision {revision}" if revision else ""
    advice = (
        f"run `hf download {repo}{at}` where the Hub can be reached, or give a diffusers folder: model=folder "
        "model.path=DIR"
    )
    if not download:
        raise ModelNotFound(f"{missing} a dry run downloads nothing; {advice}")
    from diffusers import DiffusionPipeline

    unused = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    try:
        folder = Path(DiffusionPipeline.download(repo, revision=revision, use_safetensors=True, **unused))
    except Exception as error:  # The Hub's client raises a dozen unrelated classes; all mean that it is not to be had.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelNotFound(f"{missing} not to be downloaded ({reason}); {advice}") from error
    component_files(folder)
    return folder
