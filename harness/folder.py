"""A diffusers folder that can be handed on: no path of this machine in it, ordinary modes, its safety checker."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

INDEX = "model_index.json"
EXPORTED = "edit.json"  # beside it, in the folder of an exported model: which edit it has
CHECKER = "StableDiffusionSafetyChecker"


def tidy(folder: Path) -> None:
    """Take `_name_or_path` out of the settings of a saved pipeline and let the modes of all files follow the umask.

    diffusers and transformers write into `_name_or_path` where the parts were loaded from, and safetensors files with
    the mode 0600.
    """
    for path in sorted(folder.rglob("*.json")):
        if path.name in (INDEX, "config.json"):
            found = json.loads(path.read_text(encoding="utf-8"))
            kept = _without_origin(found)
            if kept != found:
                _write(path, kept)
    mask = os.umask(0o077)  # it can only be asked for by setting it
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def add_safety_checker(source: Path | None, folder: Path) -> None:
    """Copy the safety checker of the pipeline in `source`, which we never load, into the saved pipeline in `folder`.

    It is left out, with a warning, where it is not whole (the weights are pickles or were not downloaded) or of a
    class that the installed libraries lack: a folder that names it could not be loaded.
    """
    if source is None or not source.is_dir():
        return
    index = json.loads((source / INDEX).read_text(encoding="utf-8"))
    checker, extractor = (_class_of(index, part) for part in ("safety_checker", "feature_extractor"))
    if checker is None:
        return
    files = [source / "safety_checker" / name for name in ("config.json", "model.safetensors")]
    files += sorted((source / "feature_extractor").glob("*.json"))
    fault = _fault(checker, extractor, files)
    if fault:
        log.warning("the export has no safety checker, which the source has: %s", fault)
        return
    for file in files:
        target = folder / file.parent.name / file.name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    written = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    named = {part: index[part] for part in ("safety_checker", "feature_extractor")}
    required = index.get("requires_safety_checker", True)
    _write(folder / INDEX, {**written, **named, "requires_safety_checker": required})


def _fault(checker: str, extractor: str | None, files: list[Path]) -> str:
    """Why a checker cannot go along; empty where it can."""
    import transformers

    if checker != CHECKER:
        return f"its class {checker} is not {CHECKER}"
    if extractor is None or not hasattr(transformers, extractor):
        return f"its feature extractor's class {extractor} is not in the installed transformers"
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        return f"{missing.parent.name}/{missing.name} is missing"
    if not any(file.parent.name == "feature_extractor" for file in files):
        return "feature_extractor/ has no settings"
    return ""


def _class_of(index: dict[str, Any], part: str) -> str | None:
    return (index.get(part) or [None, None])[1]


def _without_origin(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_origin(item) for name, item in value.items() if name != "_name_or_path"}
    return [_without_origin(item) for item in value] if isinstance(value, list) else value


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
