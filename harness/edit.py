"""Edit: what a method returns. It is applied to a model, taken back bit for bit, saved, loaded and exported.

`mask` edits set weights to zero and `delta` edits replace whole tensors; both change UNet parameters in place, so that
hooks and references stay valid. An edit names the model it was made for and refuses any other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .files import claimed, sync
from .folder import EXPORTED, add_safety_checker, tidy
from .model import LAYER_SUFFIXES, DiffusionModel, quiet_libraries
from .names import unknown
from .packing import pack, unpack

EDIT_KINDS = ("none", "mask", "delta")
FORMAT = 1


class NoEffectError(ValueError):
    """The edit changes no weight."""


class WrongBaseError(ValueError):
    """The edit was made for another base model."""


@dataclass(eq=False)
class Edit:
    """A change of a model's UNet weights.

    Attributes:
        kind: `none`, `mask` or `delta`.
        tensors: by UNet parameter name, in the parameter's shape; `mask`: bool, True = set to zero; `delta`: the new
            weights. Not to be changed afterwards.
        info: JSON-able facts; `info["base"]` is the base model's fingerprint and must be there.
    """

    kind: str
    tensors: dict[str, Tensor]
    info: dict[str, Any]
    _saved: dict[str, Tensor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in EDIT_KINDS:
            raise unknown("edit kind", self.kind, EDIT_KINDS)
        if not self.info.get("base"):
            raise ValueError('an edit needs info["base"], the fingerprint of the model it was made for')
        if self.kind == "none" and self.tensors:
            raise ValueError("an edit of kind 'none' holds no tensors")
        for name, tensor in self.tensors.items():
            if (tensor.dtype == torch.bool) != (self.kind == "mask"):
                raise ValueError(f"{name}: a {self.kind} edit cannot hold a tensor of {tensor.dtype}")

    @classmethod
    def make(
        cls, kind: str, tensors: Mapping[str, Tensor], model: DiffusionModel, info: Mapping[str, Any] | None = None
    ) -> Edit:
        """An edit for `model`, with copies of the tensors on the CPU; `info` is completed by the base's fingerprint."""
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        return cls(kind, copies, {**(info or {}), "base": model.fingerprint})

    @property
    def base(self) -> str:
        """Fingerprint of the model the edit was made for."""
        return self.info["base"]

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 over the kind, the base, and the names, dtypes, shapes and bytes of the tensors."""
        digest = hashlib.sha256(f"{self.kind} {self.base}".encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f" {name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            tensor = tensor.detach().cpu().contiguous().flatten()
            content = np.packbits(tensor.numpy()) if self.kind == "mask" else tensor.view(torch.uint8).numpy()
            digest.update(content.data)
        return digest.hexdigest()

    @property
    def replaced(self) -> Mapping[str, Tensor]:
        """The weights that the edit has replaced where it is applied now, by parameter name; else nothing."""
        return self._saved or {}

    def check(self, model: DiffusionModel) -> dict[str, Tensor]:
        """The model's parameters that the edit changes, by name.

        Raises:
            WrongBaseError: the edit was made for another model.
            ValueError: a tensor's name or shape does not occur in the UNet.
        """
        if self.base != model.fingerprint:
            raise WrongBaseError(
                f"the edit was made for the model {self.base[:12]}, this is {model.fingerprint[:12]} ({model.name}); "
                "make the edit anew for this model and dtype"
            )
        parameters = dict(model.unet.named_parameters())
        for name, tensor in self.tensors.items():
            if name not in parameters:
                raise unknown("UNet parameter", name, parameters)
            if tensor.shape != parameters[name].shape:
                raise ValueError(f"{name}: edit {tuple(tensor.shape)} does not fit {tuple(parameters[name].shape)}")
        return {name: parameters[name] for name in self.tensors}

    def require_effect(self, model: DiffusionModel) -> None:
        """Raise NoEffectError, with the reason, unless some weight of the (unedited) model would change."""
        targets = self.check(model)
        if self._saved is not None:
            raise RuntimeError("revert the edit before asking for its effect")
        if not any(_changes(self.kind, tensor, targets[name]) for name, tensor in self.tensors.items()):
            reason = "it selects no weight" if self.kind != "delta" else "every new weight equals the old one"
            raise NoEffectError(f"the edit changes nothing: {reason}")

    @torch.no_grad()
    def apply(self, model: DiffusionModel) -> None:
        """Change the model's weights in place, keeping the old ones for `revert`.

        Raises:
            WrongBaseError, ValueError: see `check`; nothing is changed then.
            RuntimeError: an edit is applied to the model, or this one to another.
        """
        targets = self.check(model)
        if model.edit is not None or self._saved is not None:
            raise RuntimeError("an edit is applied already; revert it first")
        self._saved = {name: target.detach().clone() for name, target in targets.items()}
        model.edit = self
        try:
            for name, tensor in self.tensors.items():
                if self.kind == "mask":
                    targets[name].masked_fill_(tensor.to(targets[name].device), 0)
                else:
                    targets[name].copy_(tensor)
        except BaseException:
            self.revert(model)
            raise

    @torch.no_grad()
    def revert(self, model: DiffusionModel) -> None:
        """Restore the weights that `apply` changed, bit for bit."""
        if model.edit is not self or self._saved is None:
            raise RuntimeError("this edit is not applied to the model")
        parameters = dict(model.unet.named_parameters())
        for name, tensor in self._saved.items():
            parameters[name].copy_(tensor)
        self._saved, model.edit = None, None

    @contextlib.contextmanager
    def applied(self, model: DiffusionModel) -> Iterator[DiffusionModel]:
        """Apply the edit and revert it on leaving, also after errors."""
        self.apply(model)
        try:
            yield model
        finally:
            self.revert(model)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file with JSON metadata; the file appears whole or not at all."""
        path = Path(path)
        tensors, encodings = {}, {}
        for name, tensor in self.tensors.items():
            tensor = tensor.detach().cpu().contiguous()
            if self.kind == "mask":
                encoding, data = pack(tensor.numpy())
                encodings[name] = {"encoding": encoding, "shape": list(tensor.shape)}
                tensor = torch.from_numpy(data)
            tensors[name] = tensor
        header = {
            "format": FORMAT,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "info": self.info,
            "masks": encodings,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            save_file(tensors, temporary, metadata={"edit": json.dumps(header, sort_keys=True)})
            sync(Path(temporary))
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return path

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Read what `save` wrote; ValueError where the file is damaged or is no edit."""
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {}).get("edit", "{}"))
                stored = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged or no safetensors file ({error})") from error
        if header.get("format") != FORMAT:
            raise ValueError(f"{path}: not an edit of format {FORMAT} (found {header.get('format')!r})")
        if header["kind"] == "mask":
            if header["masks"].keys() != stored.keys():
                raise ValueError(f"{path}: its masks and its metadata name different parameters")
            for name, how in header["masks"].items():
                stored[name] = torch.from_numpy(unpack(how["encoding"], stored[name].numpy(), tuple(how["shape"])))
        edit = cls(header["kind"], stored, header["info"])
        if edit.fingerprint != header["fingerprint"]:
            raise ValueError(f"{path}: damaged, its content does not match its fingerprint")
        return edit


def pruned_shares(edit: Edit, model: DiffusionModel) -> dict[str, float]:
    """Share of weights that the edit sets to zero: of the pruned layers, of the UNet, of the whole pipeline.

    For a mask that is every selected weight; for a delta every weight that is zero afterwards and was not before.
    `layers` counts the matrices of every layer of the kinds that the edit touches (all second feed-forward projections,
    say), also where it leaves one alone; `pipeline` counts the UNet, the text encoders and the VAE.
    """
    if edit.kind == "delta" and model.edit is not None:
        raise RuntimeError("revert the edit before measuring what a delta sets to zero")
    targets = edit.check(model)
    pruned = 0
    for name, tensor in edit.tensors.items():
        gone = tensor if edit.kind == "mask" else (tensor == 0) & (targets[name].cpu() != 0)
        pruned += int(gone.sum())
    touched = {name: target.numel() for name, target in targets.items()}
    for kind, suffix in LAYER_SUFFIXES.items():
        if any(name.endswith(f"{suffix}.weight") for name in targets):
            touched |= {f"{name}.weight": layer.weight.numel() for name, layer in model.layers(kind).items()}
    unet = sum(p.numel() for p in model.unet.parameters())
    rest = sum(p.numel() for part in (*model.encoders, model.pipe.vae) for p in part.parameters())
    layers = max(sum(touched.values()), 1)
    return {"layers": pruned / layers, "unet": pruned / unet, "pipeline": pruned / (unet + rest)}


def export(model: DiffusionModel, edit: Edit | None, folder: str | Path) -> Path:
    """Write the edited model as a plain diffusers folder, loadable by stock `from_pretrained` without this project.

    `edit.json` beside the model's parts says what was done. The source's safety checker goes along where it is whole;
    otherwise a warning says that it is left out. The folder appears whole or not at all; until then it lies beside as
    `.NAME.export`, where the next export to the same place clears what a killed one left.

    Raises:
        ValueError: `folder` exists, is not empty, and is no earlier export of this edit, which would be left alone.
        StoreError: another process exports to the same place.
    """
    folder = Path(folder).expanduser().absolute()
    if edit is not None and _exported(folder) == edit.fingerprint:
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; export writes to a new one")
    temporary = folder.with_name(f".{folder.name}.export")
    with claimed(temporary):
        _export(model, edit, temporary, folder)
    return folder


def _exported(folder: Path) -> str | None:
    """The fingerprint of the edit whose export a folder is; None where it is none."""
    try:
        return json.loads((folder / EXPORTED).read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _export(model: DiffusionModel, edit: Edit | None, temporary: Path, folder: Path) -> None:
    """Fill the empty folder `temporary` and give it its name."""
    for part in model.pipe.components.values():
        # A fast tokenizer saves how it padded and cut last: an export must not tell what was encoded before it.
        if (tokenizer := getattr(part, "backend_tokenizer", None)) is not None:
            tokenizer.no_padding()
            tokenizer.no_truncation()
    try:
        change = edit.applied(model) if edit is not None else contextlib.nullcontext()
        with change, quiet_libraries():
            model.pipe.save_pretrained(temporary, safe_serialization=True)
        if edit is not None:
            facts = {"kind": edit.kind, "fingerprint": edit.fingerprint, **edit.info}
            (temporary / EXPORTED).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
        add_safety_checker(model.source, temporary)
        tidy(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                sync(file)
        os.replace(temporary, folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _changes(kind: str, tensor: Tensor, old: Tensor) -> bool:
    if kind == "mask":
        return bool((tensor & (old.cpu() != 0)).any())
    return not torch.equal(tensor.to(old.dtype), old.cpu())
