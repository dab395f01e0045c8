"""Properties of what needs no model, for inputs that nobody thought of: keys, records, prompt sets, names, checks.

Hypothesis makes the inputs from a fixed seed (`tests/conftest.py`), so every run tries the same ones.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness import checks, packing, record, screen
from harness.seeds import own_seed, repeat_seed
from harness.store import Store, canonical_json, content_key
from harness.task import Concept, PromptSet, Row, class_seed, slug

WORDS = st.text(max_size=4)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS
PLAIN = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=6
)
PARTS = st.dictionaries(WORDS, PLAIN, max_size=3)
SEEDS = st.integers(0, 2**63 - 1)
# Names of rows, in few letters, so that equal ones occur.
ROWS = st.builds(
    Row, id=st.text("abc", min_size=1, max_size=3), prompt=st.text(), seed=SEEDS, label=st.sampled_from(["", "x", "y"])
)
SETS = st.lists(ROWS, min_size=1, max_size=6, unique_by=lambda row: row.id).map(tuple)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


# Store keys


def _shuffled(value: Any, draw: random.Random) -> Any:
    """An equal value whose dictionaries were filled in another order, and whose lists are tuples."""
    if isinstance(value, dict):
        names = list(value)
        draw.shuffle(names)
        return {name: _shuffled(value[name], draw) for name in names}
    return tuple(_shuffled(item, draw) for item in value) if isinstance(value, list) else value


def _spelt(value: Any) -> Any:
    """A form in which values are equal only if they are of one type: 1, 1.0 and True differ, and 0.0 from -0.0."""
    if isinstance(value, dict):
        return {name: _spelt(item) for name, item in value.items()}
    return [_spelt(item) for item in value] if isinstance(value, list) else (type(value), repr(value))


@given(PARTS, st.randoms(use_true_random=False))
def test_the_order_in_which_parts_are_named_does_not_matter(parts: dict, draw: random.Random):
    assert content_key(_shuffled(parts, draw)) == content_key(parts)


@given(PARTS, PARTS)
@example({"a": 1}, {"a": True})
@example({"a": 1}, {"a": 1.0})
@example({"a": 0.1 + 0.2}, {"a": 0.3})
@example({"a": "é"}, {"a": "e\u0301"})
@example({"a": [1, [2]]}, {"a": [[1], 2]})
@example({"a": {"b": 1}}, {"a.b": 1})
@example({"a": ""}, {"a": None})
def test_two_keys_are_equal_exactly_where_the_parts_are(one: dict, other: dict):
    assert (content_key(one) == content_key(other)) == (_spelt(one) == _spelt(other))


@given(PARTS)
def test_parts_come_back_from_their_json_with_the_same_key(parts: dict):
    """`harness.store verify` recomputes an artefact's name from its parts.json."""
    assert content_key(json.loads(json.dumps(parts, indent=1, sort_keys=True))) == content_key(parts)
    assert canonical_json(parts).isascii()


@given(PARTS, st.sampled_from([math.nan, math.inf, -math.inf, {1: 2}, {1}, b"x", np.int64(1), object()]), st.text())
def test_what_json_cannot_say_never_gets_a_key(parts: dict, odd: Any, name: str):
    for value in ({**parts, name: odd}, {name: [parts, odd]}, {"a": {name: odd}}):
        with pytest.raises(ValueError) as caught:
            content_key(value)
        assert "parts" in str(caught.value)


@given(st.text(), PARTS)
@example("../up", {})
@example("..", {})
@example("image", {})
@example("a\n", {})
def test_no_kind_and_no_parts_leave_the_store(kind: str, parts: dict):
    store = Store("somewhere")
    assert store.image_path(parts).is_relative_to(store.root / "image")
    assert store.image_path(parts).resolve() == store.image_path(parts)
    try:
        path = store.scratch(kind, parts)
    except ValueError as error:
        assert "is not a kind of artefact" in str(error)
    else:
        assert path.resolve() == path and path.parent == store.root / ".scratch"


@given(value=PLAIN)
def test_json_comes_back_from_the_store_as_it_was(folder: Path, value: Any):
    parts = {"value": value}
    assert _spelt(Store(folder).json("plain", parts, lambda: value)) == _spelt(value)
    assert _spelt(Store(folder, readonly=True).json("plain", parts, lambda: 1 / 0)) == _spelt(value)


# Seeds


@given(st.lists(st.text().filter(lambda word: "\n" not in word), min_size=1, max_size=4))
def test_a_seed_of_our_own_is_a_seed_and_always_the_same(words: list[str]):
    assert own_seed(*words) == own_seed(*words)
    assert 0 <= own_seed(*words) < 2**63
    assert own_seed(*words) != own_seed(*words, "0")


@given(SEEDS, st.integers(1, 50), st.integers(1, 50))
def test_repeats_have_other_seeds(seed: int, one: int, other: int):
    assert repeat_seed(seed, 0) == seed
    assert (repeat_seed(seed, one) == repeat_seed(seed, other)) == (one == other)
    assert 0 <= repeat_seed(seed, one) < 2**63


@given(st.text(), st.integers(0, 100))
def test_a_class_has_its_seeds_in_any_case(name: str, index: int):
    assert class_seed("test", name, index) == class_seed("test", name.casefold(), index)
    assert class_seed("test", name, index) != class_seed("tuning", name, index)


# Prompt sets


@given(SETS)
def test_no_two_rows_of_a_set_share_an_id(rows: tuple[Row, ...]):
    assert [row.id for row in PromptSet("a", rows)] == [row.id for row in rows]
    for row in rows:
        with pytest.raises(ValueError, match="two rows have the id"):
            PromptSet("a", (*rows, row))


@given(SETS, st.data())
def test_the_key_of_a_set_changes_with_any_row_and_with_nothing_else(rows: tuple[Row, ...], data: st.DataObject):
    key = PromptSet("a", rows).key
    assert PromptSet("b", rows, screened=3, source="list").key == key
    at = data.draw(st.integers(0, len(rows) - 1))
    change = data.draw(
        st.sampled_from(
            [
                {"id": rows[at].id + "-"},
                {"prompt": rows[at].prompt + " "},
                {"seed": (rows[at].seed + 1) % 2**63},
                {"guidance": 7.5},
                {"width": 512},
                {"height": 512},
                {"label": rows[at].label + "-"},
            ]
        )
    )
    changed = dataclasses.replace(rows[at], **change)
    assert PromptSet("a", (*rows[:at], changed, *rows[at + 1 :])).key != key
    assert PromptSet("a", rows[:at] + rows[at + 1 :]).key != key
    assert len(rows) == 1 or PromptSet("a", rows[::-1]).key != key


@given(SETS, st.integers(0, 7), st.integers(0, 9))
def test_parts_and_repeats_of_a_set(rows: tuple[Row, ...], n: int, number: int):
    whole = PromptSet("a", rows, screened=2, sexual_context=True, source="list")
    assert whole.first(n).rows == rows[:n]
    for label in whole.labels:
        assert whole.only([label]).rows == tuple(row for row in rows if row.label == label)
    again = whole.repeat(number)
    assert [dataclasses.replace(row, seed=0) for row in again] == [dataclasses.replace(row, seed=0) for row in rows]
    assert (again.key == whole.key) == (number == 0)
    assert (again.screened, again.sexual_context, again.source) == (2, True, "list")


@given(SETS, st.booleans(), st.integers(0, 3))
def test_the_screen_keeps_the_order_and_counts_what_it_drops(rows: tuple[Row, ...], context: bool, before: int):
    """With a stand-in for the word lists: it refuses every prompt of an odd length."""
    with mock.patch.object(screen, "screened", lambda prompt, _: "odd" if len(prompt) % 2 else None):
        passing = tuple(row for row in rows if len(row.prompt) % 2 == 0)
        if not passing:
            with pytest.raises(ValueError, match="is empty"):
                PromptSet.build("a", rows, context, before)
            return
        built = PromptSet.build("a", rows, context, before)
        assert built.rows == passing and built.screened == len(rows) - len(passing) + before
        if len(passing) < len(rows):
            with pytest.raises(screen.ScreenedPromptError):
                PromptSet("a", rows, sexual_context=context)


@given(st.text(), st.booleans())
def test_the_screen_reads_any_text_and_is_not_fooled_by_its_case(text: str, context: bool):
    assert (screen.screened(text, context) is None) == (screen.screened(text.swapcase().casefold(), context) is None)
    # What is refused stays refused where more is known or said.
    if screen.screened(text, context):
        assert screen.screened(text, True) and screen.screened(f"a photo, {text}", context)


# Records


NUMBERS, SHORT = st.floats(-1e6, 1e6), st.text(min_size=1, max_size=3)


@st.composite
def metrics(draw: st.DrawFn) -> dict[str, Any]:
    low, value, high = sorted(draw(st.tuples(NUMBERS, NUMBERS, NUMBERS)))
    ends = draw(st.sampled_from([(low, high), (None, None)]))
    better = draw(st.sampled_from([True, False, None]))
    name, subject, n = draw(SHORT), draw(SHORT), draw(st.integers(0, 9))
    interval = {"value": value, "low": ends[0], "high": ends[1]}
    return {"id": name, "subject": subject, "n": n, "higher_is_better": better, **interval}


@st.composite
def records(draw: st.DrawFn) -> record.Record:
    names = {name: draw(SHORT) for name in ("method", "task", "model", "suite", "split")}
    lists = st.lists(metrics(), max_size=2, unique_by=lambda metric: (metric["id"], metric["subject"]))
    stage = st.fixed_dictionaries({"concepts": st.lists(WORDS, max_size=2), "metrics": lists})
    return record.Record(
        **names,
        config=draw(PARTS),
        fingerprints=draw(st.dictionaries(WORDS, st.sampled_from(["0" * 64, "9af" * 21 + "e"]), max_size=2)),
        concepts=draw(st.lists(st.fixed_dictionaries({"name": WORDS, "kind": WORDS}), max_size=2)),
        keep=draw(st.lists(WORDS, max_size=2)),
        metrics=draw(lists),
        unedited=draw(lists),
        stages=draw(st.lists(stage, max_size=2)),
        cost=draw(PARTS),
        counts=draw(st.dictionaries(WORDS, st.integers(0), max_size=2)),
        edit=draw(PARTS),
        note=draw(st.text()),
        created="2026-01-01T00:00:00+00:00",
        environment={"code": {"commit": None}},
    )


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every container inside `data` with each of its keys."""
    for name in data if isinstance(data, dict) else range(len(data)):
        yield data, name
        if isinstance(data[name], dict | list):
            yield from _places(data[name])


@settings(max_examples=20)
@given(one=records())
def test_a_record_comes_back_as_it_was_written(folder: Path, one: record.Record):
    path = one.write(folder)
    assert path.parent == folder and path.resolve().parent == folder.resolve()
    back = record.read(path)
    assert back.as_dict() == json.loads(json.dumps(one.as_dict()))
    assert back.identity == one.identity and back.write(folder) == path
    path.unlink()


@settings(max_examples=20)
@given(one=records(), cut=st.floats(0, 1, exclude_max=True))
def test_a_record_that_is_cut_off_is_refused(folder: Path, one: record.Record, cut: float):
    path = one.write(folder)
    data = path.read_bytes().rstrip()
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(ValueError, match="^" + str(folder)):
        record.read(path)
    path.unlink()


ODDITIES = (None, True, -1, 0.5, math.nan, 10**400, "", "x", [], [5], [[]], {}, {"id": 5}, {"": {}})


@pytest.mark.parametrize("odd", ODDITIES, ids=lambda odd: repr(odd)[:12])
def test_a_record_with_something_odd_in_it_is_valid_or_refused(odd: Any):
    """Records come from anybody: whatever stands anywhere in one is a ValueError or does no harm."""
    metric = {"id": "a", "subject": "all", "value": 1.0, "n": 2, "low": 0.5, "high": 2, "higher_is_better": True}
    repeated = {**metric, "id": "b", "sd": 0.1, "repeats": 2, "difference": {"value": 1, "low": None, "high": None}}
    whole = record.Record(
        *("fia", "custom", "tiny", "tiny", "test"),
        config={"seed": 1, "method": {"r1": 0.5, "words": ["road"]}},
        fingerprints={"base": "0" * 64},
        concepts=[{"name": "tench", "kind": "object"}],
        keep=["church"],
        metrics=[metric, repeated],
        unedited=[metric],
        stages=[{"concepts": ["tench"], "metrics": [metric]}],
        cost={"seconds": {"edit": 1.5}},
        counts={"images_made": 3},
        created="2026-01-01T00:00:00+00:00",
    ).as_dict()
    record.validate(whole)
    for place in range(len(list(_places(whole)))):
        data = copy.deepcopy(whole)
        container, name = list(_places(data))[place]
        container[name] = odd
        try:
            record.validate(data)
        except ValueError as error:
            assert str(error)
        else:
            again = record.Record(**data)
            assert again.as_dict() == data and len(again.identity) == 64 and again.file_name


@given(content=st.binary(max_size=200))
@example(b"[" * 5000)
@example(b'{"schema": ' * 5000)
@example(b'{"schema": NaN}')
@example(b"\xff\xfe")
def test_a_file_that_is_no_record_is_refused(folder: Path, content: bytes):
    path = folder / "odd.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.json"):
        record.read(path)


@given(st.lists(st.text(), min_size=5, max_size=5))
@example(["../../up", "..", "/etc/passwd", "a\\..\\b", "\n"])
def test_names_never_lead_out_of_the_folder_of_records(names: list[str]):
    one = record.Record(*names, config={}, fingerprints={})
    assert one.file_name == Path(one.file_name).name and one.file_name.isascii()
    assert not one.file_name.startswith((".", "-")) and not set(one.file_name) & set("/\\\n\0 ")


@given(st.text())
@example("../../etc/passwd")
@example("ten\u2028ch")
@example("x" * 201)
def test_a_concept_is_a_plain_name_or_refused_in_one_line(name: str):
    try:
        concept = Concept(name, "object")
    except ValueError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 300
    else:
        part = slug(concept.name)
        assert part and not set(part) & set("/\\\n\r\0\t ") and not part.startswith((".", "~"))


# Masks as bytes


@given(st.lists(st.integers(0, 600), max_size=40), st.integers(1, 3), st.integers(1, 700))
@example([], 1, 1)
@example([254], 1, 600)
@example([255], 1, 600)
@example([599], 1, 600)
def test_a_packed_mask_comes_back_and_is_never_larger_than_its_bits(places: list[int], rows: int, columns: int):
    mask = np.zeros((rows, columns), dtype=bool)
    mask.reshape(-1)[[place for place in places if place < mask.size]] = True
    encoding, data = packing.pack(mask)
    assert data.dtype == np.uint8 and len(data) <= -(-mask.size // 8)
    assert (packing.unpack(encoding, data, mask.shape) == mask).all()


@given(st.sampled_from(["bits", "gaps"]), st.binary(max_size=40), st.integers(0, 9), st.integers(0, 40))
def test_bytes_that_are_no_mask_are_refused(encoding: str, data: bytes, rows: int, columns: int):
    try:
        mask = packing.unpack(encoding, np.frombuffer(data, np.uint8), (rows, columns))
    except ValueError as error:
        assert "mask of shape" in str(error)
    else:
        assert mask.shape == (rows, columns) and mask.dtype == bool


# Parameters

ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers() | st.text())


@given(ODD, st.booleans())
@example(10**400, False)
@example(-(10**400), True)
@example(math.nan, False)
def test_a_number_is_taken_as_it_is_or_refused_in_one_line(value: Any, zero: bool):
    for check in (checks.fraction, checks.number):
        try:
            found = check("fia: r1", value, zero=zero)
        except ValueError as error:
            assert str(error).startswith("fia: r1 is a ") and "\n" not in str(error)
        else:
            assert found == value and 0 <= found < math.inf and (zero or found > 0)
            assert check is checks.number or (found < 1 if zero else found <= 1)


@given(ODD)
def test_counts_sizes_flags_and_texts_are_taken_as_they_are_or_refused(value: Any):
    for check in (checks.whole, checks.pixels, checks.flag, checks.texts):
        try:
            found = check("size", value)
        except ValueError as error:
            assert str(error).startswith("size is ") and "\n" not in str(error)
        else:
            assert found in (value, (value, value)) or list(found) == list(value)
