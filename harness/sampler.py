"""Samplers by name: which diffusers scheduler, how many steps (conf/sampler/*.yaml)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .names import unknown

# Settings that a latent diffusion model always needs, whatever its own scheduler's config leaves out: latents are not
# clipped to [-1, 1], and PNDM skips the Runge-Kutta start (four calls a step) as the SD 1.x releases do.
_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
}
# SD 1.x, SDXL and the tiny world were trained on timesteps 0 to 999, and their releases count sampling steps from
# timestep 1 on: a thousandth step would ask for timestep 1000. dpm++ leaves out one more.
MOST_STEPS = 999


@dataclass(frozen=True)
class Sampler:
    """How latents are denoised.

    Attributes:
        name: ddim, pndm, lms, euler or dpm++.
        steps: number of inference steps, 1 to 999 (dpm++: 998).
        guidance: classifier-free guidance scale used where a prompt row has none.
    """

    name: str
    steps: int
    guidance: float

    def __post_init__(self) -> None:
        if self.name not in _SCHEDULERS:
            raise unknown("sampler", self.name, _SCHEDULERS)
        most = MOST_STEPS - (self.name == "dpm++")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 1 <= self.steps <= most:
            raise ValueError(f"sampler.steps: {self.name} takes a whole number from 1 to {most}, got {self.steps!r}")
        number = isinstance(self.guidance, int | float) and not isinstance(self.guidance, bool)
        if not number or not math.isfinite(self.guidance) or self.guidance < 0:
            raise ValueError(f"sampler.guidance must be a finite number >= 0 (1: no guidance), got {self.guidance!r}")

    def scheduler(self, config: Mapping[str, Any]) -> Any:
        """A fresh diffusers scheduler with the noise schedule and prediction type of `config`.

        Schedulers keep state between steps (PNDM and LMS remember past predictions), so every denoising takes its own.
        """
        import diffusers

        class_name, settings = _SCHEDULERS[self.name]
        return getattr(diffusers, class_name).from_config(config, **settings)

    def calls(self) -> int:
        """UNet calls of one image: PNDM visits its second timestep twice."""
        return self.steps + 1 if self.name == "pndm" and self.steps > 1 else self.steps
