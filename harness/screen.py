"""The prompt screen: sexual content is never paired with anybody who is or may be a minor.

One function, `screened`, decides for every prompt of every source: the suites' lists, published files, word lists and
a user's own names. It errs towards refusing: a word that *may* denote a minor counts. A screened row is dropped and
counted (`screen_rows`); a word list or concept that a user wrote is refused (`ScreenedPromptError`).

The two lists are lower case. A trailing `*` matches any ending, a leading `*` any beginning; other words match with
their plural and possessive. Compatibility forms, accents, invisible characters, hyphens and underscores are folded
before matching. It is a screen of words in English, not an understanding of the text: deliberate misspellings pass.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable
from typing import Protocol, TypeVar

MINOR_WORDS = (
    "*girl*",
    "*school*",
    "*brother*",
    "*daughter*",
    "*pubesc*",
    "*sibling*",
    "*sister*",
    "adolesc*",
    "baby*",
    "babies",
    "boy*",
    "cheerleader*",
    "cherub*",
    "child*",
    "daycare",
    "femboy",
    "freshman",
    "freshmen",
    "grandchild*",
    "grandson",
    "infant*",
    "jailbait",
    "junior",
    "juvenile*",
    "kid",
    "kiddie*",
    "kiddo*",
    "kindergart*",
    "lad",
    "lass*",
    "loli",
    "lolicon*",
    "lolita*",
    "minor",
    "nephew*",
    "newborn*",
    "niece*",
    "nymphet*",
    "orphan*",
    "preteen*",
    "puberty",
    "pupil",
    "putti",
    "putto",
    "shota*",
    "son",
    "sophomore*",
    "stepson",
    "student*",
    "teen*",
    "toddler*",
    "tomboy",
    "tween*",
    "underage*",
    "young*",
    "youth*",
)

SEXUAL_WORDS = (
    "*porn*",
    "*sex",
    "ahegao",
    "areola*",
    "arous*",
    "ass",
    "bdsm",
    "bikini*",
    "blowjob*",
    "bondage",
    "boob*",
    "bosom*",
    "bottomless",
    "bra",
    "breast*",
    "busty",
    "buttock*",
    "cleavage",
    "clitor*",
    "crotch*",
    "cum",
    "dominatrix",
    "ecchi",
    "ejaculat*",
    "erotic*",
    "exhibitionis*",
    "fellatio",
    "fetish*",
    "fuck*",
    "genital*",
    "grope*",
    "groping",
    "hentai",
    "horny",
    "incest*",
    "indecent*",
    "intercourse",
    "kinky",
    "lewd*",
    "lingerie*",
    "masturbat*",
    "milf",
    "molest*",
    "naked*",
    "nipple*",
    "nsfw",
    "nude*",
    "nudi*",
    "obscene*",
    "onlyfans",
    "orgasm*",
    "orgy",
    "orgies",
    "panties",
    "panty",
    "penis*",
    "playboy",
    "prostitut*",
    "pussy",
    "pussies",
    "rape",
    "raped",
    "raping",
    "rapist",
    "risque",
    "scantily",
    "seduc*",
    "sensual*",
    "sex*",
    "skimpy",
    "slut*",
    "stripper",
    "striptease*",
    "testic*",
    "thong",
    "tit",
    "topless*",
    "unclothed",
    "underboob*",
    "underwear",
    "undress*",
    "upskirt*",
    "vagina*",
    "voluptuous*",
    "vulva*",
    "whore*",
    "without clothes",
    "xxx",
)

_SMALL_NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
).split()
# 0 to 17, with or without a fraction; not the last digits of a longer number ("118", "1.16").
_UNDER_18 = rf"(?<![\d.])(?:0*(?:\d|1[0-7])(?:\.\d+)?|{'|'.join(_SMALL_NUMBERS)})(?!\d)"
_AGE_PATTERNS = (
    rf"{_UNDER_18}\s*(?:years?|yrs?|yr)\s*(?:of\s+age|olds?)",
    rf"{_UNDER_18}\s*y\s*[/.]?\s*o\b",
    r"(?:\d+|an?|few|several|" + "|".join(_SMALL_NUMBERS) + r")\s*(?:months?|weeks?|days?)\s*olds?",
    rf"\b(?:aged?|ages|turn(?:s|ed|ing))\s*[:=]?\s*(?:of\s+)?{_UNDER_18}(?!\s*(?:hundred|thousand|centur))",
    r"\b(?:under|below|younger\s+than|less\s+than)\s*(?:the\s+)?(?:age\s+)?(?:of\s+)?(?:1[0-8]|eighteen)\b(?!\d)",
    r"\bunder\s+age\w*",
    r"\bsweet\s+(?:16|sixteen)\b",
)


class ScreenedPromptError(ValueError):
    """A concept, word list or prompt that somebody asked for was refused by the screen."""


class HasPrompt(Protocol):
    """Anything with a prompt: rows of prompt sets in particular."""

    @property
    def prompt(self) -> str: ...


_R = TypeVar("_R", bound=HasPrompt)


def _word_pattern(words: Iterable[str]) -> re.Pattern[str]:
    parts = []
    for word in words:
        core = r"\s+".join(re.escape(piece) for piece in word.strip("*").split())
        start = r"\w*" if word.startswith("*") else ""
        end = r"\w*" if word.endswith("*") else r"(?:e?s)?"
        parts.append(start + core + end)
    return re.compile(r"\b(?:" + "|".join(parts) + r")\b")


_MINOR = _word_pattern(MINOR_WORDS)
_AGE = re.compile("|".join(_AGE_PATTERNS))
_SEXUAL = _word_pattern(SEXUAL_WORDS)


def _folded(text: str) -> str:
    """Lower case without accents, invisible characters, hyphens and underscores: cheap spelling tricks do not help."""
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c) and unicodedata.category(c) != "Cf")
    return re.sub(r"[-_\u2010-\u2015]+", " ", text.casefold())


def names_minor(text: str) -> str | None:
    """The first word or age in `text` that denotes or may denote a minor, or None."""
    folded = _folded(text)
    match = _MINOR.search(folded) or _AGE.search(folded)
    return match.group(0) if match else None


def is_sexual(text: str) -> bool:
    """True where `text` has a word of sexual content."""
    return _SEXUAL.search(_folded(text)) is not None


# A list is screened whenever a set of its rows is made, and thousands of rows may share a prompt.
@functools.lru_cache(maxsize=2**16)
def screened(prompt: str, sexual_context: bool = False) -> str | None:
    """Why this prompt must not be rendered, or None where it may be.

    Args:
        prompt: the whole prompt.
        sexual_context: the task itself is about explicit content, so a prompt needs no sexual word to be refused.
    """
    word = names_minor(prompt)
    if word is None or not (sexual_context or is_sexual(prompt)):
        return None
    return f"{word!r} denotes or may denote a minor, in a sexual context"


def require_unscreened(prompt: str, sexual_context: bool, where: str) -> None:
    """Refuse a prompt that somebody wrote on purpose.

    Raises:
        ScreenedPromptError: one line with `where` and the reason; the prompt itself is not repeated.
    """
    reason = screened(prompt, sexual_context)
    if reason is not None:
        raise ScreenedPromptError(f"{where} is refused by the prompt screen: {reason}; use words for adults only")


def screen_rows(rows: Iterable[_R], sexual_context: bool = False) -> tuple[list[_R], int]:
    """The rows that may be rendered, in order, and how many were dropped."""
    rows = list(rows)
    kept = [row for row in rows if screened(row.prompt, sexual_context) is None]
    return kept, len(rows) - len(kept)
