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

from .folder import INDEX
from .model_files import (
    PICKLES,
    ModelNotFound,
    NotDownloaded,
    UnsafeWeightsError,
    component_files,
    config_files,
    model_index,
    original_layout,
)
from .releases import RELEASES, SINGLE_FILE

REPOSITORY = Path(__file__).resolve().parents[1]
DTYPES = ("float32", "float16", "bfloat16")
# Written by whichever library version saved the folder; they do not change what the model computes.
NEUTRAL_KEYS = {"_name_or_path", "_diffusers_version", "transformers_version", "torch_dtype", "dtype"}
# What the Hub's own command downloads of a repository besides weights.
INCLUDE = "--include '*.json' --include '*.txt'"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def locate(path: str | Path, revision: str | None = None, download: bool = True) -> Path:
    """The diffusers folder or .safetensors file that `path` names, checked to be complete.

    Args:
        path: a folder or file, relative to the working directory or else to the repository, or a Hub id
            (`owner/name`). A path that begins with `.`, `/` or `~` is never taken for a Hub id.
        revision: commit of the Hub repository.
        download: ask the Hub for what is not in its local cache.

    Raises:
        ModelNotFound: nothing usable is there, or what the Hub's cache holds under a published id and revision is not
            what was published.
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


def configs_of(source: Path) -> Path:
    """The folder with a model's configs and tokenizers: the diffusers folder itself, or one that serves a single file.

    A single file holds weights only. What it lacks is read from a `model_index.json` and its folders beside the file,
    else from the local Hub cache of the release it is a file of; nothing is downloaded.

    Raises:
        ModelNotFound: there are none, or the file is not a whole model; the message says what would do.
    """
    if source.is_dir():
        return source
    kind, repo = original_layout(source)
    beside = source.parent
    if (beside / INDEX).is_file():
        named = model_index(beside)["_class_name"]
        if named != kind:
            raise ModelNotFound(f"{source}: it holds a {kind}, and the {INDEX} beside it names a {named}")
        config_files(beside)
        return beside
    advice = f"put {INDEX} and the folders of a diffusers model beside it (they may be without weights)"
    if repo is not None:
        pinned = RELEASES[repo].revision
        for revision in (pinned, None):
            folder = _cached(repo, revision)
            if folder is not None and _has_configs(folder):
                return folder
        advice = f"run `hf download {repo} --revision {pinned} {INCLUDE}`, or {advice}"
    raise ModelNotFound(f"{source}: a single file lacks the model's configs and tokenizer; {advice}")


def fingerprint_of(
    path: str | Path,
    dtype: object,
    *,
    vae_dtype: object = None,
    revision: str | None = None,
    configs: Path | None = None,
) -> str:
    """Hex sha256 that identifies a model before any edit, computed from its files alone.

    It covers the sha256 of every weight and tokenizer file, the settings without the saving library's version, and the
    dtypes the weights are loaded in. A loaded `DiffusionModel` carries the same value.

    Args:
        configs: of a single file, the folder with its configs (`configs_of`); they are part of the model.
    """
    source = locate(path, revision)
    if source.is_dir():
        content: object = {name: _digest(file) for name, file in component_files(source).items()}
    else:
        content = file_sha256(source)
        if configs is not None:
            content = {SINGLE_FILE: content} | {name: _digest(file) for name, file in config_files(configs).items()}
    parts = {"content": content, "dtype": dtype_name(dtype), "vae_dtype": dtype_name(vae_dtype)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def published(path: str | Path, source: Path) -> bool | None:
    """Whether a model's weights are those of a known release (`harness/releases.py`).

    Args:
        path: what the user named: a Hub id, a folder or a file.
        source: what `locate` found for it.

    Returns:
        True: every weight file is a release's. False: `path` is a release's Hub id, and a file is another (of another
        revision, say). None: it cannot be told.
    """
    digests = _weight_digests(source)
    if any(release.holds(digests) for release in RELEASES.values()):
        return True
    named = None if local(path) else RELEASES.get(str(path))
    return False if named is not None and named.wrong(digests) else None


def dtype_name(dtype: object) -> str | None:
    """`torch.float16` or "float16" -> "float16"."""
    return None if dtype is None else str(dtype).removeprefix("torch.")


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes, computed once a process: also of the Hub's, whose name says what it should be."""
    real = path.resolve()
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


def _weight_digests(source: Path) -> dict[str, str]:
    """Hex sha256 of the weight files, by name inside the folder; `SINGLE_FILE` for a single one."""
    if source.is_file():
        return {SINGLE_FILE: file_sha256(source)}
    files = component_files(source).items()
    return {name: file_sha256(file) for name, file in files if file.suffix == ".safetensors"}


def _has_configs(folder: Path) -> bool:
    try:
        config_files(folder)
    except ModelNotFound:
        return False
    return True


def _cached(repo: str, revision: str | None) -> Path | None:
    """The Hub repository's folder in the local cache, be it whole or not; None where there is none."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except OSError as error:
        # A snapshot that lacks files of the repository, such as its pickles, may still hold all that we read.
        partial = getattr(error, "snapshot_path", None)
        return None if partial is None else Path(partial)


def _hub_snapshot(repo: str, revision: str | None, download: bool) -> Path:
    """The Hub repository's folder in the local cache; downloaded when it is not there and the Hub answers."""
    folder = _cached(repo, revision)
    try:
        usable = folder is not None and bool(component_files(folder))
    except (ModelNotFound, UnsafeWeightsError):
        usable = False  # only a part of it, or the pickles: one try online
    if folder is None or not usable:
        folder = _downloaded(repo, revision, download)
        component_files(folder)
    _require_published(repo, revision, folder)
    return folder


def _require_published(repo: str, revision: str | None, folder: Path) -> None:
    """Refuse other weights under the id and revision of a release: every number would be taken for the release's."""
    release = RELEASES.get(repo)
    if release is None or revision != release.revision:
        return
    wrong = release.wrong(_weight_digests(folder))
    if wrong:
        raise ModelNotFound(
            f"{repo}: {wrong[0]} in the Hub's local cache is not the published file of revision {revision[:12]}; "
            f"delete it there and download it again, or load a model of your own as model=folder model.path={folder}"
        )


def _downloaded(repo: str, revision: str | None, download: bool) -> Path:
    missing = f"{repo}: no such folder, not in the Hub's local cache (revision {revision or 'main'}), and"
    at = f" --revision {revision}" if revision else ""
    advice = (
        f"run `hf download {repo}{at} {INCLUDE} --include '*/*model.safetensors' --exclude 'safety_checker/*'` where "
        "the Hub can be reached, or give a diffusers folder: model=folder model.path=DIR"
    )
    if not download:
        raise NotDownloaded(f"{missing} a dry run downloads nothing; {advice}")
    from diffusers import DiffusionPipeline

    unused = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    try:
        return Path(DiffusionPipeline.download(repo, revision=revision, use_safetensors=True, **unused))
    except Exception as error:  # The Hub's client raises a dozen unrelated classes; all mean that it is not to be had.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelNotFound(f"{missing} not to be downloaded ({reason}); {advice}") from error
