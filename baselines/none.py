"""The unedited model as a method: the row that every other method is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.edit import Edit
from harness.method import Stage
from harness.model import DiffusionModel
from harness.task import Concept


@dataclass
class Unedited:
    """Forgets nothing, on purpose."""

    name: str = "none"

    version: ClassVar[int] = 1

    def edit(self, model: DiffusionModel, concepts: Sequence[Concept], seed: int, stage: Stage) -> Edit:
        """The edit of kind `none`."""
        info = {"method": self.name, "version": self.version, "config": {}, "concepts": []}
        return Edit.make("none", {}, model, info)
