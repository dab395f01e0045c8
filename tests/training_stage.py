"""What the tests of training methods share: a stage in memory, and weights to compare."""

from __future__ import annotations

import torch

from harness.method import Scratch


class Stage(dict):
    """Keeps what is made, and `folder` as the place of unfinished work where it is set."""

    folder = None

    def __call__(self, name, key, make):
        at = (name, repr(sorted(key.items())))
        if at not in self:
            self[at] = make()
        return self[at]

    def scratch(self, name, key):
        return self.folder and Scratch(self.folder / name)

    def only(self, name):
        """The one artefact of this name."""
        (found,) = (made for (kind, _), made in self.items() if kind == name)
        return found


def weights(model):
    """Copies of the UNet's parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in model.unet.named_parameters()}


def same_weights(one, other):
    """Whether two sets of weights, or a model and such a set, agree bit for bit."""
    one = one if isinstance(one, dict) else weights(one)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
