"""Published weights from their authors' address, checked before they are opened, and where their networks run."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import re
from pathlib import Path

import torch


def published_bytes(url: str, what: str, sha256: str) -> bytes:
    """The file behind an address, from torch.hub's cache or downloaded into it, checked at every call.

    Args:
        url: Its last part is the name in the cache.
        what: What the file is, for messages.
        sha256: The file's, or its first digits where more were never published.

    Raises:
        ValueError: It is not cached and cannot be downloaded (the message says where to put it), or it is another file.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, os.fspath(path), hash_prefix=sha256, progress=False)
        except (OSError, http.client.HTTPException, RuntimeError) as error:  # RuntimeError: another hash
            raise ValueError(
                f"the weights of {what} are not in the local cache and cannot be downloaded ({error}); "
                f"put {url} into {path.parent}"
            ) from error
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if not found.startswith(sha256):
        raise ValueError(
            f"{path} is not the published file of {what}: its sha256 is {found}, not {sha256}"
            f"{'...' if len(sha256) < len(found) else ''}; delete it, or put {url} in its place"
        )
    return data


def published_weights(url: str, what: str) -> dict[str, torch.Tensor]:
    """The state dict behind an address that names its sha256 (`stated_sha256`).

    Raises:
        ValueError: As `published_bytes`.
    """
    data = published_bytes(url, what, stated_sha256(url))
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def stated_sha256(url: str) -> str:
    """The first digits of a file's sha256, in which the last part of its address ends (`NAME-0676ba61.pth`).

    torchvision and torch-fidelity publish these eight digits and no more.
    """
    digits = re.search(r"-([0-9a-f]{8,})\.\w+$", url)
    if digits is None:
        raise ValueError(f"{url} does not name its sha256")
    return digits[1]


def chosen_device(name: str) -> torch.device:
    """The device with this name; `auto` is the first CUDA device if there is one, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
