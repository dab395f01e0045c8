"""An edit that was made elsewhere, scored like any other: the difference between a file and the base model's UNet.

    python run.py method=checkpoint method.path=PATH

PATH is told apart by its content:

* a diffusers folder; its text encoders, VAE, noise schedule and UNet's architecture have to be the base model's,
  because only the weights of UNets can be edited here
* a .safetensors file of a UNet, or of some of its tensors, in diffusers' names
* a .safetensors file of a LoRA for the UNet, in the names of diffusers, peft or kohya (SD 1.x)
* an edit of our own, as a run's store holds it

Nothing is guessed: a tensor of an unknown name, another shape, or with NaN is refused. Pickles are never opened.
"""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from harness.checks import is_number
from harness.edit import Edit, NoEffectError
from harness.method import Stage
from harness.model import DiffusionModel, fingerprint_of, quiet_libraries
from harness.task import Concept
from harness.weights import component_files, locate

log = logging.getLogger(__name__)

UNET, OTHER_PARTS = "unet/", ("text_encoder", "text_encoder_2", "vae")
# What a scheduler's settings say of the model and not of how it is sampled.
NOISE_SCHEDULE = (
    "prediction_type",
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
)
# How a LoRA's tensors are called behind their module's name: the role, and the spellings of diffusers, peft and kohya.
LORA_ROLES = {
    "down": (".lora_A.weight", ".lora.down.weight", ".lora_down.weight", "_lora.down.weight"),
    "up": (".lora_B.weight", ".lora.up.weight", ".lora_up.weight", "_lora.up.weight"),
    "alpha": (".alpha",),
}
LORA_TEXT = ("text_encoder", "lora_te")
LORA_METADATA = "lora_adapter_metadata"


@dataclass
class Checkpoint:
    """A file or folder as a method.

    Attributes:
        path: see above; relative to the working directory.
        lora_scale: factor of a LoRA's product; of no meaning for anything else.
    """

    path: str
    name: str = "checkpoint"
    lora_scale: float = 1.0

    version: ClassVar[int] = 1
    # The file is what it is, whatever the concepts.
    joint_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path.strip():
            raise ValueError(f"checkpoint: path={self.path!r}: name a diffusers folder or a .safetensors file")
        if not is_number(self.lora_scale):
            raise ValueError(f"checkpoint: lora_scale is a number, got {self.lora_scale!r}")
        place = Path(self.path).expanduser().absolute()
        if not place.exists():
            raise ValueError(f"checkpoint: path={self.path}: no such file or folder")
        if re.search(r"-\d+-of-\d+\.safetensors$", place.name):
            raise ValueError(f"checkpoint: path={self.path}: one of several parts of a UNet; name the model's folder")
        self._source = locate(place)

    @cached_property
    def content(self) -> str:
        """Hex sha256 over the files at `path`: what decides the edit beside the parameters."""
        return fingerprint_of(self._source, None)

    def edit(self, model: DiffusionModel, concepts: Sequence[Concept], seed: int, stage: Stage) -> Edit:
        """The edit that turns `model` into what is at `path`; concepts and seed were decided by whoever made it.

        Raises:
            NoEffectError: the UNet at `path` is the model's own.
            WrongBaseError: an edit of our own was made for another model.
            ValueError: something at `path` does not fit the model; the message names the tensor.
        """
        info: dict[str, Any] = {"content": self.content}
        if self._source.is_dir():
            info["form"] = "folder"
            files = component_files(self._source)
            self._require_same_settings(model)
            weights = [file for name, file in files.items() if name.startswith(UNET) and file.suffix == ".safetensors"]
            given = {name: tensor for file in weights for name, tensor in self._tensors(file)[0].items()}
            missing = sorted(model.unet.state_dict().keys() - given.keys())
            if missing:
                raise ValueError(f"{self.path}: its UNet lacks {len(missing)} tensors of the model's, as {missing[0]}")
            kind, tensors = "delta", self._delta(model, given)
            for part in OTHER_PARTS:
                if any(name.startswith(f"{part}/") for name in files):
                    self._require_same(model, part)
        else:
            given, metadata = self._tensors(self._source)
            if "edit" in metadata:
                made = Edit.load(self._source)
                made.check(model)
                kind, tensors = made.kind, made.tensors
                info |= {"form": "edit", "source": made.info}
            elif any("lora" in name for name in given):
                info["form"], kind, tensors = "lora", "delta", self._lora(model, given, metadata)
            else:
                info["form"], kind, tensors = "unet", "delta", self._delta(model, given)
        if not tensors:
            raise NoEffectError(f"checkpoint: the UNet at {self.path} is the model's own")
        log.info("checkpoint: a %s that changes %d tensors of the UNet", info["form"], len(tensors))
        info |= {
            "method": self.name,
            "version": self.version,
            "config": asdict(self),
            "concepts": [asdict(concept) for concept in concepts],
            "changed_tensors": len(tensors),
        }
        return Edit.make(kind, tensors, model, info)

    def _tensors(self, file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What a safetensors file holds, and its metadata."""
        try:
            with safe_open(file, "pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{file}: damaged or no safetensors file ({error})") from error

    def _delta(self, model: DiffusionModel, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """New values of the UNet's tensors that `given` changes, by name.

        A file in float16 differs everywhere from a model in float32. Entries that agree in the coarser of the two
        dtypes count as unchanged and keep the model's digits.
        """
        state = model.unet.state_dict()
        changed = {}
        for name, tensor in given.items():
            if name not in state:
                if name.startswith("model.diffusion_model."):
                    raise ValueError(f"{self.path}: an original-layout checkpoint; save it in diffusers' layout first")
                near = difflib.get_close_matches(name, state, n=1)
                hint = f"; did you mean {near[0]}?" if near else " (names are diffusers')"
                raise ValueError(f"{self.path}: {name} is no tensor of the model's UNet{hint}")
            old = state[name].cpu()
            new = self._fitting(name, tensor, old)
            coarse = _coarser(tensor.dtype, old.dtype)
            differs = new.to(coarse) != old.to(coarse)
            if differs.any():
                changed[name] = torch.where(differs, new, old)
        return changed

    def _lora(
        self, model: DiffusionModel, given: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> dict[str, Tensor]:
        """`W + lora_scale (alpha / r) B A` of every module that the LoRA names, computed in float32.

        `alpha` is the rank r where neither the file nor its metadata says otherwise, as in diffusers. The product is
        taken here and not by peft, so that the edit is the same whether peft is installed or not.
        """
        modules = {name: module for name, module in model.unet.named_modules() if hasattr(module, "weight")}
        spelled = {name.replace(".", "_"): name for name in modules}
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in given.items():
            if key.startswith(LORA_TEXT):
                raise ValueError(f"{self.path}: {key} changes the text encoder; only edits of the UNet can be scored")
            role, stem = _lora_role(key)
            name = spelled.get(stem.removeprefix("lora_unet_")) if stem.startswith("lora_unet_") else stem
            if role is None or name not in modules:
                what = "no weight of the model's UNet" if role else "neither a LoRA's down, up nor alpha"
                raise ValueError(f"{self.path}: {key} is {what}")
            if role in parts.setdefault(name, {}):
                raise ValueError(f"{self.path}: two spellings of the same LoRA weight, the second is {key}")
            parts[name][role] = tensor
        adapter = _adapter(self.path, metadata)
        changed = {}
        for name, part in sorted(parts.items()):
            weight = modules[name].weight.detach().cpu()
            if not {"down", "up"} <= part.keys():
                raise ValueError(f"{self.path}: the LoRA of {name} has {' and '.join(sorted(part))} only")
            down, up = (torch.atleast_2d(part[role]).flatten(1).float() for role in ("down", "up"))
            rank = len(down)
            if up.shape != (len(weight), rank) or down.shape[1] != weight[0].numel():
                raise ValueError(
                    f"{self.path}: LoRA {tuple(part['up'].shape)} x {tuple(part['down'].shape)} does not fit {name} "
                    f"{tuple(weight.shape)}"
                )
            factor = float(part["alpha"]) / rank if "alpha" in part else adapter.factor(name, rank)
            new = weight.float() + self.lora_scale * factor * (up @ down).view_as(weight)
            new = self._fitting(f"{name}.weight", new, weight)
            if not torch.equal(new, weight):
                changed[f"{name}.weight"] = new
        return changed

    def _fitting(self, name: str, tensor: Tensor, old: Tensor) -> Tensor:
        """`tensor` in the dtype of `old`, checked against it."""
        if tensor.shape != old.shape:
            raise ValueError(f"{self.path}: {name} is {tuple(tensor.shape)}, the model's is {tuple(old.shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{self.path}: {name} holds {tensor.dtype}, weights are floating-point")
        new = tensor.to(old.dtype)
        if not torch.isfinite(new).all():
            raise ValueError(f"{self.path}: {name} holds NaN, infinity or more than {old.dtype} can")
        return new

    def _require_same_settings(self, model: DiffusionModel) -> None:
        """Refuse a folder whose UNet or noise schedule is set up differently: its weights would be run in the model's.

        What a file does not name has its class's default. Keys that diffusers does not know compute nothing.
        """
        import diffusers

        checks: list[tuple[str, Any, Sequence[str] | None]] = [("unet/config.json", model.unet, None)]
        if (self._source / "scheduler/scheduler_config.json").is_file():
            checks.append(("scheduler/scheduler_config.json", model.pipe.scheduler, NOISE_SCHEDULE))
        for file, mine, keys in checks:
            given = json.loads((self._source / file).read_text(encoding="utf-8"))
            theirs = getattr(diffusers, str(given.get("_class_name")), None)
            if theirs is None:
                raise ValueError(f"{self.path}: {file} names no class of diffusers: {given.get('_class_name')!r}")
            old, new = _settings(type(mine), mine.config), _settings(theirs, given)
            # `sample_size` computes nothing: it is the size that a pipeline draws by default.
            for key in keys or sorted((old.keys() | new.keys()) - {"sample_size"}):
                # Libraries have written null, false and 0 for "no".
                if (old.get(key) or None) != (new.get(key) or None):
                    raise ValueError(
                        f"{self.path}: {file} has {key}={new.get(key)!r}, the model has {old.get(key)!r}; only weights "
                        "of the UNet can be scored"
                    )

    def _require_same(self, model: DiffusionModel, part: str) -> None:
        """Refuse a folder whose text encoder or VAE is another than the model's: that would go unscored."""
        module: nn.Module | None = getattr(model.pipe, part, None)
        if module is None:
            raise ValueError(f"{self.path}: it has a {part}, which the model ({model.name}) has not")
        folder = self._source / part
        weights = [tensor for file in folder.glob("*.safetensors") for tensor in self._tensors(file)[0].values()]
        stored = {tensor.dtype for tensor in weights if tensor.is_floating_point()}
        with quiet_libraries():
            other = type(module).from_pretrained(folder, local_files_only=True, use_safetensors=True)
        mine, theirs = module.state_dict(), other.state_dict()
        differing = sorted(mine.keys() ^ theirs.keys())
        for name in mine.keys() & theirs.keys():
            old, new = mine[name].cpu(), theirs[name].cpu()
            coarse = _coarser(old.dtype, *stored) if old.is_floating_point() else old.dtype
            if old.shape != new.shape or not torch.equal(new.to(coarse), old.to(coarse)):
                differing.append(name)
        if differing:
            raise ValueError(
                f"{self.path}: its {part} is not the model's ({len(differing)} tensors differ, as {min(differing)}); "
                "only edits of the UNet can be scored"
            )


@dataclass(frozen=True)
class _Adapter:
    """The scale of a LoRA as peft's settings in the file's metadata say it."""

    alpha: float | None = None
    patterns: tuple[tuple[str, float], ...] = ()
    root: bool = False

    def factor(self, module: str, rank: int) -> float:
        """What `B A` of a module is multiplied by."""
        alpha = rank if self.alpha is None else self.alpha
        for pattern, own in self.patterns:
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = own
                break
        return alpha / (math.sqrt(rank) if self.root else rank)


def _adapter(path: str, metadata: Mapping[str, str]) -> _Adapter:
    settings = json.loads(metadata.get(LORA_METADATA, "{}"))
    settings = {name.removeprefix("unet."): value for name, value in settings.items()}
    if settings.get("use_dora"):
        raise ValueError(f"{path}: a LoRA with magnitudes (DoRA) is not supported; merge it into a UNet first")
    return _Adapter(
        settings.get("lora_alpha"),
        tuple((settings.get("alpha_pattern") or {}).items()),
        bool(settings.get("use_rslora")),
    )


def _lora_role(key: str) -> tuple[str | None, str]:
    """What a tensor of a LoRA is (down, up or alpha; None where unknown), and the name of its module."""
    for role, endings in LORA_ROLES.items():
        for ending in endings:
            if key.endswith(ending):
                stem = key.removesuffix(ending).removeprefix("unet.").replace(".processor.", ".")
                # Attention processors once held the LoRA of `to_out.0` as `to_out_lora`.
                return role, f"{stem}.0" if ending.startswith("_") and stem.endswith("to_out") else stem
    return None, key


def _settings(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a diffusers class as a config gives them, else their defaults; lists for tuples."""
    known = inspect.signature(kind).parameters.values()
    found = {parameter.name: given.get(parameter.name, parameter.default) for parameter in known}
    return json.loads(json.dumps(found, default=str))


def _coarser(*dtypes: torch.dtype) -> torch.dtype:
    """The one of some floating-point dtypes with the fewest digits."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
