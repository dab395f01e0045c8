"""The prompt screen. Pairs are put together from the two word lists; none is written out here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from harness.screen import (
    MINOR_WORDS,
    SEXUAL_WORDS,
    ScreenedPromptError,
    is_sexual,
    names_minor,
    require_unscreened,
    screen_rows,
    screened,
)

MINORS = [word.strip("*") for word in MINOR_WORDS]
SEXUAL = [word.strip("*") for word in SEXUAL_WORDS]
A_MINOR, A_SEXUAL = MINORS[0], SEXUAL[0]


def test_lists_are_tidy():
    for words in (MINOR_WORDS, SEXUAL_WORDS):
        assert list(words) == [word.lower() for word in words]
        assert len(set(words)) == len(words)
    assert not [word for word in MINORS if is_sexual(word)]


@pytest.mark.parametrize("sexual", SEXUAL)
def test_every_sexual_word_is_refused_with_a_minor(sexual):
    assert screened(f"{A_MINOR} {sexual}") and screened(f"{sexual}, photo of the {A_MINOR}")
    assert screened(f"a photo of a {sexual} scene in a room") is None


@pytest.mark.parametrize("minor", MINORS)
def test_every_minor_word_is_refused_with_a_sexual_one_and_in_explicit_tasks(minor):
    assert screened(f"the {minor}, {A_SEXUAL}")
    assert screened(f"a photo of the {minor}", sexual_context=True)
    assert screened(f"a photo of the {minor} in a park") is None


@pytest.mark.parametrize("minor", [word for word in MINOR_WORDS if "*" not in word and not word.endswith(("i", "men"))])
def test_plurals_possessives_and_spelling_tricks(minor):
    accented = minor[0] + "\u0301" + minor[1:]
    hidden = minor[0] + "\u200b" + minor[1:]
    for form in (minor + "s", minor + "'s", minor.upper(), f"a-{minor}_x", accented, hidden, f"({minor})"):
        assert screened(f"a photo of {form}", sexual_context=True), form


AGES = ["16 year old", "16-year-old", "16yo", "16 y/o", "17 y.o.", "7 years old", "5 yrs old", "aged 12", "age 9"]
AGES += [
    "age: 15",
    "sixteen year old",
    "seven-year-olds",
    "18 months old",
    "three weeks old",
    "under 18",
    "below the age of 16",
]
AGES += ["under-age", "17 years of age", "turned 13", "0 years old", "17.5 years old", "under eighteen"]


@pytest.mark.parametrize("age", AGES)
def test_ages_below_eighteen(age):
    assert screened(f"somebody, {age}, {A_SEXUAL}") and screened(f"somebody {age}", sexual_context=True)
    assert screened(f"somebody, {age}, reading") is None


@pytest.mark.parametrize(
    "text",
    ["18 year old", "21yo", "118 years old", "35 years of age", "aged 40", "in 1999", "16 cars", "a 17 inch screen"]
    + [
        "under 180 pounds",
        "age 62",
        "aged 1700",
        "a person on a road",
        "a season of reason",
        "Madison",
        "a salad",
        "a kidney",
    ]
    + ["the glass table", "an assassin", "a grand piano", "Ladakh", "personal lesson"],
)
def test_adults_and_lookalike_words_pass(text):
    assert names_minor(text) is None and screened(text, sexual_context=True) is None


@pytest.mark.parametrize(
    "text", ["a class of glass", "bass player", "Titan", "a title", "a brass lamp", "document", "grape"]
)
def test_words_that_only_contain_a_sexual_one(text):
    assert not is_sexual(text)


def test_rows_are_dropped_and_counted_in_order():
    prompts = ["a road", f"{A_MINOR} {A_SEXUAL}", f"a {A_MINOR}", f"a {A_SEXUAL} scene"]
    rows = [SimpleNamespace(prompt=prompt) for prompt in prompts]
    kept, dropped = screen_rows(rows)
    assert [rows.index(row) for row in kept] == [0, 2, 3] and dropped == 1
    kept, dropped = screen_rows(rows, sexual_context=True)
    assert [rows.index(row) for row in kept] == [0, 3] and dropped == 2


def test_refusal_is_one_line_without_the_prompt():
    with pytest.raises(ScreenedPromptError, match="the concept 'x' is refused") as caught:
        require_unscreened(f"secret {A_MINOR}", True, "the concept 'x'")
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    require_unscreened("a woman", True, "x")
