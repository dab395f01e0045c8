"""DiffusionModel: SD 1.x / 2.x, SDXL and the tiny world behind one interface, with the one denoising loop.

Methods and the pipeline meet a model only through this class: editable layers by kind, text features, starting noise
from seeds, denoising, decoding. `LazyModel` knows a model's fingerprint and loads its weights when they are needed.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .hooks import is_hooked
from .loading import as_dtype, quiet_libraries, read_pipeline, tensor_fingerprint
from .model_files import default_size
from .names import unknown
from .sampler import Sampler
from .threads import by_threads
from .weights import ModelNotFound, UnsafeWeightsError, configs_of, fingerprint_of, locate

__all__ = [
    "KINDS",
    "AbsentModel",
    "Conditioning",
    "DiffusionModel",
    "LazyModel",
    "ModelNotFound",
    "TokenFeatures",
    "UnsafeWeightsError",
    "as_dtype",
    "fingerprint_of",
    "quiet_libraries",
]

if TYPE_CHECKING:
    from .inference import Kept

log = logging.getLogger(__name__)

# Editable matrices inside every `transformer_blocks.{n}`, by the end of their module name.
LAYER_SUFFIXES = {
    "ffn1": ".ff.net.0.proj",
    "ffn2": ".ff.net.2",
    "cross_k": ".attn2.to_k",
    "cross_v": ".attn2.to_v",
    "self_k": ".attn1.to_k",
    "self_v": ".attn1.to_v",
}
KINDS = tuple(LAYER_SUFFIXES)
# Prompts whose features are kept: about 1 GB for SDXL in float32, a quarter of that for SD 1.x.
KEPT_PROMPTS = 1024
DECODE_BATCH = 16


@dataclass(frozen=True)
class Conditioning:
    """Text features of n prompts.

    Attributes:
        hidden: [n, positions, width], what the cross-attention reads.
        pooled: [n, width] (SDXL), else None.
    """

    hidden: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Conditioning:
        """The rows at `index`; one integer gives one row, still with the leading dimension."""
        if isinstance(index, int):
            index = [index]
        return Conditioning(self.hidden[index], None if self.pooled is None else self.pooled[index])

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """The rows of all parts, one after the other."""
        pooled = None
        if parts[0].pooled is not None:
            pooled = torch.cat([part.pooled for part in parts])  # type: ignore[misc]  # parts are of one model
        return Conditioning(torch.cat([part.hidden for part in parts]), pooled)


@dataclass(frozen=True)
class TokenFeatures:
    """Hidden states with the position of each prompt's last subject token.

    Attributes:
        hidden: [n, positions, width].
        last: [n] integers on the CPU, index of the last token before the end token. The empty prompt has none: its
            index is 0, the start token.
    """

    hidden: Tensor
    last: Tensor


class DiffusionModel:
    """A text-to-image pipeline whose UNet can be measured and edited.

    Attributes:
        pipe: the diffusers pipeline; only this module and the export touch its parts.
        unet, device, dtype, name, suite: as they say; `words` says on screen and in records what the model is.
        size: width and height in pixels of a picture whose prompt row names none.
        fingerprint: identity of the unedited model, see `weights.fingerprint_of`.
        loaded_as: the same of the model that was loaded, also where an edited one counts as a model of its own.
        calls: UNet calls so far, counted in single samples (a guided sample counts 2).
        edit: the Edit that is applied now, or None (kept by `harness.edit`).
        untouched: where an edited model counts as a model of its own (`harness.schedule.rebased`), the weights that its
            edits replaced, by parameter name; else empty.
        source: the folder or file it was loaded from; None for a pipeline in memory.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
        name: str = "",
        suite: str = "",
        words: str = "",
        size: int | None = None,
        vae_dtype: str | torch.dtype | None = None,
        compile: bool = False,
        fingerprint: str | None = None,
        source: Path | None = None,
    ) -> None:
        """Take over a pipeline in memory; without a `fingerprint` one is computed from its tensors as they are now.

        Its UNet and VAE compute as `inference.speed_up` lets them from then on. With `compile` the denoising loop runs
        a UNet that torch has compiled, which takes a minute or more at the first call of every batch shape.
        """
        self.pipe, self.name, self.suite, self.words, self.source = pipe, name, suite, words, source
        self.device, self.dtype = torch.device(device), as_dtype(dtype)
        self.encoders = [e for e in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)) if e is not None]
        self.tokenizers = [t for t in (pipe.tokenizer, getattr(pipe, "tokenizer_2", None)) if t is not None]
        self.is_xl = hasattr(pipe, "text_encoder_2")
        if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
            raise ValueError(
                f"{name or 'model'}: the UNet takes {pipe.unet.config.in_channels} channels and the VAE gives "
                f"{pipe.vae.config.latent_channels}; only plain text-to-image models are supported (no inpainting)"
            )
        self.fingerprint = self.loaded_as = fingerprint or tensor_fingerprint(pipe, self.dtype)
        # SDXL's VAE overflows in fp16.
        keep_vae = self.is_xl and self.dtype == torch.float16
        self.vae_dtype = as_dtype(vae_dtype) if vae_dtype is not None else torch.float32 if keep_vae else self.dtype
        for module in (pipe.unet, *self.encoders):
            _place(module, self.device, self.dtype)
        _place(pipe.vae, self.device, self.vae_dtype)
        # A run that finds everything stored should not wait for diffusers.
        from .inference import speed_up

        for network in (pipe.unet, pipe.vae):
            speed_up(network)
        # One compiled network serves all edits, which change weights in place.
        self._compiled = torch.compile(pipe.unet, dynamic=False) if compile else None
        self.factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
        self.size = size or pipe.unet.config.sample_size * self.factor
        self.calls = 0
        self.edit: Any = None
        self.untouched: Mapping[str, Tensor] = {}
        self._features: OrderedDict[str, Conditioning] = OrderedDict()
        self._warned_of_truncation = False

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
        name: str = "",
        suite: str = "",
        words: str = "",
        size: int | None = None,
        vae_dtype: str | torch.dtype | None = None,
        compile: bool = False,
        revision: str | None = None,
    ) -> DiffusionModel:
        """Load a diffusers folder, a single .safetensors file or a Hub id (local cache first, then one try online).

        Weights stored in another dtype are converted to `dtype`. A single file needs configs (`weights.configs_of`).

        Raises:
            ModelNotFound: nothing usable is there; the message says how to get it.
            UnsafeWeightsError: there are only pickled weights.
        """
        source, dtype = locate(path, revision), as_dtype(dtype)
        fingerprint = fingerprint_of(source, dtype, vae_dtype=vae_dtype, configs=configs_of(source))
        return cls(
            read_pipeline(source, dtype),
            device=device,
            dtype=dtype,
            name=name or Path(path).name,
            suite=suite,
            words=words,
            size=size,
            vae_dtype=vae_dtype,
            compile=compile,
            fingerprint=fingerprint,
            source=source,
        )

    @property
    def unet(self) -> nn.Module:
        return self.pipe.unet

    def layers(self, kind: str) -> dict[str, nn.Linear]:
        """The linear layers of one kind (see KINDS) in the UNet's transformer blocks, by module name, sorted."""
        if kind not in LAYER_SUFFIXES:
            raise unknown("layer kind", kind, KINDS)
        suffix = LAYER_SUFFIXES[kind]
        found = {
            name: module
            for name, module in self.unet.named_modules()
            if ".transformer_blocks." in name and name.endswith(suffix) and isinstance(module, nn.Linear)
        }
        if not found:
            raise ValueError(f"{self.name or 'model'}: its UNet has no layers of kind {kind!r}")
        return dict(sorted(found.items()))

    # Text

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Text features of the prompts, one row each, on the model's device.

        Every prompt is encoded by itself, so its features never depend on its neighbours, and is kept for the next
        time (the latest KEPT_PROMPTS prompts are).
        """
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"encode takes a non-empty list of prompts, got {prompts!r}")
        rows = []
        for prompt in prompts:
            if prompt not in self._features:
                self._keep(prompt, *self._encode_one(prompt))
            self._features.move_to_end(prompt)
            rows.append(self._features[prompt])
        return Conditioning.cat(rows)

    def knows(self, prompt: str) -> bool:
        """Whether `encode` would compute nothing for this prompt."""
        return prompt in self._features

    def text_tensors(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Features of the prompts as tensors to store, one row each: `hidden`, `pooled` (SDXL) and `lost` tokens."""
        found = [self._encode_one(prompt) for prompt in prompts]
        rows = Conditioning.cat([features for features, _ in found])
        tensors = {"hidden": rows.hidden, "lost": torch.tensor([lost for _, lost in found])}
        return tensors if rows.pooled is None else {**tensors, "pooled": rows.pooled}

    def learn(self, prompts: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Keep what `text_tensors` gave for these prompts, as if they had been encoded here."""
        pooled = _sent(tensors["pooled"], self.device) if "pooled" in tensors else None
        rows = Conditioning(_sent(tensors["hidden"], self.device), pooled)
        for number, (prompt, lost) in enumerate(zip(prompts, tensors["lost"].tolist(), strict=True)):
            row = rows[number : number + 1]
            # A copy, or a row that is kept would keep all others in memory.
            pooled = None if row.pooled is None else row.pooled.clone()
            self._keep(prompt, Conditioning(row.hidden.clone(), pooled), lost)

    def _keep(self, prompt: str, features: Conditioning, lost: int) -> None:
        if lost > 0 and not self._warned_of_truncation:
            self._warned_of_truncation = True
            length = features.hidden.shape[1]
            log.warning("prompts are cut after %d tokens; first: %r loses %d", length, prompt[:80], lost)
        self._features[prompt] = features
        self._features.move_to_end(prompt)
        if len(self._features) > KEPT_PROMPTS:
            self._features.popitem(last=False)

    def unconditional(self, n: int) -> Conditioning:
        """Features of "no prompt", n rows: the empty prompt, or zeros where the pipeline is configured so (SDXL)."""
        empty = self.encode([""])
        if self.pipe.config.get("force_zeros_for_empty_prompt"):
            pooled = None if empty.pooled is None else torch.zeros_like(empty.pooled)
            empty = Conditioning(torch.zeros_like(empty.hidden), pooled)
        return empty[[0] * n]

    def token_features(self, prompts: Sequence[str]) -> TokenFeatures:
        """Hidden states and the position of each prompt's last subject token."""
        return TokenFeatures(self.encode(prompts).hidden, torch.tensor(self.subject_tokens(prompts)))

    def subject_tokens(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has between start and end (attention_mask.sum() - 2); nothing is encoded."""
        return [int(self._tokens(self.tokenizers[0], prompt).attention_mask.sum()) - 2 for prompt in prompts]

    def _tokens(self, tokenizer: Any, prompt: str) -> Any:
        length = min(tokenizer.model_max_length, self.encoders[0].config.max_position_embeddings)
        return tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")

    # no_grad and not inference_mode, here and below: methods train on these tensors, which inference mode forbids.
    @torch.no_grad()
    def _encode_one(self, prompt: str) -> tuple[Conditioning, int]:
        """Features of one prompt, and how many of its tokens did not fit."""
        hidden, pooled, most = [], None, 0
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            ids = self._tokens(tokenizer, prompt).input_ids
            most = max(most, len(tokenizer(prompt, verbose=False).input_ids) - ids.shape[1])
            states = encoder(_sent(ids, self.device), output_hidden_states=self.is_xl)
            hidden.append(states.hidden_states[-2] if self.is_xl else states[0])
            if self.is_xl:
                pooled = states[0]  # the last encoder's, the one with a projection
        return Conditioning(torch.cat(hidden, dim=-1), pooled), most

    # Pictures

    def latents(self, seeds: Sequence[int], width: int | None = None, height: int | None = None) -> Tensor:
        """Starting noise [n, channels, height / factor, width / factor] in the model's dtype, one generator per seed.

        Drawn on the CPU in float32, so that a seed means the same noise on every device, and at unit variance: the
        sampler's initial scale is applied by `denoise`. Seeds below 2**32 give what `torch.manual_seed` gives; torch
        ignores higher bits, so larger seeds (to 2**64 - 1) are hashed to 32 bits first.
        """
        width, height = width or self.size, height or self.size
        if width % self.factor or height % self.factor:
            raise ValueError(f"picture sizes must be multiples of {self.factor}, got {width} x {height}")
        shape = (self.pipe.unet.config.in_channels, height // self.factor, width // self.factor)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(_seed32(seed))) for seed in seeds]
        return _sent(torch.stack(noise).to(self.dtype), self.device)

    def denoise(
        self,
        conditioning: Conditioning,
        latents: Tensor,
        sampler: Sampler,
        guidance: float | Sequence[float] | Tensor,
        *,
        size: tuple[int, int] | None = None,
        stop_after: int | None = None,
        on_call: Callable[[int, float], None] | None = None,
        both_halves: bool = False,
        same_start: bool = False,
        in_threads: bool = False,
    ) -> Tensor:
        """Unit-variance noise in, latents out, both [n, channels, h, w]: a whole `trajectory` at once.

        Args:
            conditioning: features of n prompts.
            guidance: one scale, or one per row.
            size: (width, height) in pixels told to SDXL; by default the latents' own.
            stop_after: return the latents as they are after this many UNet calls.
            on_call: `on_call(i, timestep)` runs before UNet call i; it must not change weights.
            both_halves, same_start, in_threads: see `trajectory`.
        """
        walk = self.trajectory(
            conditioning, latents, sampler, guidance,
            size=size, on_call=on_call, both_halves=both_halves, same_start=same_start, keep_text=True,
            in_threads=in_threads,
        )  # fmt: skip
        return deque(itertools.islice(walk, None if stop_after is None else stop_after + 1), maxlen=1).pop()

    @torch.no_grad()
    def trajectory(
        self,
        conditioning: Conditioning,
        latents: Tensor,
        sampler: Sampler,
        guidance: float | Sequence[float] | Tensor,
        *,
        size: tuple[int, int] | None = None,
        on_call: Callable[[int, float], None] | None = None,
        both_halves: bool = False,
        same_start: bool = False,
        ends_with: tuple[int, str] | None = None,
        keep_text: bool = False,
        in_threads: bool = False,
    ) -> Iterator[Tensor]:
        """The one denoising loop: yields the scaled starting latents, then the latents after every UNet call.

        It advances only when the next latents are asked for, so many batches can walk in step.

        Each UNet call sees the batch [unconditional half; conditional half], but for `same_start` and `ends_with`. When
        every guidance is exactly 1 the unconditional half would not count and only the conditional half runs, unless
        `both_halves` asks for it.
        No noise is added on the way (DDIM's eta is 0), so the starting latents decide everything.

        Arguments as in `denoise`, and:

        Args:
            same_start: the latents are the same in every row. Then the unconditional half of the first call is one row
                instead of n: its batch is [1 unconditional row; conditional half].
            ends_with: (i, `cond` or `uncond`): the walk ends with call i, for somebody who reads this half inside the
                UNet. Only its rows run; guidance would want both, so the latents before that call are yielded again.
            keep_text: the text's keys and values of the first call serve all others. Nobody may change weights until
                the walk ends, and they take memory that long: 8 MB a guided picture for SD 1.x in float16.
            in_threads: on a CPU, every thread computes a share of the batch by itself (`by_threads`). While
                anything is hooked all compute together, because a hook wants to see the whole batch.
        """
        rows = len(latents)
        if len(conditioning) != rows:
            raise ValueError(f"{len(conditioning)} prompts for {rows} latents")
        last, half = ends_with or (None, "")
        scale = torch.as_tensor(guidance, dtype=torch.float32).expand(rows)
        guided = both_halves or ends_with is not None or bool((scale != 1).any())
        scale = scale.to(self.device, self.dtype).view(rows, 1, 1, 1)
        text = Conditioning.cat([self.unconditional(rows), conditioning]) if guided else conditioning
        whole = slice(0, len(text))
        extra = self._size_conditioning(text, latents, size)
        scheduler = self.scheduler(sampler)
        latents = latents.to(self.device, self.dtype) * scheduler.init_noise_sigma
        kept: dict[tuple[int, int], Kept] | None = {} if keep_text else None
        if same_start and not torch.equal(latents, latents[:1].expand_as(latents)):
            raise ValueError("same_start: the rows of the latents differ")
        yield latents
        # Of every timestep one on the device, for the UNet, which would else wait there for the call before.
        there = _sent(scheduler.timesteps, self.device)
        for i, (t, t_there) in enumerate(zip(scheduler.timesteps, there, strict=True)):
            if on_call is not None:
                on_call(i, t.item())
            run = whole
            if i == last:
                run = slice(0, rows) if half == "uncond" else slice(rows, 2 * rows)
            elif same_start and guided and i == 0:
                run = slice(rows - 1, 2 * rows)  # the unconditional rows before this one would only repeat it
            batch = torch.cat([latents, latents])[run] if guided else latents
            batch = scheduler.scale_model_input(batch, t)
            keeping = kept if run == whole else None
            predicted = self._forward(batch, t_there, text.hidden[run], keeping, _rows(extra, run), in_threads)
            self.calls += len(batch)
            if i == last:
                yield latents
                return
            if guided:
                without, with_prompt = predicted.split([len(batch) - rows, rows])
                predicted = without + scale * (with_prompt - without)
            latents = scheduler.step(predicted, t, latents, return_dict=False)[0]
            yield latents

    def _forward(
        self,
        batch: Tensor,
        t: Tensor,
        text: Tensor,
        kept: dict[tuple[int, int], Kept] | None,
        extra: dict[str, Any],
        in_threads: bool,
    ) -> Tensor:
        """One UNet call of the denoising loop; the compiled UNet would not run hooks that were set since."""
        if self.device.type != "mps":
            batch = batch.contiguous(memory_format=torch.channels_last)
        free = not any(map(is_hooked, self.unet.modules()))
        if self._compiled is not None and free:
            return self._compiled(batch, t, encoder_hidden_states=text, return_dict=False, **extra)[0]

        def compute(rows: slice) -> Tensor:
            keeping = None if kept is None else {"kept": kept.setdefault((rows.start, rows.stop), {})}
            return self.unet(
                batch[rows],
                t,
                encoder_hidden_states=text[rows],
                cross_attention_kwargs=keeping,
                return_dict=False,
                **_rows(extra, rows),
            )[0]

        return by_threads(compute, len(batch), self.device) if in_threads and free else compute(slice(0, len(batch)))

    def scheduler(self, sampler: Sampler) -> Any:
        """A fresh diffusers scheduler of this model's noise schedule, with the sampler's timesteps set."""
        scheduler = sampler.scheduler(self.pipe.scheduler.config)
        # Timesteps stay on the CPU: the scheduler looks them up in its tables without waiting for the device.
        scheduler.set_timesteps(sampler.steps)
        return scheduler

    def predict(
        self, z_t: Tensor, t: Tensor, conditioning: Conditioning, *, size: tuple[int, int] | None = None
    ) -> Tensor:
        """One UNet call on noised latents, with gradients where the caller has them on; equal bits with and without.

        Args:
            z_t: [n, channels, h, w], at the scale of a variance-preserving scheduler such as DDIM's.
            t: [n] timesteps.
            conditioning: features of n prompts.
            size: (width, height) in pixels told to SDXL; by default the latents' own.

        Returns:
            [n, channels, h, w].
        """
        extra = self._size_conditioning(conditioning, z_t, size)
        self.calls += len(z_t)
        from .inference import as_stock

        with as_stock():
            return self.unet(z_t, t, encoder_hidden_states=conditioning.hidden, return_dict=False, **extra)[0]

    def _size_conditioning(self, text: Conditioning, latents: Tensor, size: tuple[int, int] | None) -> dict[str, Any]:
        if text.pooled is None:
            return {}
        width, height = size or (latents.shape[-1] * self.factor, latents.shape[-2] * self.factor)
        # Original size, crop corner, target size: an uncropped picture of the size that is made.
        row = torch.tensor([height, width, 0, 0, height, width], dtype=self.dtype, device=self.device)
        return {"added_cond_kwargs": {"text_embeds": text.pooled, "time_ids": row.repeat(len(text), 1)}}

    @torch.no_grad()
    def decode(self, latents: Tensor, *, nan_to_black: bool = False) -> Tensor:
        """Pictures of denoised latents: uint8 [n, height, width, 3] on the CPU.

        Args:
            nan_to_black: a picture with NaN or infinity becomes black instead of an error (a broken edit's result).

        Raises:
            FloatingPointError: latents or pictures hold NaN or infinity.
        """
        config = self.pipe.vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        pictures = []
        for part in latents.to(self.device).split(DECODE_BATCH):
            whole = torch.isfinite(part).flatten(1).all(1)
            part = torch.where(whole.view(-1, 1, 1, 1), part, 0).to(self.vae_dtype) / config.scaling_factor
            if mean is not None and std is not None:
                part = part * part.new_tensor(std).view(1, -1, 1, 1) + part.new_tensor(mean).view(1, -1, 1, 1)
            decoded = self._decode(part).float()
            whole &= torch.isfinite(decoded).flatten(1).all(1)
            if not whole.all() and not nan_to_black:
                raise FloatingPointError(
                    f"{int((~whole).sum())} of {len(whole)} pictures hold NaN or infinity ({self.name or 'model'}, "
                    f"dtype {self.dtype}); try dtype=float32 or bfloat16"
                )
            decoded = (decoded / 2 + 0.5).clamp(0, 1).mul(255).round()
            decoded = torch.where(whole.view(-1, 1, 1, 1), decoded, 0).to(torch.uint8)
            pictures.append(decoded.permute(0, 2, 3, 1).cpu())
        return torch.cat(pictures)

    def _decode(self, latents: Tensor) -> Tensor:
        def compute(rows: slice) -> Tensor:
            return self.pipe.vae.decode(latents[rows], return_dict=False)[0]

        return by_threads(compute, len(latents), self.device)

    @torch.no_grad()
    def encode_images(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's posterior, at the scale of the latents that `denoise` gives.

        Args:
            pictures: uint8 [n, height, width, 3], with sides that are multiples of `factor`.

        Returns:
            Twice [n, channels, height / factor, width / factor], float32 on the model's device. A latent is
            `mean + std * noise`.

        Raises:
            FloatingPointError: a latent holds NaN or infinity.
        """
        height, width = pictures.shape[1:3]
        if height % self.factor or width % self.factor:
            raise ValueError(f"picture sizes must be multiples of {self.factor}, got {width} x {height}")
        config = self.pipe.vae.config
        shift, scale = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        means, stds = [], []
        for part in pictures.split(DECODE_BATCH):
            scaled = part.to(self.device).permute(0, 3, 1, 2).to(self.vae_dtype) / 127.5 - 1
            posterior = self.pipe.vae.encode(scaled).latent_dist
            mean, std = posterior.mean.float(), posterior.std.float()
            if shift is not None and scale is not None:
                spread = mean.new_tensor(scale).view(1, -1, 1, 1)
                mean, std = (mean - mean.new_tensor(shift).view(1, -1, 1, 1)) / spread, std / spread
            means.append(mean * config.scaling_factor)
            stds.append(std * config.scaling_factor)
        mean, std = torch.cat(means), torch.cat(stds)
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise FloatingPointError(
                f"latents of pictures hold NaN or infinity ({self.name or 'model'}, VAE in {self.vae_dtype}); try "
                "vae_dtype=float32"
            )
        return mean, std


class LazyModel:
    """A model that is known by its files and loaded on the first call.

    The pipeline asks stores for edits and pictures under `fingerprint`; only when something must be computed does it
    call this object, which returns the loaded DiffusionModel (always the same one).

    Raises:
        ModelNotFound, UnsafeWeightsError: already on construction.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        """Take the arguments of `DiffusionModel.load`."""
        self.options = {"dtype": torch.float32, **options}
        self.path = locate(path, self.options.pop("revision", None))
        self.name = self.options.setdefault("name", Path(path).name)
        self.suite, self.words = self.options.get("suite", ""), self.options.get("words", "")
        self._configs = configs_of(self.path)
        self.fingerprint = fingerprint_of(
            self.path, self.options["dtype"], vae_dtype=self.options.get("vae_dtype"), configs=self._configs
        )
        self._model: DiffusionModel | None = None

    def __call__(self) -> DiffusionModel:
        if self._model is None:
            log.info("loading %s from %s", self.name, self.path)
            self._model = DiffusionModel.load(self.path, **self.options)
        return self._model

    @property
    def loaded(self) -> bool:
        return self._model is not None

    @property
    def calls(self) -> int:
        """UNet calls so far, as in DiffusionModel; 0 while nothing is loaded."""
        return self._model.calls if self._model else 0

    @property
    def size(self) -> int:
        """Width and height in pixels of a picture whose prompt row names none, by default the configs'."""
        return self.options.get("size") or default_size(self._configs)


@dataclass(frozen=True)
class AbsentModel:
    """Stands in for a LazyModel in a dry run whose model is not on this machine: nothing of it can be stored.

    Attributes:
        name, words, size: as DiffusionModel's.
        reason: why it is not here, and how to get it.
    """

    name: str
    words: str
    size: int
    reason: str
    fingerprint: str = "absent"

    def __call__(self) -> DiffusionModel:
        raise ModelNotFound(self.reason)


def _rows(extra: Mapping[str, Mapping[str, Tensor]], rows: slice) -> dict[str, dict[str, Tensor]]:
    """These rows of what SDXL's UNet is told beside the text."""
    return {name: {key: x[rows] for key, x in conditions.items()} for name, conditions in extra.items()}


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """`x`, which is on the CPU, on the device; from pageable memory a copy to CUDA waits for all that runs there."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def _place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    module.to(device).eval().requires_grad_(False)
    if any(p.dtype != dtype for p in module.parameters()):
        module.to(dtype)


def _seed32(seed: int) -> int:
    if not 0 <= seed < 2**64:
        raise ValueError(f"seeds are integers from 0 to 2**64 - 1, got {seed}")
    if seed < 2**32:
        return int(seed)
    return int.from_bytes(hashlib.sha256(int(seed).to_bytes(8, "big")).digest()[:4], "big")
