"""What a layer receives, read while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn


@contextmanager
def reading_inputs(layers: Mapping[str, nn.Module], read: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `read(name, input)` before every forward pass of every layer, until the block is left, by an error too.

    `read` should reduce what it sees at once: one UNet call of SD 1.x feeds 180 MB to the second feed-forward
    projections in float16.
    """

    def reader(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda layer, args: read(name, args[0])

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(reader(name)).remove)
        yield


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody reads or changes what goes in or out of the module."""
    return bool(module._forward_pre_hooks or module._forward_hooks)
