"""A small pipeline as one .safetensors file in the layout of the original SD and SDXL releases."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
UNET_ENDS = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}
VAE = {
    "conv_shortcut.": "nin_shortcut.",
    "conv_norm_out.": "norm_out.",
    "mid_block.resnets.0.": "mid.block_1.",
    "mid_block.resnets.1.": "mid.block_2.",
    "mid_block.attentions.0.group_norm.": "mid.attn_1.norm.",
    "mid_block.attentions.0.to_out.0.": "mid.attn_1.proj_out.",
    "mid_block.attentions.0.to_": "mid.attn_1.",
    ".resnets.": ".block.",
    ".downsamplers.0.": ".downsample.",
    ".upsamplers.0.": ".upsample.",
    "encoder.down_blocks.": "encoder.down.",
}
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    ".fc1.": ".c_fc.",
    ".fc2.": ".c_proj.",
    "self_attn.": "attn.",
}


def save_single_file(pipe: StableDiffusionPipeline | StableDiffusionXLPipeline, path: Path) -> Path:
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in _unet(pipe.unet).items()}
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in _vae(pipe.vae).items()}
    if isinstance(pipe, StableDiffusionXLPipeline):
        tensors |= _clip(pipe.text_encoder, "conditioner.embedders.0.transformer.text_model.")
        tensors |= _open_clip(pipe.text_encoder_2, "conditioner.embedders.1.model.")
    else:
        tensors |= _clip(pipe.text_encoder, "cond_stage_model.transformer.text_model.")
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def _replaced(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def _unet(unet: torch.nn.Module) -> dict[str, Tensor]:
    per_block = unet.config.layers_per_block + 1

    def place(match: re.Match) -> str:
        way, block, part, layer = match["way"], int(match["block"]), match["part"], int(match["layer"])
        start = 1 + block * per_block if way == "down" else block * per_block
        blocks = "input_blocks" if way == "down" else "output_blocks"
        if part == "resnets":
            return f"{blocks}.{start + layer}.0."
        if part == "attentions":
            return f"{blocks}.{start + layer}.1."
        if part == "downsamplers":
            return f"{blocks}.{start + per_block - 1}.0.op."
        attends = hasattr(unet.up_blocks[block], "attentions")
        return f"{blocks}.{start + per_block - 1}.{2 if attends else 1}.conv."

    pattern = re.compile(
        r"^(?P<way>down|up)_blocks\.(?P<block>\d+)\.(?P<part>resnets|attentions|downsamplers|upsamplers)"
        r"\.(?P<layer>\d+)\.(conv\.)?"
    )
    found = {}
    for name, tensor in unet.state_dict().items():
        new = _replaced(name, RESNET) if ".resnets." in name else name
        ends = next(((old, to) for old, to in UNET_ENDS.items() if new.startswith(old)), None)
        found[ends[1] + new.removeprefix(ends[0]) if ends else pattern.sub(place, new)] = tensor
    return found


def _vae(vae: torch.nn.Module) -> dict[str, Tensor]:
    last = len(vae.config.up_block_types) - 1
    found = {}
    for name, tensor in vae.state_dict().items():
        new = re.sub(r"decoder\.up_blocks\.(\d+)\.", lambda match: f"decoder.up.{last - int(match[1])}.", name)
        # The attention's projections were 1 x 1 convolutions.
        is_projection = ".attentions.0.to_" in name and name.endswith(".weight")
        found[_replaced(new, VAE)] = tensor[:, :, None, None] if is_projection else tensor
    return found


def _clip(encoder: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}


def _open_clip(encoder: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    plain = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    found = {prefix + "text_projection": plain.pop("text_projection.weight").T}
    for name in [name for name in plain if ".q_proj." in name]:
        kind = name.rpartition(".")[2]
        joined = torch.cat([plain.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"])
        found[prefix + _replaced(name, OPEN_CLIP).replace(f"q_proj.{kind}", f"in_proj_{kind}")] = joined
    return found | {prefix + _replaced(name, OPEN_CLIP): tensor for name, tensor in plain.items()}
