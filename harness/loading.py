"""Diffusers pipelines from files: safetensors only, the parts that are never used left out."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from .model_files import ModelNotFound, model_index, part_variants, weight_variant
from .names import unknown
from .weights import DTYPES as DTYPE_NAMES
from .weights import configs_of

log = logging.getLogger(__name__)

DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}


def read_pipeline(source: Path, dtype: torch.dtype) -> Any:
    """The pipeline in a checked diffusers folder or .safetensors file (see `weights.locate`), on the CPU in `dtype`.

    Nothing is asked of the Hub. The safety checker is left out: it would black out pictures that are to be scored.
    """
    import diffusers

    configs = configs_of(source)
    kind = model_index(configs)["_class_name"]
    unused: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
    if kind == "StableDiffusionPipeline":
        unused |= {"safety_checker": None, "requires_safety_checker": False}
    pipeline = getattr(diffusers, kind)
    with quiet_libraries():
        if source.is_file():
            return pipeline.from_single_file(
                str(source), config=str(configs), local_files_only=True, dtype=dtype, **unused
            )
        variant = weight_variant(source)
        if variant is not None:
            log.info("%s: weights that are stored in %s only are converted to %s", source.name, variant, dtype)
        return pipeline.from_pretrained(source, dtype=dtype, local_files_only=True, **_parts(source, dtype), **unused)


def _parts(source: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The parts with weights. Where a file lacks tensors, the libraries would fill them up with noise and go on.

    Raises:
        ModelNotFound: a part's weights are damaged or do not fit its config.
    """
    index, parts = model_index(source), {}
    for name, variant in part_variants(source).items():
        library, class_name = index[name]
        kind = getattr(importlib.import_module(library), class_name)
        try:
            parts[name], found = kind.from_pretrained(
                source / name, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelNotFound(
                f"{source / name}: its weights are damaged or do not fit its config ({reason})"
            ) from error
        lacking = sorted(found["missing_keys"])
        if lacking:
            raise ModelNotFound(f"{source / name}: its weights lack {len(lacking)} tensors, such as {lacking[0]}")
    return parts


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
