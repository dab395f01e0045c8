"""Classification accuracy: what a judge still names (forget accuracy) and what it names after all (preserve accuracy).

Scoring is by class index, top-1: a picture counts as its class if the judge's best label is the class's own name or one
of the labels that the task accepts for it (`Task.accepted`). Names are compared as a whole without regard to case. The
containment rule of published code, under which a "gar" counts as a garbage truck, is there for parity only.

Rows hold what the judge says, with the five best labels; rules are applied when they are summed up, so another rule or
other accepted labels need neither new pictures nor a new look at them.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pandas as pd
import torch

from .compare import accuracy_differences, cells, matched, share_difference
from .repeats import CLASS_SHARE, Rule
from .stats import Interval, macro_mean, overall_score, wilson
from .values import ALL, Differences, Judge, Value, by_class, check_images, check_scores

if TYPE_CHECKING:
    from harness.generate import ImageSet
    from harness.task import Task

TOP = 5
RULES = ("index", "containment")


def class_index(name: str, labels: tuple[str, ...], judge: str) -> int:
    """Position of a class name among a judge's labels.

    Raises:
        ValueError: No label, or more than one, has this name.
    """
    found = [i for i, label in enumerate(labels) if label.casefold() == name.casefold()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{judge} has {len(found)} labels named {name!r}: indices {found}")
    near = difflib.get_close_matches(name, labels, n=3)
    hint = f"; near matches: {', '.join(near)}" if near else ""
    raise ValueError(f"{judge} has no label {name!r} among its {len(labels)}{hint}")


def contained(name: str, label: str) -> bool:
    """The rule of FIA's and ScaPre's released code: in lower case, one of the two strings contains the other."""
    name, label = name.lower(), label.lower()
    return name in label or label in name


@dataclass
class Classify:
    """Accuracy of one judge's head on the pictures of the task's classes.

    Attributes:
        judge: The classifier.
        set: The prompt set that is scored; its rows' `label` is the class asked for.
        head: Which of the judge's heads; the first one if left out. Ids name it only where it is not the first.
        rule: When a label counts as a class: `index` (see above), or `containment` (`contained`; accepted labels do not
            enter), which ids name.
    """

    judge: Judge
    set: str = "classes"
    head: str = ""
    rule: str = "index"
    version: ClassVar[int] = 2
    repeated: ClassVar[Mapping[str, Rule]] = dict.fromkeys(
        ("forget_accuracy", "preserve_accuracy", "overall_score"), CLASS_SHARE
    )

    def __post_init__(self) -> None:
        heads = tuple(self.judge.labels)
        self.head = self.head or heads[0]
        if self.head not in heads:
            raise ValueError(f"{self.judge.id} has the heads {', '.join(heads)}; head={self.head!r} is none of them")
        if self.rule not in RULES:
            raise ValueError(f"rule={self.rule!r} of a classification is none of {', '.join(RULES)}")

    @property
    def _judge_and_head(self) -> str:
        first = next(iter(self.judge.labels))
        return self.judge.id if self.head == first else f"{self.judge.id}/{self.head}"

    @property
    def scorer(self) -> str:
        """The part of every value's id that says who judged, and by which rule where it is not the index."""
        return self._judge_and_head if self.rule == "index" else f"{self._judge_and_head}/{self.rule}"

    @property
    def id(self) -> str:
        """Of the rows, which all rules share."""
        return f"classify/{self._judge_and_head}"

    @property
    def fingerprint(self) -> str:
        return self.judge.fingerprint

    @property
    def sha256(self) -> str:
        """Of the judge's weights, for the record."""
        return self.fingerprint or getattr(self.judge, "sha256", "")

    def check(self, task: Task) -> None:
        """Raise ValueError unless the judge knows every class of the task, before a picture is made."""
        for name in (*task.forget, *task.keep):
            try:
                self._indices(name, task)
            except ValueError as error:
                raise ValueError(f"task {task.name}: {error}; choose another task, or a suite that judges it") from None

    def rows(self, images: ImageSet, reference: ImageSet | None = None) -> pd.DataFrame:
        """Columns: label (of the class asked for), predicted (index), predicted_name, probability (of the predicted),
        top5 (indices, best first, joined by blanks) and `draw` (prompt and seed: equal where a picture is the same)."""
        check_images(images)
        labels, rows = self.judge.labels[self.head], images.prompts.rows
        chances = _logits(self.judge, self.head, images).double().softmax(1)
        scores, best = chances.topk(min(TOP, len(labels)), dim=1)
        predicted = best[:, 0].tolist()
        return pd.DataFrame(
            {
                "label": [row.label for row in rows],
                "predicted": predicted,
                "predicted_name": [labels[i] for i in predicted],
                "probability": scores[:, 0].tolist(),
                "top5": [" ".join(map(str, line)) for line in best.tolist()],
                "draw": [f"{row.seed} {row.prompt}" for row in rows],
            },
            index=pd.Index([row.id for row in rows], name="id"),
        )

    def summarise(self, rows: pd.DataFrame, task: Task, reference_rows: pd.DataFrame | None = None) -> list[Value]:
        """Forget and preserve accuracy by class and as macro means, and the overall score where there are both.

        Raises:
            ValueError: A class of the task has no picture or no label, or a picture's class belongs to no side of it.
        """
        sides = {"forget_accuracy": (task.forget, False), "preserve_accuracy": (task.keep, True)}
        parts = self.judged(rows, task)
        values: list[Value] = []
        means: dict[str, tuple[Interval, int]] = {}
        for family, (names, better) in sides.items():
            counts, n = [], 0
            for name in names:
                part = parts[name]
                counts.append(count(part))
                n += len(part)
                values.append(Value(f"{family}/{self.scorer}", name, *_first(wilson(*counts[-1]), len(part)), better))
            if counts:
                means[family] = macro_mean(counts), n
                values.append(Value(f"{family}/{self.scorer}", ALL, *_first(*means[family]), better))
        if len(means) == 2:
            (forget, n_forget), (preserve, n_keep) = means["forget_accuracy"], means["preserve_accuracy"]
            score = overall_score(preserve, forget)
            values.append(Value(f"overall_score/{self.scorer}", ALL, *_first(score, n_forget + n_keep), True))
        return values

    def differences(self, rows: pd.DataFrame, other: pd.DataFrame, task: Task) -> Differences:
        """Of all values, to another model's rows of the same prompts and seeds; see `compare`."""
        return accuracy_differences(self, rows, other, task)

    def judged(self, rows: pd.DataFrame, task: Task) -> dict[str, pd.DataFrame]:
        """The rows of every class of the task, with `correct`: 1 where the judge's best label counts as the class."""
        return {
            name: part.assign(correct=part["predicted"].isin(self._indices(name, task)).astype(int))
            for name, part in by_class(rows, task, self.set).items()
        }

    def _indices(self, name: str, task: Task) -> Collection[int]:
        """The indices that count as the class, under the rule."""
        labels = self.judge.labels[self.head]
        if self.rule == "containment":
            return {i for i, label in enumerate(labels) if contained(name, label)}
        return {class_index(label, labels, self.judge.id) for label in task.accepted.get(name, (name,))}


def _logits(judge: Judge, head: str, images: ImageSet) -> torch.Tensor:
    """A judge's logits [n, labels]; raises FloatingPointError where they hold NaN or infinity."""
    logits = judge.logits(images.images)[head]
    check_scores(judge.id, logits)
    return logits


def count(part: pd.DataFrame) -> tuple[float, int]:
    """(k, n): n different pictures, k of them correct.

    Published lists repeat seeds inside a class. A repeated picture keeps its weight in the share k / n, as in the
    papers, but it tells nothing new, so n counts pictures of the same prompt and seed once.
    """
    different = int(part["draw"].nunique())
    return float(part["correct"].sum()) * different / len(part), different


def _first(interval: Interval, n: int) -> tuple[float, int, float | None, float | None]:
    """An interval in the order of Value's fields."""
    return interval.value, n, interval.low, interval.high


@dataclass
class Agreement:
    """How often two differently built judges name the same class: far below its value on plain pictures, neither of
    them should be believed, for instance where a method leaves something that only one network still recognises.

    Attributes:
        judge: The judge that the accuracies come from.
        second: The other one, with the same labels.
        set: The prompt set that is scored.
    """

    judge: Judge
    second: Judge
    set: str = "classes"
    version: ClassVar[int] = 1
    repeated: ClassVar[Mapping[str, Rule]] = {"judge_agreement": CLASS_SHARE}

    def __post_init__(self) -> None:
        self.head, self.second_head = next(iter(self.judge.labels)), next(iter(self.second.labels))
        if self.judge.labels[self.head] != self.second.labels[self.second_head]:
            raise ValueError(f"{self.judge.id} and {self.second.id} have different labels; they cannot agree")

    @property
    def id(self) -> str:
        return f"judge_agreement/{self.judge.id}+{self.second.id}"

    @property
    def fingerprint(self) -> str:
        return f"{self.judge.fingerprint}{self.second.fingerprint}"

    def rows(self, images: ImageSet, reference: ImageSet | None = None) -> pd.DataFrame:
        """Columns: first and second (indices), correct (1 where they are equal), draw."""
        check_images(images)
        first = _logits(self.judge, self.head, images).argmax(1)
        second = _logits(self.second, self.second_head, images).argmax(1)
        return pd.DataFrame(
            {
                "first": first.tolist(),
                "second": second.tolist(),
                "correct": (first == second).int().tolist(),
                "draw": [f"{row.seed} {row.prompt}" for row in images.prompts.rows],
            },
            index=pd.Index([row.id for row in images.prompts.rows], name="id"),
        )

    def summarise(self, rows: pd.DataFrame, task: Task, reference_rows: pd.DataFrame | None = None) -> list[Value]:
        """The share of equal verdicts over all pictures."""
        return [Value(self.id, ALL, *_first(wilson(*count(rows)), len(rows)), None)]

    def differences(self, rows: pd.DataFrame, other: pd.DataFrame, task: Task) -> Differences:
        """Of the share, to another model's rows of the same prompts and seeds."""
        return {(self.id, ALL): share_difference([cells(rows, matched(rows, other, ("draw",)))])}
