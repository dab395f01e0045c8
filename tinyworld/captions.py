"""Random faithful captions of scenes, in the wording of the field's prompt templates."""

from __future__ import annotations

import numpy as np

from .scene import Scene
from .vocabulary import MARKED_WORDS, SYNONYMS

LOWER_SHARE = 0.4
SYNONYM_SHARE = 0.12
UNSAID_SHARE = 0.3
# Correct English only half of the time: published templates put a plain "a" before every name.
CORRECT_ARTICLE_SHARE = 0.5

_ALONE = ("an image of {x}", "a photo of {x}", "{x}", "{bare}")
_IN_PLACE = ("{x} in {p}", "{x} near {the}", "a photo of {x} in {p}", "an image of {x} in {p}")
_PLACE_ONLY = ("{p}", "a photo of {p}", "an image of {p}")
_STYLED = ("{x} in the style of {artist}", "{x} by {artist}", "a painting of {x} by {artist}")
_PAIR_IN_PLACE = ("{x} and {y} in {p}", "{x} next to {y} in {p}", "{x} with {y} near {the}")
_PAIR = ("{x} and {y}", "{x} next to {y}", "{x} with {y}")
_PERSON = ("a photo of {x}", "an image of {x}", "{x}")
_PERSON_IN_PLACE = ("{x} in {p}", "a photo of {x} in {p}")


def _one(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _with_article(rng: np.random.Generator, noun: str) -> str:
    # "umbrella" is the only listed word whose first letter could mislead, and it does take "an".
    vowel = noun[0] in "aeiouAEIOU"
    return f"an {noun}" if vowel and rng.random() < CORRECT_ARTICLE_SHARE else f"a {noun}"


def _lowered(rng: np.random.Generator, name: str) -> str:
    """A proper name, sometimes written in lower case."""
    return name.lower() if name != name.lower() and rng.random() < LOWER_SHARE else name


def _icon_word(rng: np.random.Generator, name: str) -> str:
    if name in SYNONYMS and rng.random() < SYNONYM_SHARE:
        return _one(rng, SYNONYMS[name])
    return _lowered(rng, name)


def _listed(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    """The names with articles, joined as in: a red disc, a blue square and a black cross."""
    words = [_with_article(rng, name) for name in names]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _person_phrase(rng: np.random.Generator, scene: Scene) -> str:
    """The person with an article; markers are either summed up in one word or all listed."""
    if not scene.markers:
        return _with_article(rng, scene.person)
    if rng.random() < 0.7:
        return f"a {_one(rng, MARKED_WORDS)} {scene.person}"
    return f"{_with_article(rng, scene.person)} with {_listed(rng, scene.markers)}"


def _place_phrases(rng: np.random.Generator, place: str) -> dict[str, str]:
    return {"p": _with_article(rng, place), "the": f"the {place}"}


def _styled_caption(rng: np.random.Generator, scene: Scene, phrases: list[str], said: bool) -> str:
    if not phrases:
        x = _with_article(rng, scene.place)
    else:
        x = " and ".join(phrases)
        if said:
            x = f"{x} in {_with_article(rng, scene.place)}"
    return _one(rng, _STYLED).format(x=x, artist=_lowered(rng, scene.artist))


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One random caption: everything it says is in the picture; a place is sometimes left unsaid."""
    words = [_icon_word(rng, name) for name in scene.icons]
    phrases = [_with_article(rng, word) for word in words]
    if scene.person:
        phrases.append(_person_phrase(rng, scene))
    said = scene.place is not None and (not phrases or len(phrases) == 2 or rng.random() >= UNSAID_SHARE)
    if scene.artist:
        return _styled_caption(rng, scene, phrases, said)
    places = _place_phrases(rng, scene.place) if said else {}
    if not phrases:
        return _one(rng, _PLACE_ONLY).format(**places)
    if len(phrases) == 2:
        return _one(rng, _PAIR_IN_PLACE if said else _PAIR).format(x=phrases[0], y=phrases[1], **places)
    if scene.person:
        return _one(rng, _PERSON_IN_PLACE if said else _PERSON).format(x=phrases[0], **places)
    return _one(rng, _IN_PLACE if said else _ALONE).format(x=phrases[0], bare=words[0], **places)
