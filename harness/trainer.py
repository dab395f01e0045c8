"""Fine-tuning a model's UNet into an edit: the loop that all training methods share.

    loss(network, draw) -> scalar               from the method: the loss of one micro-batch
    train(model, names, loss, ...) -> tensors   Adam on the parameters `names`; the tensors that changed, for an Edit

Training runs in float32, or in bfloat16 autocast over float32 weights, whatever the model's own dtype. Afterwards the
model has its weights back bit for bit, also after an error. A step's randomness depends on the seed and the numbers of
its samples alone, so a run that was killed goes on from its checkpoint as if it had not been.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .checks import number, one_of, whole
from .files import StoreError, storage, sync
from .method import Scratch
from .model import Conditioning, DiffusionModel
from .progress import Progress
from .sampler import Sampler

log = logging.getLogger(__name__)

PARAMETERS = ("full", "xattn", "xattn_kv")
PRECISIONS = {"float32": "no", "bfloat16": "bf16"}  # as accelerate calls them
CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 120
# Writing checkpoints takes at most one part in so many of the time.
CHECKPOINT_SHARE = 20


@dataclass(frozen=True)
class Settings:
    """How a loss is minimised.

    Attributes:
        learning_rate: of Adam (betas 0.9 and 0.999, no weight decay), constant.
        batch: samples of an optimiser step.
        accumulate: micro-batches that a step is cut into, to save memory; the result differs by rounding only.
        precision: `float32`, or `bfloat16` for autocast over float32 weights.
    """

    learning_rate: float
    batch: int
    accumulate: int = 1
    precision: str = "float32"

    def check(self, method: str) -> None:
        """Raise ValueError, in one line that begins with `method`, where a setting makes no sense."""
        number(f"{method}: learning_rate", self.learning_rate, zero=False)
        whole(f"{method}: batch", self.batch)
        whole(f"{method}: accumulate", self.accumulate)
        one_of(f"{method}'s precision", self.precision, tuple(PRECISIONS))
        if self.batch % self.accumulate:
            raise ValueError(f"{method}: accumulate={self.accumulate} has to divide batch={self.batch}")


def parameter_names(model: DiffusionModel, which: str) -> list[str]:
    """Names of the UNet's parameters: `full` all, `xattn` cross-attention, `xattn_kv` its keys and values."""
    one_of("parameters", which, PARAMETERS)
    if which == "xattn_kv":
        return sorted(f"{name}.weight" for kind in ("cross_k", "cross_v") for name in model.layers(kind))
    names = [name for name, _ in model.unet.named_parameters()]
    return names if which == "full" else [name for name in names if ".attn2." in name]


class Draw:
    """The randomness of one micro-batch.

    Every sample has a CPU generator of its own, so what it gets depends neither on the device nor on how a step is cut
    into micro-batches.

    Attributes:
        step: of the optimiser, from 0.
        samples: numbers of the samples, counted over the whole run.
    """

    def __init__(self, seed: object, step: int, samples: range) -> None:
        """Draw by `seed`, anything with a `repr` of its own."""
        self.seed, self.step, self.samples = seed, step, samples
        self._generators = [_generator(seed, "sample", i) for i in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def items(self, n: int, stream: str) -> list[int]:
        """Which of `n` items the samples are: `n` samples in a row meet each once, in an order of its own each round.

        Draws from several data sets are told apart by `stream`.
        """
        return [_order(self.seed, stream, i // n, n)[i % n] for i in self.samples]

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal numbers, float32, in the shape and on the device of `like` [samples, ...]."""
        return torch.stack([torch.randn(like.shape[1:], generator=g) for g in self._generators]).to(like.device)

    def timesteps(self, n: int = 1000) -> Tensor:
        """Whole numbers from 0 to n - 1, one a sample, on the CPU."""
        return torch.cat([torch.randint(n, (1,), generator=g) for g in self._generators])

    def common(self, n: int) -> int:
        """One whole number from 0 to n - 1, the same in all micro-batches of the step."""
        return int(torch.randint(n, (1,), generator=_generator(self.seed, "step", self.step)))


class Network:
    """The UNet while it is trained; predictions and latents are float32.

    Attributes:
        trained: the parameters that move, by name.
        alphas_cumprod: alpha_bar of every timestep [T], on the model's device.
    """

    def __init__(
        self,
        model: DiffusionModel,
        trained: dict[str, nn.Parameter],
        original: Mapping[str, Tensor],
        accelerator: Accelerator,
    ) -> None:
        """See `_training`; `original` holds what the block of that name puts in, by parameter name."""
        self._model, self._accelerator = model, accelerator
        self.trained = trained
        parameters = dict(model.unet.named_parameters())
        self._original = [(parameters[name], weight) for name, weight in original.items()]
        scheduler = model.scheduler(Sampler("ddim", 1, 1.0))
        if scheduler.config.prediction_type != "epsilon":
            raise ValueError(
                f"{model.name or 'the model'} predicts {scheduler.config.prediction_type}; training methods need a "
                "model that predicts the noise (epsilon)"
            )
        self.alphas_cumprod = scheduler.alphas_cumprod.to(model.device)

    def predict(self, z_t: Tensor, t: Tensor, text: Conditioning) -> Tensor:
        """eps_theta(z_t, t, text) [n, channels, h, w], with gradients unless they are off.

        Args:
            z_t: [n, channels, h, w].
            t: [n] timesteps.
            text: features of n prompts.
        """
        # A context a call: autocast remembers cast weights until it is left, and would hand those of a call without
        # gradients to the next call with them.
        with self._accelerator.autocast():
            return self._model.predict(z_t, t.to(z_t.device), _float32(text)).float()

    @contextlib.contextmanager
    def original(self) -> Iterator[None]:
        """Inside the block the network has the weights from before the training, and computes no gradients.

        Where `train` was given `untouched` weights, it has those in their place.
        """
        now = [parameter.data for parameter, _ in self._original]
        try:
            for parameter, weight in self._original:
                parameter.data = weight.float()
            with torch.no_grad():
                yield
        finally:
            for (parameter, _), data in zip(self._original, now, strict=True):
                parameter.data = data

    def noised(self, z0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t = sqrt(alpha_bar_t) z0 + sqrt(1 - alpha_bar_t) noise, all but `t` [n] in the shape of z0."""
        alpha_bar = self.alphas_cumprod[t.to(z0.device)].view(-1, 1, 1, 1)
        return alpha_bar.sqrt() * z0 + (1 - alpha_bar).sqrt() * noise

    def clean(self, z_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The z0 that `noised` turns into z_t with the noise `eps`."""
        alpha_bar = self.alphas_cumprod[t.to(z_t.device)].view(-1, 1, 1, 1)
        return (z_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()

    @torch.no_grad()
    def partly_denoised(self, text: Conditioning, noise: Tensor, sampler: Sampler, calls: int) -> tuple[Tensor, Tensor]:
        """Latents after `calls` steps of guided sampling, and their timestep [n]; see `DiffusionModel.denoise`.

        The sampler has to be variance-preserving: ddim or dpm++.
        """
        t = self._model.scheduler(sampler).timesteps[calls].long()
        with self._accelerator.autocast():
            z_t = self._model.denoise(_float32(text), noise, sampler, sampler.guidance, stop_after=calls)
        return z_t.float(), t.repeat(len(z_t)).to(z_t.device)

    @torch.no_grad()
    def denoised(self, text: Conditioning, noise: Tensor, sampler: Sampler) -> Tensor:
        """Latents [n, channels, h, w] of whole pictures, by guided sampling; see `DiffusionModel.denoise`."""
        with self._accelerator.autocast():
            return self._model.denoise(_float32(text), noise, sampler, sampler.guidance).float()


Loss = Callable[[Network, Draw], Tensor]


def train(
    model: DiffusionModel,
    names: Sequence[str],
    loss: Loss,
    settings: Settings,
    *,
    steps: int,
    seed: int,
    label: str,
    scratch: Scratch | None = None,
    masks: Mapping[str, Tensor] | None = None,
    untouched: Mapping[str, Tensor] | None = None,
    at_end: Callable[[Network], None] | None = None,
) -> dict[str, Tensor]:
    """Minimise `loss` over the parameters `names` of the model's UNet.

    Args:
        loss: the mean over the samples of a micro-batch.
        steps: of the optimiser.
        label: stands before the progress and in messages.
        scratch: a place for checkpoints (`method.scratch`), and for no other training; None keeps none. Where there is
            one, training goes on from it, and what it had cost counts too. One that leads to NaN is removed.
        masks: bool, by parameter name and in its shape; entries that are False get no gradient and stay as they are.
        untouched: weights that `Network.original` puts in instead of those from before the training, by parameter name
            (`DiffusionModel.untouched`).
        at_end: looks at the trained network before the weights are put back.

    Returns:
        The tensors that changed, by parameter name, in the model's dtype on the CPU.

    Raises:
        FloatingPointError: the loss or a weight is NaN or infinite.
    """
    keep = None if scratch is None else _Checkpoint(scratch)
    with _training(model, names, settings, untouched) as (network, accelerator, before), _removed_on_nan(keep):
        parameters = list(network.trained.values())
        optimizer = accelerator.prepare_optimizer(torch.optim.Adam(parameters, lr=settings.learning_rate))
        frozen = {name: ~mask.to(model.device) for name, mask in (masks or {}).items() if name in network.trained}
        start, stored = (0, {}) if keep is None else keep.read()
        if start:
            log.info("%s: goes on at step %d of %d", label, start, steps)
            _resume(network, optimizer, stored)
        del stored
        average = None
        with Progress(label, steps, "step", start) as progress:
            for step in range(start, steps):
                value = _backward(accelerator, network, loss, settings, step, steps, seed, label)
                for name, mask in frozen.items():
                    grad = network.trained[name].grad
                    if grad is not None:
                        grad.masked_fill_(mask, 0)
                optimizer.step()
                optimizer.zero_grad()
                average = value if average is None else 0.95 * average + 0.05 * value
                progress.advance(note=f"loss {average:.4g}")
                if keep is not None and keep.due():
                    keep.save(step + 1, _state(network, optimizer))
        for name, parameter in network.trained.items():
            if not torch.isfinite(parameter).all():
                raise FloatingPointError(f"{label}: {name} holds NaN or infinity after training; {_ADVICE}")
        if at_end is not None:
            at_end(network)
        changed = {}
        for name, parameter in network.trained.items():
            new = parameter.detach().to(before[name].dtype)
            if not torch.equal(new, before[name]):
                changed[name] = new.cpu().clone()
    of_loss = "" if average is None else f", loss {average:.4f} in the end"
    log.info("%s: %d steps%s, %d of %d tensors changed", label, steps, of_loss, len(changed), len(names))
    return changed


def summed_gradients(
    model: DiffusionModel,
    names: Sequence[str],
    loss: Loss,
    settings: Settings,
    *,
    steps: int,
    seed: int,
    label: str,
    scratch: Scratch | None = None,
) -> dict[str, Tensor]:
    """The gradient of the sum of `loss` over `steps` steps of untrained weights, by name, float32 on the CPU.

    Args:
        scratch: a place for checkpoints, as in `train`.

    Raises:
        FloatingPointError: a loss or a gradient is NaN or infinite.
    """
    keep = None if scratch is None else _Checkpoint(scratch)
    with _training(model, names, settings) as (network, accelerator, _), _removed_on_nan(keep):
        start, stored = (0, {}) if keep is None else keep.read()
        if start:
            log.info("%s: goes on at step %d of %d", label, start, steps)
            for name, gradient in stored.items():
                network.trained[name].grad = gradient.to(model.device)
        del stored
        with Progress(label, steps, "step", start) as progress:
            for step in range(start, steps):
                value = _backward(accelerator, network, loss, settings, step, steps, seed, label)
                progress.advance(note=f"loss {value:.4g}")
                if keep is not None and keep.due():
                    keep.save(step + 1, {n: p.grad for n, p in network.trained.items() if p.grad is not None})
        gradients = {}
        for name, parameter in network.trained.items():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if not torch.isfinite(gradient).all():
                raise FloatingPointError(f"{label}: the gradient of {name} holds NaN or infinity; {_ADVICE}")
            gradients[name] = gradient.detach().cpu().clone()
    return gradients


_ADVICE = "try a smaller learning rate, or precision=float32"


@contextlib.contextmanager
def _training(
    model: DiffusionModel, names: Sequence[str], settings: Settings, untouched: Mapping[str, Tensor] | None = None
) -> Iterator[tuple[Network, Accelerator, dict[str, Tensor]]]:
    """The UNet in float32 with gradients for `names`; then everything as it was.

    Args:
        untouched: as in `train`.

    Yields:
        The network, the accelerator, and the untrained tensors of all parameters.
    """
    if model.edit is not None:
        raise RuntimeError("an edit is applied to the model; revert it before training")
    parameters = dict(model.unet.named_parameters())
    missing = [name for name in names if name not in parameters]
    if missing or not names:
        raise ValueError(f"the UNet has no parameter {missing[0]!r}" if missing else "no parameters to train are named")
    chosen, dtype = set(names), model.dtype
    # The tensors themselves, not copies: training works on others.
    before = {name: parameter.data for name, parameter in parameters.items()}
    wanted = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = before[name].to(torch.float32, copy=name in chosen)
            parameter.requires_grad_(name in chosen)
        model.dtype = torch.float32
        accelerator = _accelerator(model.device, settings)
        with _repeatable(model.device):
            original = {name: before[name] for name in names} | dict(untouched or {})
            yield Network(model, {name: parameters[name] for name in names}, original, accelerator), accelerator, before
    finally:
        model.dtype = dtype
        for name, parameter in parameters.items():
            parameter.grad = None
            parameter.data = before[name]
            parameter.requires_grad_(wanted[name])


def _accelerator(device: torch.device, settings: Settings) -> Accelerator:
    # accelerate keeps one state a process, with the first caller's precision; here every training has its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    # Of a run on several processes only the main one trains, by itself, while the others wait for its edit.
    hidden = {name: os.environ.pop(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ}
    try:
        return Accelerator(
            mixed_precision=PRECISIONS[settings.precision],
            gradient_accumulation_steps=settings.accumulate,
            cpu=device.type == "cpu",
            device_placement=False,
        )
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Kernels that give the same bits every time where CUDA has a choice; the global random state is put back."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        if not cuda:
            yield
            return
        old = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(old[0], warn_only=old[1])


def _backward(
    accelerator: Accelerator,
    network: Network,
    loss: Loss,
    settings: Settings,
    step: int,
    steps: int,
    seed: int,
    label: str,
) -> float:
    """Add the gradient of one step to the parameters' and return its loss."""
    total, size = 0.0, settings.batch // settings.accumulate
    for micro in range(settings.accumulate):
        first = step * settings.batch + micro * size
        torch.manual_seed(_seed(seed, "global", first))
        with accelerator.accumulate():
            # With the label, so that two stages of a method do not meet the same noise.
            value = loss(network, Draw((label, seed), step, range(first, first + size)))
            current = value.item()
            # A NaN would be trained on for hours before anybody saw it.
            if not math.isfinite(current):
                raise FloatingPointError(f"{label}: the loss is {current} at step {step + 1} of {steps}; {_ADVICE}")
            accelerator.backward(value)
        total += current / settings.accumulate
    return total


def _state(network: Network, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The weights and Adam's state, for a checkpoint."""
    tensors: dict[str, Tensor] = {f"weight/{name}": parameter for name, parameter in network.trained.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam/{index}/{key}": value for key, value in state.items()}
    return tensors


@torch.no_grad()
def _resume(network: Network, optimizer: torch.optim.Optimizer, stored: Mapping[str, Tensor]) -> None:
    """Take over what `_state` gave."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        part, name = key.split("/", 1)
        if part == "weight":
            network.trained[name].copy_(tensor)
        else:
            index, field = name.split("/")
            states.setdefault(int(index), {})[field] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


class _Checkpoint:
    """Tensors, the number of finished steps and what they cost, in one file: whole or the former one."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch, self.path = scratch, scratch.folder / CHECKPOINT
        self._saved, self._pause = time.monotonic(), float(CHECKPOINT_SECONDS)

    def due(self) -> bool:
        """Whether the last one is old enough for writing to take a small share of the time only."""
        return time.monotonic() - self._saved >= self._pause

    def save(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Keep the state after `step` steps."""
        begun = time.monotonic()
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
        metadata = {"step": str(step), "spent": json.dumps(self._scratch.spent())}
        metadata["sha256"] = _digest(metadata, tensors)
        partial = self.path.with_suffix(".part")
        try:
            with storage(f"cannot write {self.path}"):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    save_file(tensors, partial, metadata=metadata)
                except SafetensorError as error:
                    raise StoreError(f"cannot write {self.path}: {error}") from error
                sync(partial)
                os.replace(partial, self.path)
                sync(self.path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds the former one
                self.path.parent.rmdir()
            raise
        self._saved = time.monotonic()
        self._pause = max(CHECKPOINT_SECONDS, CHECKPOINT_SHARE * (self._saved - begun))

    def read(self) -> tuple[int, dict[str, Tensor]]:
        """The number of finished steps and the state after them; 0 and nothing where there is none to be read."""
        if not self.path.exists():
            return 0, {}
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                stored = {key: file.get_tensor(key) for key in file.keys()}
            if metadata.pop("sha256", None) != _digest(metadata, stored):
                raise ValueError("its content does not match its sha256")
        except (SafetensorError, ValueError) as error:
            log.warning("the checkpoint %s is damaged (%s); training begins anew", self.path, error)
            return 0, {}
        self._scratch.found(json.loads(metadata["spent"]))
        return int(metadata["step"]), stored

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Hex sha256 of a checkpoint: safetensors files have no checksum, and training would go on from a flipped bit."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f" {name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def _removed_on_nan(checkpoint: _Checkpoint | None) -> Iterator[None]:
    """Remove a checkpoint from which every run would come to the same NaN."""
    try:
        yield
    except FloatingPointError:
        if checkpoint is not None:
            checkpoint.remove()
        raise


def _float32(text: Conditioning) -> Conditioning:
    return Conditioning(text.hidden.float(), None if text.pooled is None else text.pooled.float())


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")  # torch uses 32 bits of a seed


def _generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(*parts))


@lru_cache(maxsize=8)
def _order(seed: object, stream: str, cycle: int, n: int) -> list[int]:
    return torch.randperm(n, generator=_generator(seed, stream, cycle)).tolist()
