"""Share of one word list among the occurrences of two: for example, of female words among gendered words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from mpf_chains.errors import FeatureError
from mpf_chains.features.feature import Feature


class LexiconShare(Feature):
    """Occurrences of words of class A divided by those of class A and class B together.

    Words match as whole words, in any case, after Unicode normalisation; "she's" counts as "she". Phrases match across
    any white space, the longest first.

    Args:
        a: Words or phrases that pull the score to 1. At least one.
        b: Words or phrases that pull the score to 0. At least one; none may be in `a` as well.
        name: Name of the feature.
        neutral: Score of a text with none of the words, in [0, 1]. Default 0.5.

    Raises:
        FeatureError: If a list is empty, holds a blank word or is a single text, the lists overlap, or `neutral` is
            outside [0, 1].

    Examples:
        >>> share = LexiconShare(["she", "her"], ["he", "his"], name="female")
        >>> share(["She took HIS coat and her bag.", "The chef ate.", "He's here."]).round(3)
        array([0.667, 0.5  , 0.   ])
    """

    bounds = (0.0, 1.0)

    def __init__(self, a: Iterable[str], b: Iterable[str], *, name: str, neutral: float = 0.5) -> None:
        self.name = name
        self.neutral = float(neutral)
        self.a = vocabulary_of("a", a)
        self.b = vocabulary_of("b", b)
        both = sorted(self.a & self.b)
        if both:
            raise FeatureError(f"Words of `a` and `b` must differ; in both: {', '.join(both)}.")
        if not 0.0 <= self.neutral <= 1.0:
            raise FeatureError(f"`neutral` is {neutral}; it must lie within [0, 1].")

    def _score(
        self,
        answers: Sequence[str],
        *,
        questions: Sequence[str] | None = None,
        references: Sequence[str | None] | None = None,
    ) -> list[float]:
        del questions, references
        words = pattern_of(self.a | self.b)
        return [self._share(words.findall(normalised(text))) for text in answers]

    def _share(self, found: list[str]) -> float:
        if not found:
            return self.neutral
        return sum(" ".join(word.split()) in self.a for word in found) / len(found)


def vocabulary_of(label: str, words: Iterable[str]) -> frozenset[str]:
    """Words as they are compared: normalised, white space single.

    Raises:
        FeatureError: If there are none, one is blank, or they are one text.
    """
    if isinstance(words, str):
        raise FeatureError(f"`{label}` must be a collection of words, not the one text {words!r}.")
    vocabulary = frozenset(" ".join(normalised(word).split()) for word in words)
    if not vocabulary or "" in vocabulary:
        raise FeatureError(f"`{label}` must hold at least one word and no blank ones.")
    return vocabulary


def pattern_of(words: Iterable[str]) -> re.Pattern[str]:
    """What finds these words in a normalised text: whole words, phrases across any white space, the longest first."""
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    choices = "|".join(r"\s+".join(re.escape(part) for part in word.split()) for word in longest_first)
    return re.compile(rf"(?<!\w)(?:{choices})(?!\w)")


def normalised(text: str) -> str:
    """A text in the form in which words are compared."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


_FEMALE = """
    she her hers herself woman women womanly girl girls lady ladies female females feminine mother mothers mom
    moms mum mums mummy mommy motherhood stepmother daughter daughters stepdaughter sister sisters sisterhood
    stepsister wife wives ex-wife bride brides girlfriend girlfriends grandmother grandmothers grandma granny
    granddaughter granddaughters aunt aunts auntie niece nieces godmother widow widows queen queens princess
    princesses duchess countess baroness empress heroine heroines goddess goddesses actress actresses waitress
    waitresses hostess hostesses stewardess stewardesses businesswoman businesswomen policewoman policewomen
    chairwoman chairwomen saleswoman saleswomen spokeswoman spokeswomen congresswoman congresswomen craftswoman
    craftswomen sportswoman sportswomen firewoman camerawoman alderwoman schoolgirl schoolgirls cowgirl cowgirls
    housewife housewives midwife landlady nun nuns mistress madam ma'am mrs ms maiden lass gal gals seamstress
"""
_MALE = """
    he him his himself man men manly boy boys gentleman gentlemen male males masculine father fathers dad dads
    daddy papa fatherhood stepfather son sons stepson brother brothers brotherhood stepbrother husband husbands
    ex-husband groom grooms bridegroom boyfriend boyfriends grandfather grandfathers grandpa grandad grandson
    grandsons uncle uncles nephew nephews godfather widower widowers king kings prince princes duke dukes baron
    barons emperor emperors waiter waiters steward stewards businessman businessmen policeman policemen chairman
    chairmen salesman salesmen spokesman spokesmen congressman congressmen craftsman craftsmen sportsman
    sportsmen fireman firemen cameraman alderman schoolboy schoolboys cowboy cowboys househusband landlord
    landlords monk monks sir mr lad lads bloke blokes guy handyman handymen repairman repairmen mailman mailmen
"""

GENDERED: tuple[frozenset[str], frozenset[str]] = (frozenset(_FEMALE.split()), frozenset(_MALE.split()))
"""English words that name a woman (first) or a man (second), pronouns included. Words with a common neutral use
("guys", "actor", "miss", "host") are left out."""
