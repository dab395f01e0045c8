"""What must lie in a diffusers folder, or in a single file, for us to call it a model. Nothing here imports torch.

Only safetensors count as weights; a folder that holds pickles instead is refused.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

from .folder import INDEX
from .names import unknown

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
WEIGHT_NAMES = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
SETTINGS = ("scheduler", "tokenizer", "tokenizer_2")
TOKENIZERS = ("transformers.CLIPTokenizer", "transformers.CLIPTokenizerFast")
# What the parts are in SD 1.x, SD 2.x and SDXL. Other classes, such as transformers' AutoModel, may look into the
# folder for what to load. Any scheduler does: it holds numbers only, and a run has one of its own.
CLASSES = {
    "unet": ("diffusers.UNet2DConditionModel",),
    "vae": ("diffusers.AutoencoderKL",),
    "text_encoder": ("transformers.CLIPTextModel",),
    "text_encoder_2": ("transformers.CLIPTextModelWithProjection",),
    "scheduler": ("diffusers.*Scheduler",),
    "tokenizer": TOKENIZERS,
    "tokenizer_2": TOKENIZERS,
}
# Weights that some folders hold in float16 besides or instead of the plain files, as `*.fp16.safetensors`.
HALF = "fp16"
PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
# Prefix of the text encoder's tensors in a single file of the original layout: the pipeline's class, and the Hub id
# whose configs and tokenizer belong to it. Those of SD 2.x cannot be told from the tensors: its versions differ in what
# the UNet predicts.
ORIGINAL_LAYOUTS = {
    "conditioner.embedders.1.": ("StableDiffusionXLPipeline", "stabilityai/stable-diffusion-xl-base-1.0"),
    "cond_stage_model.transformer.": ("StableDiffusionPipeline", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "cond_stage_model.model.": ("StableDiffusionPipeline", None),
}
ORIGINAL_PARTS = {"UNet": "model.diffusion_model.", "VAE": "first_stage_model."}


class ModelNotFound(ValueError):
    """No usable model lies at the given place; the message says how to get one."""


class NotDownloaded(ModelNotFound):
    """A model of the Hub that is not on this machine, where nothing may be downloaded."""


class UnsafeWeightsError(ValueError):
    """The weights exist only as pickles, which are never loaded."""


def model_index(folder: Path) -> dict:
    """The folder's model_index.json, checked to name a pipeline, and parts, of classes that we know."""
    path = folder / INDEX
    if not path.is_file():
        raise ModelNotFound(f"{folder}: not a diffusers model, it has no {INDEX}")
    try:
        index = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelNotFound(f"{path}: not a JSON object ({error})") from error
    if index.get("_class_name") not in PIPELINES:
        raise unknown(f"pipeline class in {path}:", index.get("_class_name"), PIPELINES)
    for name, known in CLASSES.items():
        # A folder may bring code along and name it here; a library that trusts it would run it.
        if _has(index, name):
            named = ".".join(map(str, index[name]))
            if not any(fnmatchcase(named, pattern) for pattern in known):
                raise ModelNotFound(f"{path}: {name} is {named}; what is loaded is {' or '.join(known)}")
    return index


def default_size(folder: Path) -> int:
    """Width and height in pixels of the pictures that the model in `folder` was trained for."""
    sample = json.loads((folder / "unet" / "config.json").read_text())["sample_size"]
    levels = json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"]
    return sample * 2 ** (len(levels) - 1)


def config_files(folder: Path) -> dict[str, Path]:
    """Configs, scheduler and tokenizers of a diffusers folder, by their names inside the folder.

    Raises:
        ModelNotFound: one is missing.
        ValueError: the folder holds another class of pipeline.
    """
    index = model_index(folder)
    files = {INDEX: folder / INDEX}
    files |= {f"{name}/config.json": folder / name / "config.json" for name in WEIGHT_NAMES if _has(index, name)}
    missing = [name for name, file in files.items() if not file.is_file()]
    for name in SETTINGS:
        found = [file for file in (folder / name).glob("*") if file.suffix in {".json", ".txt"}]
        files |= {f"{name}/{file.name}": file for file in found}
        if _has(index, name) and not found:
            missing.append(f"{name}/")
    if missing:
        raise ModelNotFound(f"{folder}: incomplete model, {', '.join(sorted(missing))} missing")
    return dict(sorted(files.items()))


def component_files(folder: Path) -> dict[str, Path]:
    """Every file of a diffusers folder that decides what the model computes, by its name inside the folder.

    Raises:
        ModelNotFound: model_index.json, a config or a component's weights are missing.
        UnsafeWeightsError: a component's weights are there only as pickles.
        ValueError: the folder holds another class of pipeline.
    """
    files, variant = config_files(folder), weight_variant(folder)
    for name, stem in _components(folder).items():
        weights = (variant and _weight_files(folder / name, stem, variant)) or _weight_files(folder / name, stem)
        if not weights:
            raise _no_weights(folder / name, stem)
        files |= {f"{name}/{file.name}": file for file in weights}
    missing = sorted(name for name, file in files.items() if not file.is_file())
    if missing:
        raise ModelNotFound(f"{folder}: incomplete model, {', '.join(missing)} missing")
    return dict(sorted(files.items()))


def weight_variant(folder: Path) -> str | None:
    """`fp16` where a component has its weights only as `*.fp16.safetensors`, else None.

    As in diffusers, all components then use such files where they have them.
    """
    for name, stem in _components(folder).items():
        if not _weight_files(folder / name, stem) and _weight_files(folder / name, stem, HALF):
            return HALF
    return None


def part_variants(folder: Path) -> dict[str, str | None]:
    """Of every part with weights the variant of its files that is loaded: `fp16`, or None for the plain ones."""
    variant = weight_variant(folder)
    return {
        name: variant if variant and _weight_files(folder / name, stem, variant) else None
        for name, stem in _components(folder).items()
    }


def original_layout(file: Path) -> tuple[str, str | None]:
    """The pipeline's class in a single .safetensors file, and the Hub id whose configs belong to it, where one does.

    Raises:
        ModelNotFound: the file is damaged, or it is not a whole model in the layout of the original releases.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as opened:
            names = list(opened.keys())
    except SafetensorError as error:
        raise ModelNotFound(f"{file}: damaged or no safetensors file ({error})") from error

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    lacking = [part for part, prefix in ORIGINAL_PARTS.items() if not has(prefix)]
    layout = next((layout for prefix, layout in ORIGINAL_LAYOUTS.items() if has(prefix)), None)
    if layout is None:
        lacking.append("text encoder of SD 1.x, SD 2.x or SDXL")
    if lacking or layout is None:
        raise ModelNotFound(
            f"{file}: not a whole model in the original layout, it has no {', no '.join(lacking)}; a model is a "
            "diffusers folder or one file with all of its weights"
        )
    return layout


def _has(index: dict, name: str) -> bool:
    """Whether a pipeline has the component `name`."""
    return index.get(name, [None, None])[0] is not None


def _components(folder: Path) -> dict[str, str]:
    """The parts with weights that the folder's pipeline has, with the stem of their weight files' names."""
    index = model_index(folder)
    return {name: stem for name, stem in WEIGHT_NAMES.items() if _has(index, name)}


def _weight_files(folder: Path, stem: str, variant: str | None = None) -> list[Path]:
    """The safetensors files of one component, with their index where there are several; empty where there are none."""
    mark = f".{variant}" if variant else ""
    single, sharded = folder / f"{stem}{mark}.safetensors", folder / f"{stem}.safetensors.index{mark}.json"
    if single.is_file():
        return [single]
    if not sharded.is_file():
        return []
    shards = sorted(set(json.loads(sharded.read_text())["weight_map"].values()))
    for shard in shards:
        if Path(shard).name != shard:
            raise ModelNotFound(f"{sharded}: {shard!r} is no file of its folder")
    return [sharded, *(folder / shard for shard in shards)]


def _no_weights(folder: Path, stem: str) -> ValueError:
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
    if pickles:
        return UnsafeWeightsError(
            f"{folder}: only pickled weights ({pickles[0]}), which are never loaded; save the model as safetensors"
        )
    return ModelNotFound(f"{folder}: no {stem}.safetensors")
