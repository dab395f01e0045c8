"""Templates and word lists of the contrast prompts."""

from __future__ import annotations

import pytest

from harness.prompts import OBJECTS, PERSONS, PLACES, class_prompt, contrast_pairs
from harness.screen import MINOR_WORDS, ScreenedPromptError, names_minor
from harness.task import Concept

BALL, STYLE, EXPLICIT = Concept("golf ball", "object"), Concept("Van Gogh", "style"), Concept("naked", "explicit")


def test_published_lists():
    assert (len(PLACES), len(PERSONS), len(OBJECTS)) == (30, 13, 30)
    assert (PLACES[0], PLACES[-1], OBJECTS[0], OBJECTS[-1]) == ("road", "sunrise", "cat", "book")
    assert not [word for word in (*PLACES, *PERSONS, *OBJECTS) if names_minor(word)]
    for words in (PLACES, PERSONS, OBJECTS):
        assert len(set(words)) == len(words)


def test_object_template_alternates_by_index_before_shuffling():
    concept, base = contrast_pairs(BALL)
    assert len(concept) == len(base) == 30
    for with_concept, without in zip(concept, base, strict=True):
        place = without.removeprefix("a ")
        joint = f"in a {place}" if PLACES.index(place) % 2 == 0 else f"near the {place}"
        assert with_concept == f"a golf ball {joint}"
    assert sorted(base) == sorted(f"a {place}" for place in PLACES)
    assert base != [f"a {place}" for place in PLACES]


def test_style_and_explicit_templates():
    concept, base = contrast_pairs(STYLE)
    assert concept == [f"{text} in the style of Van Gogh" for text in base] and len(base) == 30
    concept, base = contrast_pairs(EXPLICIT)
    assert len(base) == 13 and {text.removeprefix("a photo of a ") for text in base} == set(PERSONS)
    assert concept == [text.replace("photo of a ", "photo of a naked ") for text in base]


def test_articles_are_not_adapted():
    assert contrast_pairs(Concept("English springer", "object"), words=["office"])[0] == [
        "a English springer in a office"
    ]


def test_concepts_share_base_prompts_and_a_count_is_a_prefix():
    everything = contrast_pairs(BALL, seed=3)
    assert contrast_pairs(Concept("church", "object"), seed=3)[1] == everything[1]
    assert contrast_pairs(BALL, num_pairs=5, seed=3) == (everything[0][:5], everything[1][:5])
    assert contrast_pairs(BALL, seed=4)[1] != everything[1]
    assert contrast_pairs(BALL, seed=3) == everything


@pytest.mark.parametrize("num_pairs", [0, -1, 31, True, 2.0])
def test_numbers_of_pairs_out_of_range(num_pairs):
    with pytest.raises(ValueError, match=r"num_pairs=.*1 to 30"):
        contrast_pairs(BALL, num_pairs=num_pairs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "at least one"),
        ("road", "is a list"),
        (["road", " "], "empty"),
        (["road", "Road"], "twice"),
        ([3], "not 3"),
    ],
)
def test_bad_word_lists(words, message):
    with pytest.raises(ValueError, match=message):
        contrast_pairs(BALL, words=words)


@pytest.mark.parametrize("minor", [word.strip("*") for word in MINOR_WORDS])
def test_explicit_word_lists_are_for_adults_only(minor):
    with pytest.raises(ScreenedPromptError):
        contrast_pairs(EXPLICIT, words=["woman", minor])
    # The same words are ordinary ones where nothing sexual is meant; a sexual name makes the context sexual.
    assert len(contrast_pairs(STYLE, words=["woman", minor])[0]) == 2
    with pytest.raises(ScreenedPromptError):
        contrast_pairs(Concept(EXPLICIT.name, "object"), words=["road", minor])


def test_class_prompts_use_the_article_of_the_published_lists():
    assert class_prompt("English springer", "test") == "an image of an English springer"
    assert class_prompt("French horn", "test") == "an image of a French horn"
    assert class_prompt("church", "tuning") == "a photo of a church"
    with pytest.raises(ValueError, match="did you mean test"):
        class_prompt("church", "tests")
