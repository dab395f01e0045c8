"""Published weights from their authors' address, as tensors only, and where their networks run."""

from __future__ import annotations

import urllib.error

import torch


def published_weights(url: str, what: str) -> dict[str, torch.Tensor]:
    """The state dict behind a torch.hub address, from the local cache or downloaded; the file's hash is checked.

    Raises:
        ValueError: It is not cached and cannot be downloaded; the message says where to put it.
    """
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (urllib.error.URLError, OSError) as error:
        raise ValueError(
            f"the weights of {what} are not in the local cache and cannot be downloaded ({error}); "
            f"put {url} into {torch.hub.get_dir()}/checkpoints/"
        ) from error


def chosen_device(name: str) -> torch.device:
    """The device with this name; `auto` is the first CUDA device if there is one, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
