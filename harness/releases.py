"""Published model releases: which revision is meant, and the sha256 of its weight files.

A record says whether the files of a run are the published ones. Only weights are compared: configs and tokenizers are
part of the model's fingerprint. Not every file of every release has a digest here; what has none stays unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# The name under which a whole model in one file is compared, whatever the file is called.
SINGLE_FILE = "*.safetensors"


@dataclass(frozen=True)
class Release:
    """One revision of a Hub repository.

    Attributes:
        revision: the commit.
        files: hex sha256 by name inside the diffusers folder; `SINGLE_FILE` for the same weights in one file.
    """

    revision: str
    files: Mapping[str, str]

    def holds(self, digests: Mapping[str, str]) -> bool:
        """Whether every file is known to be the release's."""
        return bool(digests) and all(self.files.get(name) == digest for name, digest in digests.items())

    def wrong(self, digests: Mapping[str, str]) -> list[str]:
        """Names of files that are known to be other than the release's."""
        return sorted(name for name, digest in digests.items() if self.files.get(name, digest) != digest)


# By Hub id. The digests are those of the Hub's own listings; `CompVis/stable-diffusion-v1-4` is loaded without any.
RELEASES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Release(
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        files={
            "unet/diffusion_pytorch_model.safetensors": (
                "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1"
            ),
            "unet/diffusion_pytorch_model.fp16.safetensors": (
                "c83908253f9a64d08c25fc90874c9c8aef9a329ce1ca5fb909d73b0c83d1ea21"
            ),
            "vae/diffusion_pytorch_model.safetensors": (
                "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c"
            ),
            "text_encoder/model.safetensors": "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334",
            SINGLE_FILE: "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa",
        },
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": Release(
        revision="462165984030d82259a11f4367a4eed129e94a7b",
        files={SINGLE_FILE: "31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b"},
    ),
}
