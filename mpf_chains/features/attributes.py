"""Which class of an attribute a text expresses: lexicons for stories, direct answers, sentiment; or any function."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from mpf_chains.errors import FeatureError
from mpf_chains.features.attribute_words import COLOURS, FIRST_NAMES, PERSONS, RACE
from mpf_chains.features.digests import installed_version
from mpf_chains.features.feature import Feature
from mpf_chains.features.lexicon import GENDERED, normalised, pattern_of, vocabulary_of
from mpf_chains.features.sentiment import SentimentFeature
from mpf_chains.targets.names import canonical

Classifier: TypeAlias = Callable[[str], str | None]
"""A text → the class that it expresses, or None."""
Kind: TypeAlias = Literal["answers", "stories"]
"""What is classified: short answers to a question about the attribute, or texts in which it shows."""

_NEGATION = re.compile(r"(?<!\w)(?:not|never|neither|nor|cannot|\w+n['’]t)(?!\w)")
_NOT_NON = r"(?<!non[- ‐‑])"
_SENTENCE = re.compile(r"[^.!?;\n]+")
_SENTIMENTS = ("positive", "neutral", "negative")


class ClassFeature(Feature):
    """A classifier as a feature: the number of the class that a text expresses, from 0, or -1 for none.

    Args:
        classifier: A text → one of the classes, or None.
        classes: At least two, all different.
        name: The attribute, such as "gender".
        version: Pins the classifier in `digest` instead of its source and captured values; see `CallableFeature`.

    Raises:
        FeatureError: If there are fewer than two classes or one comes twice; at a score, if the classifier gives
            another one.

    Examples:
        >>> feature = ClassFeature(lambda text: "male" if "he" in text.split() else None, ("female", "male"), name="g")
        >>> feature(["There he is.", "Nobody."])
        array([ 1., -1.])
    """

    def __init__(
        self, classifier: Classifier, classes: Sequence[str], *, name: str, version: str | None = None
    ) -> None:
        if not callable(classifier) or isinstance(classes, str) or len(set(classes)) < max(2, len(classes)):
            raise FeatureError(
                f"A class feature needs a function of a text and at least two different classes, not {classifier!r} "
                f"and {classes!r}."
            )
        self.name, self.classes, self.classifier, self.version = name, tuple(classes), classifier, version
        self.bounds = (-1.0, float(len(self.classes) - 1))

    def classify(self, texts: Iterable[str]) -> list[str | None]:
        """The class of each text, None where it expresses none.

        Raises:
            FeatureError: If the classifier gives something else.
        """
        found = [self.classifier(text) for text in texts]
        wrong = next((each for each in found if each is not None and each not in self.classes), None)
        if wrong is not None:
            raise FeatureError(
                f"The classifier of {self.name!r} gave {wrong!r}; it must give {', '.join(map(repr, self.classes))} or "
                "None."
            )
        return found

    def _score(
        self,
        answers: Sequence[str],
        *,
        questions: Sequence[str] | None = None,
        references: Sequence[str | None] | None = None,
    ) -> list[int]:
        del questions, references
        return [-1 if each is None else self.classes.index(each) for each in self.classify(answers)]

    def _configuration(self) -> Mapping[str, Any]:
        pinned: Any = self.classifier if self.version is None else self.version
        if self.version is None and is_dataclass(self.classifier) and not isinstance(self.classifier, type):
            kind = type(self.classifier)
            libraries = {name: installed_version(name) for name in getattr(kind, "LIBRARIES", ())}
            pinned = [f"{kind.__module__}.{kind.__qualname__}", asdict(self.classifier), libraries]
        return {"classes": self.classes, "classifier": pinned}


@dataclass(frozen=True)
class _Words:
    """Classes by words that express them; whole words, in any case, "she's" counts as "she", "non-Hispanic" as nothing.

    Args:
        words: Class → words or phrases. No word may be in two.

    Raises:
        FeatureError: If a class has no words, or two share one.
    """

    words: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        words = {name: tuple(sorted(vocabulary_of(name, each))) for name, each in self.words.items()}
        several = [
            word for word, count in Counter(word for each in words.values() for word in each).items() if count > 1
        ]
        if several:
            raise FeatureError(f"Words must be those of one class; of several are {', '.join(sorted(several))}.")
        object.__setattr__(self, "words", words)

    @cached_property
    def _class_of(self) -> dict[str, str]:
        return {word: name for name, each in self.words.items() for word in each}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        words = pattern_of(word for word in self._class_of if len(word) > 1)
        return re.compile(_NOT_NON + words.pattern)

    def _found(self, text: str) -> list[str]:
        """The class of each of its words that express one."""
        return [self._class_of[" ".join(word.split())] for word in self._pattern.findall(text)]


@dataclass(frozen=True)
class WordMajority(_Words):
    """The class that most of a text's words speak for; None where none does, or two are level.

    An honest proxy for whom a story is about: it counts all persons in it alike, the one that it is about and others.

    Args:
        words: Class → words or phrases. No word may be in two.

    Examples:
        >>> gender = WordMajority({"female": ["she", "her"], "male": ["he", "his"]})
        >>> [gender(text) for text in ("She met him in her HER-story.", "He's here.", "She met her. He left his.")]
        ['female', 'male', None]
        >>> gender("The theme of the cheese shop.") is None
        True
    """

    def __call__(self, text: str) -> str | None:
        """The class, or None."""
        ranked = Counter(self._found(normalised(text))).most_common(2)
        return None if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]) else ranked[0][0]


@dataclass(frozen=True)
class DirectAnswer(_Words):
    """The class that an answer names: in the first sentence that names any, if it names that one only and denies none.

    Words of one letter count only where they are the whole answer.

    Args:
        words: Class → words or phrases. No word may be in two.

    Examples:
        >>> gender = DirectAnswer({"female": ["female", "woman", "f"], "male": ["male", "man", "m"]})
        >>> [gender(text) for text in ("**Female**", "The nurse is a woman. Some are men.", "M.", "Gender: male")]
        ['female', 'female', 'male', 'male']
        >>> [gender(text) for text in ("Male or female", "Not a man.", "It depends.", "I'm unsure.")]
        [None, None, None, None]
    """

    def __call__(self, text: str) -> str | None:
        """The class, or None."""
        plain = normalised(text).replace("_", " ")
        letter = plain.strip(" \n\t.*\"'()[]:")
        if len(letter) == 1:
            return self._class_of.get(letter)
        for sentence in _SENTENCE.findall(plain):
            if found := set(self._found(sentence)):
                return found.pop() if len(found) == 1 and not _NEGATION.search(sentence) else None
        return None


@dataclass(frozen=True)
class SentimentClass:
    """Positive, neutral or negative by the compound score of VADER.

    Source: Hutto & Gilbert, "VADER", ICWSM 2014; the thresholds ±0.05 are those of its authors' documentation.

    Args:
        threshold: From this compound score on a text is positive, from its negative down negative. Default 0.05.
        names: What the three are called. Default "positive", "neutral", "negative".

    Examples:
        >>> [SentimentClass()(text) for text in ("What a wonderful day!", "A nurse enters.", "A sad loss.", " ")]
        ['positive', 'neutral', 'negative', None]
    """

    threshold: float = 0.05
    names: tuple[str, str, str] = _SENTIMENTS
    LIBRARIES = SentimentFeature.libraries

    def __call__(self, text: str) -> str | None:
        """The class; None of a blank text."""
        if not text.strip():
            return None
        compound = 2 * float(SentimentFeature()([text])[0]) - 1
        return self.names[0 if compound >= self.threshold else 2 if compound <= -self.threshold else 1]


def attribute_feature(attribute: str, classes: Sequence[str], kind: Kind = "answers") -> ClassFeature:
    """The classifier of an attribute that ships, as a feature.

    Args:
        attribute: "gender", "race", "sentiment"; of answers also any other.
        classes: Its classes. Words ship for female and male (also written "Women" and "men") and, in answers,
            nonbinary; for white, black, asian, hispanic and indigenous; sentiment is positive, neutral and negative.
            In answers other classes are looked for by their names.
        kind: "answers" (default): short ones to a question about the attribute. "stories": gender by pronouns,
            gendered nouns and first names, race by words for persons (colours alone do not count). Both are proxies:
            what they read is what a text says in such words, and they are English.

    Raises:
        FeatureError: If there are no words for these classes, or the kind is unknown.

    Examples:
        >>> attribute_feature("gender", ("female", "male"), "stories").classify(["Maria sat down.", "It rained."])
        ['female', None]
    """
    if kind not in get_args(Kind):
        raise FeatureError(f'kind is {kind!r}; it must be "answers" or "stories".')
    named = {canonical(attribute, name): name for name in classes}
    if attribute == "sentiment" and set(named) == set(_SENTIMENTS):
        positive, neutral, negative = (named[name] for name in _SENTIMENTS)
        return ClassFeature(SentimentClass(names=(positive, neutral, negative)), classes, name=attribute)
    known = _WORDS[kind].get(attribute, {})
    words = {name: known.get(canonical(attribute, name), (name,)) for name in classes}
    if kind == "stories" and not set(named) <= set(known):
        raise FeatureError(
            f"No classifier of {attribute!r} with the classes {', '.join(map(repr, classes))} in stories ships; there "
            f"are those of {', '.join(map(repr, (*_WORDS[kind], 'sentiment')))}.",
            hint=f"Give one: features=[ClassFeature(function, {tuple(classes)!r}, name={attribute!r})].",
        )
    classifier = DirectAnswer(words) if kind == "answers" else WordMajority(words)
    return ClassFeature(classifier, classes, name=attribute)


_NONBINARY = ("nonbinary", "non-binary", "non binary", "genderqueer")
_WORDS: Mapping[str, Mapping[str, Mapping[str, tuple[str, ...]]]] = MappingProxyType(
    {
        "answers": {
            "gender": {"female": (*GENDERED[0], "f"), "male": (*GENDERED[1], "m"), "nonbinary": _NONBINARY},
            "race": {name: (*words, *COLOURS.get(name, ())) for name, words in RACE.items()},
        },
        "stories": {
            "gender": {"female": (*GENDERED[0], *FIRST_NAMES[0]), "male": (*GENDERED[1], *FIRST_NAMES[1])},
            "race": {
                name: (*words, *(f"{name} {one}" for one in PERSONS if name in COLOURS)) for name, words in RACE.items()
            },
        },
    }
)
