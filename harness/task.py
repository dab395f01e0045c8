"""Tasks: what to forget, what to keep, and the prompts whose pictures are scored.

`class_task` is what `conf/task/*.yaml` instantiate. A quality prompt set comes from a provider that the suite's
config names: any callable `provider(n: int, split: str) -> list[tuple[prompt: str, seed: int]]` that returns at most
`n` pairs, always the same for the same arguments and none of them in both splits.

Splits: settings are chosen on `tuning` and reported on `test`. The two use different prompts and different seeds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from . import sources
from .names import unknown
from .prompts import CLASS_TEMPLATES, KINDS, class_prompt
from .screen import is_sexual, require_unscreened, screen_rows
from .seeds import own_seed, repeat_seed
from .store import content_key

SPLITS = ("tuning", "test")
# Published lists with a `class` column, by the name that tasks and metric ids give them.
PUBLISHED = {"A": "imagenette_a", "B": "imagenette_b", "diversi50": "diversi50"}
PROMPTS = ("neutral", *PUBLISHED)
MAX_NAME = 200  # characters; a longer "concept" is a pasted prompt or a mistake
# Starting noise has 32 bits of seed (`DiffusionModel.latents`), and pictures of a class share their prompt: the chance
# that two of them are the same is 1 % among 10,000 and one half among 77,000. Row ids have as many digits.
MAX_PICTURES = 10_000
MAX_CAPTIONS = 100_000

Provider = Callable[[int, str], list[tuple[str, int]]]


@dataclass(frozen=True)
class Concept:
    """Something to forget.

    Attributes:
        name: as it stands in prompts.
        kind: object, style or explicit; it chooses templates and word lists.
    """

    name: str
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of concept", self.kind, KINDS)
        _check_name(self.name)
        require_unscreened(self.name, self.kind == "explicit", f"the concept {self.name!r}")


@dataclass(frozen=True)
class Row:
    """One picture to make.

    Attributes:
        id: unique in its set, such as `test/parachute/0007`.
        prompt: the text.
        seed: of the picture's own generator, 0 to 2^63 - 1.
        guidance: None means the sampler's.
        width, height: pixels; None means the model's.
        label: the class the picture should show; empty for captions.
    """

    id: str
    prompt: str
    seed: int
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError(f"the row with prompt {self.prompt!r} has an empty id")
        if not isinstance(self.prompt, str):  # a table reader's NaN
            raise ValueError(f"row {self.id}: the prompt {self.prompt!r} is not text")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"row {self.id}: seed {self.seed!r} is not an integer from 0 to 2^63 - 1")


@dataclass(frozen=True)
class PromptSet:
    """Rows in a fixed order. Nothing that the prompt screen refuses can be in one.

    Attributes:
        name: such as `classes` or `quality`.
        rows: with unique ids.
        screened: how many rows of the source the screen dropped.
        sexual_context: the rows belong to a task about explicit content, so the screen was strict.
        source: the published list that the rows are from, which the ids of their metrics then name; `A+B` where
            forgotten and kept classes have different ones; empty for prompts of our own and for a suite's own captions.
    """

    name: str
    rows: tuple[Row, ...]
    screened: int = 0
    sexual_context: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        seen: set[str] = set()
        for row in self.rows:
            if row.id in seen:
                raise ValueError(f"prompt set {self.name}: two rows have the id {row.id!r}")
            seen.add(row.id)
            require_unscreened(row.prompt, self.sexual_context, f"prompt set {self.name}, row {row.id}")

    @classmethod
    def build(
        cls,
        name: str,
        rows: Sequence[Row],
        sexual_context: bool = False,
        already_screened: int = 0,
        source: str = "",
    ) -> PromptSet:
        """A set of the rows that pass the screen; the others are counted, on top of `already_screened`."""
        kept, dropped = screen_rows(rows, sexual_context)
        dropped += already_screened
        if not kept:
            raise ValueError(f"prompt set {name} is empty ({dropped} rows were refused by the prompt screen)")
        return cls(name, tuple(kept), dropped, sexual_context, source)

    @cached_property
    def key(self) -> str:
        """Hex sha256 over the rows; neither the set's name and source nor the screened count enter."""
        return content_key([asdict(row) for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def labels(self) -> tuple[str, ...]:
        """The different labels, in order of appearance."""
        return tuple(dict.fromkeys(row.label for row in self.rows))

    def only(self, labels: Sequence[str]) -> PromptSet:
        """The rows with one of these labels."""
        for label in labels:
            if label not in self.labels:
                raise unknown(f"label in prompt set {self.name}", label, self.labels)
        return self._subset([row for row in self.rows if row.label in set(labels)])

    def first(self, n: int) -> PromptSet:
        """The first `n` rows, or all where there are fewer."""
        return self._subset(self.rows[:n])

    def repeat(self, number: int) -> PromptSet:
        """The same rows with other noise: those of a run's repeat `number`, from 0, which is the set itself."""
        rows = (replace(row, seed=repeat_seed(row.seed, number)) for row in self.rows)
        return replace(self, rows=tuple(rows)) if number else self

    def _subset(self, rows: Sequence[Row]) -> PromptSet:
        return PromptSet(self.name, tuple(rows), 0, self.sexual_context, self.source)


@dataclass
class Task:
    """What a method is asked for and what it is judged on.

    Attributes:
        name: of the task's config.
        kind: of its concepts.
        split: tuning or test.
        concepts: to forget, in order.
        keep: class names that must survive.
        sets: prompt sets by name: `classes` (forgotten and kept classes), `quality` (captions).
        metrics: instances from the suite's config.
        accepted: by class name, the labels of a judge that all count as this class; a class that is not in it has the
            label of its own name.
        unkept: names of the sets whose pictures are scored in memory and never stored.
    """

    name: str
    kind: str
    split: str
    concepts: tuple[Concept, ...]
    keep: tuple[str, ...] = ()
    sets: dict[str, PromptSet] = field(default_factory=dict)
    metrics: tuple[Any, ...] = ()
    accepted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unkept: tuple[str, ...] = ()

    @property
    def forget(self) -> tuple[str, ...]:
        """Names of the concepts."""
        return tuple(concept.name for concept in self.concepts)

    @property
    def screened(self) -> int:
        """Rows that the prompt screen dropped, over all sets."""
        return sum(prompts.screened for prompts in self.sets.values())

    def prompts(self, name: str) -> PromptSet:
        """The prompt set with this name, or a `ValueError` that says what the task has."""
        if name not in self.sets:
            has = ", ".join(sorted(self.sets)) or "none"
            raise ValueError(f"task {self.name} ({self.kind}) has no {name!r} prompts (it has: {has})")
        return self.sets[name]


def class_task(
    name: str,
    kind: str,
    concepts: Sequence[str],
    keep: Sequence[str] = (),
    n: int = 20,
    split: str = "test",
    prompts: str = "neutral",
    classes: Sequence[str] | None = None,
    templates: Mapping[str, str] = CLASS_TEMPLATES,
    keep_prompts: str | None = None,
    accepted: Mapping[str, Sequence[str]] | None = None,
    quality: PromptSet | None = None,
    metrics: Sequence[Any] = (),
) -> Task:
    """A task that forgets `concepts` and keeps `keep`, with `n` pictures of each class.

    From a config: `instantiate(config, _partial_=True)(quality=..., metrics=...)`; given to `instantiate` itself, Hydra
    would turn prompt sets and metrics into plain dictionaries.

    Only objects get a `classes` set: styles and explicit content are not judged by a class name, so such a task can
    edit and export but has no class to score. Where a class has a sexual name, the pictures of all classes are treated
    as explicit ones: scored in memory, neither stored nor shown.

    Args:
        name: of the task.
        kind: object, style or explicit.
        concepts: names to forget.
        keep: names of classes that must survive.
        n: rows a class, at most MAX_PICTURES.
        split: tuning or test.
        prompts: `neutral` (`class_prompt` with seeds of our own) or a published list, whose rows are test rows: `A` and
            `B` (the two Imagenette lists, see `sources`), `diversi50` (ScaPre's fifty classes).
        classes: the names that exist, where they are known; a name is then matched regardless of case and written
            as it stands here.
        templates: neutral prompt of each split, with {a} and {name}.
        keep_prompts: of the kept classes, where they are not in the list that `prompts` names; None: the same.
        accepted: see `Task`; names that the task does not use are left out.
        quality: captions, from `quality_set`.
        metrics: kept for the pipeline.

    Raises:
        ValueError: one line that names the setting, what is wrong with it and what would be right.
    """
    if kind not in KINDS:
        raise unknown("task.kind", kind, KINDS)
    if split not in SPLITS:
        raise unknown("task.split", split, SPLITS)
    keep_prompts = prompts if keep_prompts is None else keep_prompts
    for where, chosen in (("task.prompts", prompts), ("task.keep_prompts", keep_prompts)):
        if chosen not in PROMPTS:
            raise unknown(where, chosen, PROMPTS)
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_PICTURES:
        raise ValueError(f"task.n={n!r}: the number of pictures a class is an integer from 1 to {MAX_PICTURES}")
    forget = _names("task.concepts", concepts, classes)
    kept = _names("task.keep", keep, classes)
    if not forget:
        raise ValueError("task.concepts is empty: name what to forget, as in 'task.concepts=[parachute,golf ball]'")
    both = {item.casefold() for item in forget} & {item.casefold() for item in kept}
    if both:
        raise ValueError(f"{sorted(both)[0]!r} is in task.concepts and in task.keep; a class is forgotten or kept")
    explicit = kind == "explicit" or any(map(is_sexual, (*forget, *kept)))
    sets: dict[str, PromptSet] = {}
    if kind == "object":
        rows = _rows(forget, n, split, prompts, templates) + _rows(kept, n, split, keep_prompts, templates)
        source = _source(prompts, keep_prompts if kept else prompts)
        sets["classes"] = PromptSet.build("classes", rows, explicit, source=source)
    if quality is not None:
        # In a task about explicit content the screen is strict for captions too.
        sets["quality"] = PromptSet.build("quality", quality.rows, explicit, quality.screened, quality.source)
    targets = tuple(Concept(item, kind) for item in forget)
    labels = _accepted(accepted or {}, [*forget, *kept])
    unkept = tuple(name for name in ("classes",) if explicit and name in sets)
    return Task(name, kind, split, targets, tuple(kept), sets, tuple(metrics), labels, unkept)


def nested_task(name: str, classes: Sequence[str], size: int, keep: Sequence[str], **settings: Any) -> Task:
    """A `class_task` that forgets the first `size` of `classes`: every smaller task of the order lies in the larger."""
    forget = _first("task.size", size, classes, len(classes))
    return class_task(name, concepts=forget, keep=keep, **settings)


def x_vs_y_task(name: str, classes: Sequence[str], x: int, keep: Sequence[str] | None = None, **settings: Any) -> Task:
    """A `class_task` that forgets the first `x` of `classes` and keeps `keep`, by default all others (FIA figure 4)."""
    forget = _first("task.x", x, classes, len(classes) - 1)
    return class_task(name, concepts=forget, keep=classes[x:] if keep is None else keep, **settings)


def caption_list(suite: Mapping[str, Any], name: str | None) -> Any:
    """The configured provider of a suite's captions: its own, or the published list that `quality.list` names.

    Raises:
        ValueError: the suite has no such list.
    """
    if name is None:
        return suite["captions"]
    lists = suite.get("lists") or {}
    if name not in lists:
        has = f"its lists are {', '.join(sorted(lists))}" if lists else "it has only its own captions"
        raise ValueError(f"quality.list={name}: the suite {suite['name']} has no such list; {has}")
    return lists[name]


def quality_set(provider: Provider, n: int, split: str, source: str = "") -> PromptSet | None:
    """Captions from one of a suite's providers; None where `n` is 0. For `source` see `PromptSet`.

    Raises:
        ValueError: n is out of range, or the provider returned another number of captions.
    """
    check_captions(n)
    if split not in SPLITS:
        raise unknown("task.split", split, SPLITS)
    if n == 0:
        return None
    captions = list(provider(n, split))
    if len(captions) != n:
        raise ValueError(f"quality.n={n}: the suite's captions have only {len(captions)} rows in the {split} split")
    rows = [Row(f"{split}/{i:05d}", text, seed) for i, (text, seed) in enumerate(captions)]
    return PromptSet.build("quality", rows, source=source)


def check_captions(n: int) -> None:
    """Raise ValueError unless `n` is a number of captions that a quality set can have; 0 means no set."""
    if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= MAX_CAPTIONS:
        raise ValueError(f"quality.n={n!r}: the number of captions is an integer from 0 to {MAX_CAPTIONS}")


def class_seed(split: str, name: str, index: int) -> int:
    """Seed of a class's picture, whatever the case of the class's name."""
    return own_seed(split, name.casefold(), str(index))


def _source(prompts: str, keep_prompts: str) -> str:
    """What ids of the class prompts end in: a published list, both sides' names where they differ, or nothing."""
    if prompts != keep_prompts:
        return f"{prompts}+{keep_prompts}"
    return prompts if prompts in PUBLISHED else ""


def _rows(names: Sequence[str], n: int, split: str, prompts: str, templates: Mapping[str, str]) -> list[Row]:
    """`n` rows of each class; `prompts` is neutral or a published list."""
    if prompts == "neutral":
        return [
            Row(
                f"{split}/{slug(name)}/{index:04d}",
                class_prompt(name, split, templates),
                class_seed(split, name, index),
                label=name,
            )
            for name in names
            for index in range(n)
        ]
    if split != "test":
        raise ValueError(f"task.prompts={prompts} is a published test list; choose settings with task.prompts=neutral")
    if not names:
        return []
    by_class: dict[str, list[dict[str, str]]] = {}
    for row in sources.rows(PUBLISHED[prompts], names):
        by_class.setdefault(row["class"].casefold(), []).append(row)
    return [row for name in names for row in _published_rows(name, n, prompts, by_class)]


def _published_rows(name: str, n: int, prompts: str, by_class: Mapping[str, Sequence[dict[str, str]]]) -> list[Row]:
    """The first `n` rows of a class."""
    if name.casefold() not in by_class:
        written = {rows[0]["class"] for rows in by_class.values()}
        raise unknown(f"class in the published list {prompts}", name, written)
    rows = by_class[name.casefold()]
    if n > len(rows):
        raise ValueError(f"task.n={n}: the published list {prompts} has {len(rows)} rows of {name!r}")
    # Seeds repeat inside a class of these lists; only the case number tells its rows apart.
    return [
        Row(
            f"{prompts}/{slug(name)}/{int(row['case_number']):04d}",
            row["prompt"],
            int(row["evaluation_seed"]),
            label=name,
        )
        for row in rows[:n]
    ]


def _first(where: str, size: object, classes: Sequence[str], most: int) -> Sequence[str]:
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= most:
        raise ValueError(f"{where}={size!r}: how many of the {len(classes)} classes to forget, from 1 to {most}")
    return classes[:size]


def _accepted(accepted: Mapping[str, Sequence[str]], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The accepted labels of the names that the task has, by the name as the task writes it."""
    found = {}
    written = {name.casefold(): name for name in names}
    for name, labels in accepted.items():
        if isinstance(labels, str) or not labels or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"task.accepted: {name!r} has {labels!r}; write a list of labels, as in [beer bottle]")
        if name.casefold() in written:
            found[written[name.casefold()]] = tuple(labels)
    return found


def slug(name: str) -> str:
    """A name as a part of row ids: `Van Gogh` -> `van-gogh`."""
    return re.sub(r"\s+", "-", name.strip().casefold())


def _names(where: str, names: Sequence[str], classes: Sequence[str] | None) -> list[str]:
    """The names, stripped, known and different from each other."""
    if isinstance(names, str) or names is None:
        raise ValueError(f"{where}={names!r}: write a list, as in '{where}=[parachute,golf ball]'")
    known = {item.casefold(): item for item in classes} if classes is not None else None
    result: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"{where}: {name!r} is a {type(name).__name__}; a name is text (quote it)")
        name = name.strip()
        try:
            _check_name(name)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        folded = name.casefold()
        if known is not None and folded not in known:
            raise unknown(f"class in {where}", name, known.values())
        if folded in result:
            raise ValueError(f"{where} names {name!r} twice (case does not matter)")
        result[folded] = known[folded] if known is not None else name
    return list(result.values())


def _check_name(name: str) -> None:
    shown = repr(name if len(name) <= 40 else name[:37] + "...")
    if not name.strip():
        raise ValueError("a name is empty; name a concept such as parachute")
    if len(name) > MAX_NAME:
        raise ValueError(f"the name {shown} has {len(name)} characters; at most {MAX_NAME} are a name")
    if any(unicodedata.category(char).startswith("C") or char in "\u2028\u2029" for char in name):
        raise ValueError(f"the name {shown} holds a line break or control character; use plain text")
    if "/" in name or "\\" in name or name.startswith(("~", ".")):
        raise ValueError(f"the name {shown} looks like a path; use plain words without '/', '\\' or a leading '.'")
