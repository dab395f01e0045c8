"""Goals of the benchmark of speed: a number, what it should at most or at least be, and whether it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Goal:
    """One number of a measurement, with its limit: the most it should be, or with `least` the least."""

    what: str
    value: float
    limit: float
    least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.least else self.value <= self.limit

    def __str__(self) -> str:
        return f"{self.what} is {self.value:.4g}, the goal is at {'least' if self.least else 'most'} {self.limit:.4g}"


def rows(goals: Iterable[Goal]) -> list[str]:
    """The goals as rows of a table."""
    return [
        f"| goal of {goal.what}: at {'least' if goal.least else 'most'} {goal.limit:.4g} | "
        f"{'met' if goal.met else 'missed'} |"
        for goal in goals
    ]


def missed(goals: Iterable[Goal]) -> str:
    """The goals that were missed, in words; empty where none was."""
    return "; ".join(str(goal) for goal in goals if not goal.met)


def as_json(goals: Iterable[Goal]) -> list[Mapping[str, Any]]:
    """The goals with whether each was met."""
    return [{**asdict(goal), "met": goal.met} for goal in goals]
