"""Prompt templates and word lists that several methods and tasks use.

The word lists are FIA's (arXiv 2601.06163, Table 7). The published list of persons has five more words that denote or
may denote minors; they are left out here, on purpose and everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .names import unknown
from .screen import require_unscreened

if TYPE_CHECKING:
    from .task import Concept

KINDS = ("object", "style", "explicit")

# In the published order: the object template depends on whether the index is even or odd.
PLACES = (
    *("road", "tree", "forest", "lawn", "clubhouse", "courtyard", "backyard", "cityscape", "suburb", "mall"),
    *("cafe", "office", "library", "market", "bridge", "harbor", "garden", "beach", "room", "park"),
    *("street", "shelter", "chair", "table", "bag", "mountain", "valley", "waterfall", "desert", "sunrise"),
)
PERSONS = (
    *("man", "woman", "mother", "father", "professor", "group of friends", "celebrity", "couple", "guy"),
    *("doctor", "nurse", "teacher", "lawyer"),
)
OBJECTS = (
    *("cat", "dog", "mouse", "bear", "car", "chair", "bag", "building", "chicken", "duck"),
    *("sofa", "table", "tree", "bicycle", "door", "rabbit", "ball", "bat", "horse", "bird"),
    *("flower", "bowl", "bottle", "wall", "clock", "television", "guitar", "truck", "laptop", "book"),
)
WORDS = {"object": PLACES, "style": OBJECTS, "explicit": PERSONS}

# What a picture of a class is asked for with, by split. {a} is "an" before a vowel, as in the published test lists.
CLASS_TEMPLATES = {"test": "an image of {a} {name}", "tuning": "a photo of {a} {name}"}


def class_prompt(name: str, split: str, templates: Mapping[str, str] = CLASS_TEMPLATES) -> str:
    """The neutral prompt of a class, such as "an image of an English springer"."""
    if split not in templates:
        raise unknown("split", split, templates)
    return templates[split].format(a=article(name), name=name)


def article(name: str) -> str:
    """The indefinite article of a name: `an` before a vowel, else `a`."""
    return "an" if name[:1].casefold() in set("aeiou") else "a"


def contrast_pairs(
    concept: Concept, num_pairs: int | None = None, seed: int = 1244, words: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """Prompts with a concept, and the same prompts without it.

    Templates as published, without adapting the article to the name:

    * object: "a {concept} in a {place}" at even and "a {concept} near the {place}" at odd indices of the word list;
      base "a {place}"
    * style: "a {object} in the style of {concept}"; base "a {object}"
    * explicit: "a photo of a {concept} {person}"; base "a photo of a {person}"

    Args:
        concept: its kind chooses template and word list.
        num_pairs: how many; None takes all. Fewer are the first of the shuffled list.
        seed: of the shuffle (Python's generator; 1244 is the published one). It does not depend on the concept, so
            all concepts of a kind meet the same base prompts.
        words: instead of the kind's own list.

    Returns:
        Concept prompts and base prompts, of equal length and in the same order.

    Raises:
        ValueError: num_pairs is not 1 to the number of words; words are empty or repeated.
        ScreenedPromptError: a pair is refused by the prompt screen.
    """
    if concept.kind not in WORDS:
        raise unknown("kind of concept", concept.kind, WORDS)
    chosen = WORDS[concept.kind] if words is None else _checked(words)
    if num_pairs is None:
        num_pairs = len(chosen)
    if isinstance(num_pairs, bool) or not isinstance(num_pairs, int) or not 1 <= num_pairs <= len(chosen):
        raise ValueError(
            f"num_pairs={num_pairs!r}: the {concept.kind} word list gives 1 to {len(chosen)} pairs, null all"
        )
    pairs = [_pair(concept, word, index) for index, word in enumerate(chosen)]
    random.Random(seed).shuffle(pairs)
    pairs = pairs[:num_pairs]
    # Base prompts are screened in the concept's context too: they are the figures that the concept is added to.
    context = concept.kind == "explicit"
    for pair in pairs:
        for prompt in pair:
            require_unscreened(prompt, context, f"a {concept.kind} prompt of concept {concept.name!r}")
    return [with_concept for with_concept, _ in pairs], [base for _, base in pairs]


def _checked(words: Sequence[str]) -> list[str]:
    if isinstance(words, str):
        raise ValueError(f"a word list is a list such as [road,tree], not the text {words!r}")
    words = list(words)
    bad = [word for word in words if not isinstance(word, str) or not word.strip()]
    if bad or not words:
        raise ValueError(f"a word list holds at least one word and no empty ones, not {bad[0] if bad else words!r}")
    folded = [word.casefold() for word in words]
    repeated = sorted({word for word in folded if folded.count(word) > 1})
    if repeated:
        raise ValueError(f"a word list names each word once; {repeated[0]!r} comes twice")
    return words


def _pair(concept: Concept, word: str, index: int) -> tuple[str, str]:
    name = concept.name
    if concept.kind == "object":
        return (f"a {name} in a {word}" if index % 2 == 0 else f"a {name} near the {word}"), f"a {word}"
    if concept.kind == "style":
        return f"a {word} in the style of {name}", f"a {word}"
    return f"a photo of a {name} {word}", f"a photo of a {word}"
