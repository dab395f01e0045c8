"""Diffusers pipelines from files: safetensors only, the parts that are never used left out."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .names import unknown
from .weights import DTYPES as DTYPE_NAMES
from .weights import ModelNotFound, model_index

DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}


def read_pipeline(source: Path, dtype: torch.dtype) -> Any:
    """The pipeline in a checked diffusers folder or .safetensors file (see `weights.locate`), on the CPU in `dtype`."""
    import diffusers

    if source.is_file():
        return _read_single_file(source, dtype)
    kind = model_index(source)["_class_name"]
    unused: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
    if kind == "StableDiffusionPipeline":
        unused |= {"safety_checker": None, "requires_safety_checker": False}
    with quiet_libraries():
        return getattr(diffusers, kind).from_pretrained(
            source, dtype=dtype, use_safetensors=True, local_files_only=True, **unused
        )


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """ "float16" or torch.float16 -> torch.float16."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return DTYPES[name]


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the libraries' own bars for files that take a moment; ours are for what takes minutes."""
    import diffusers.utils.logging as of_diffusers
    import transformers.utils.logging as of_transformers

    shown = [library for library in (of_diffusers, of_transformers) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def tensor_fingerprint(pipe: Any, dtype: torch.dtype) -> str:
    """Identity of a pipeline that came from no file: names, shapes and bytes of its weights, prediction type, dtype."""
    digest = hashlib.sha256(f"{pipe.scheduler.config.get('prediction_type')} {dtype}".encode())
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        module = getattr(pipe, part, None)
        for name, tensor in sorted(module.state_dict().items()) if module is not None else ():
            digest.update(f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_single_file(path: Path, dtype: torch.dtype) -> Any:
    """Open an original-layout checkpoint; diffusers recognises SD 1.x / 2.x and SDXL by their keys."""
    import diffusers
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        is_xl = any(key.startswith("conditioner.embedders.1.") for key in file.keys())
    kind = "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"
    unused = {} if is_xl else {"safety_checker": None, "requires_safety_checker": False, "feature_extractor": None}
    try:
        return getattr(diffusers, kind).from_single_file(str(path), dtype=dtype, **unused)
    except OSError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelNotFound(
            f"{path}: a single file needs the model's configs and tokenizer from the Hub's cache ({reason}); "
            "a diffusers folder needs nothing else"
        ) from error
