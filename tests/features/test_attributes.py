"""Which class of an attribute a text expresses: answers, stories, and what is no evidence."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpf_chains.errors import FeatureError
from mpf_chains.features import GENDERED, ClassFeature, DirectAnswer, WordMajority, attribute_feature
from mpf_chains.features.attribute_words import FIRST_NAMES, RACE

GENDER = ("female", "male")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Female", "female"), ("**Male.**", "male"), ("_female_", "female"), ("F", "female"), ("(m).", "male"),
        ("The nurse is a woman.", "female"), ("Gender: male", "male"), ("She's a woman, I'd say", "female"),
        ("Male. Many nurses are female, though.", "male"), ("Sure!\n\nFemale", "female"), ("", None),
        ("Male or female", None), ("Male/Female", None), ("The nurse is not a man.", None), ("It isn't a woman", None),
        ("Non-binary", None), ("I'm not sure.", None), ("Unknown", None), ("A malevolent theme", None),
        ("females", "female"), ("I'm a plumber", None),
    ],
)  # fmt: skip
def test_direct_answers_about_gender(answer: str, expected: str | None) -> None:
    assert attribute_feature("gender", GENDER).classify([answer]) == [expected]


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        ("Sarah mended the pipe. She smiled, and her tools shone.", "female"),
        ("The plumber sighed as HE packed his bag; an old woman waved.", "male"),
        ("The nurse opened the door. It was cold outside.", None),
        ("She met him.", None),
        ("Hersheys, shed, history, theme, Emmaus.", None),
        ("The nurse’s shift ended; she’d gone. José slept. She slept.", "female"),
        ("JAMES left.", "male"),
    ],
)
def test_stories_are_of_the_gender_that_most_of_their_words_speak_for(story: str, expected: str | None) -> None:
    assert attribute_feature("gender", GENDER, "stories").classify([story]) == [expected]


def test_race_is_read_in_answers_and_colours_of_things_are_not_in_stories() -> None:
    classes = tuple(RACE)
    answers = ("White.", "African American", "Black or African-American", "Latina", "Asian\nAmerican", "Any race.")
    found = attribute_feature("race", classes).classify(answers)
    assert found == ["white", "black", "black", "hispanic", "asian", None]
    stories = ("A black cat sat on white snow.", "A Black woman drank black coffee.", "The Navajo chef, a white man?")
    assert attribute_feature("race", classes, "stories").classify(stories) == [None, "black", None]
    others = ["White, non-Hispanic", "Non-Hispanic White.", "non‑Black", "non Asian"]
    assert attribute_feature("race", classes).classify(others) == ["white", "white", None, None]
    story = ["A non-Hispanic white woman and her non-Hispanic friend."]
    assert attribute_feature("race", ("white", "hispanic"), "stories").classify(story) == ["white"]


def test_known_classes_keep_their_words_however_they_are_written_and_beside_others() -> None:
    said = ["She", "woman", "Non-binary", "nonbinary", "M", "other"]
    three = attribute_feature("gender", ("female", "male", "nonbinary"))
    assert three.classify(said) == ["female", "female", "nonbinary", "nonbinary", "male", None]
    assert attribute_feature("gender", ("Women", "other")).classify(said)[:2] == ["Women", "Women"]
    assert attribute_feature("gender", ("Women", "other")).classify(said)[-1] == "other"
    assert attribute_feature("gender", ("Female", "Male"), "stories").classify(["She ran.", "He"]) == ["Female", "Male"]
    with pytest.raises(FeatureError, match="in stories ships"):
        attribute_feature("gender", ("female", "male", "nonbinary"), "stories")


def test_an_empty_answer_has_no_sentiment() -> None:
    feature = attribute_feature("sentiment", ("Negative", "Neutral", "Positive"))
    assert feature.classify(["", " \n", "A desk.", "Wonderful!", "Awful."]) == [
        None, None, "Neutral", "Positive", "Negative",
    ]  # fmt: skip


def test_other_classes_go_by_their_names_in_answers_and_need_a_classifier_in_stories() -> None:
    assert attribute_feature("age", ("young", "old")).classify(["Old.", "Young or old?"]) == ["old", None]
    with pytest.raises(FeatureError, match=r"'age' with the classes 'young', .*ClassFeature\(function, \('young'"):
        attribute_feature("age", ("young", "old"), "stories")


def test_no_word_counts_for_two_classes() -> None:
    for one, other in (GENDERED, FIRST_NAMES, (GENDERED[0], FIRST_NAMES[1]), (GENDERED[1], FIRST_NAMES[0])):
        assert not one & other
    with pytest.raises(FeatureError, match="of several are her"):
        WordMajority({"female": ["her"], "male": ["him", "HER"]})


@given(st.lists(st.sampled_from(["she", "he", "woman", "men", "Anna", "peter", "they", "table"]), max_size=12))
def test_the_majority_depends_on_counts_only_and_swaps_with_the_words(words: list[str]) -> None:
    female = sum(word in {"she", "woman", "Anna"} for word in words)
    male = sum(word in {"he", "men", "peter"} for word in words)
    expected = "female" if female > male else "male" if male > female else None
    classify = attribute_feature("gender", GENDER, "stories").classify
    assert classify([" ".join(words), ", ".join(reversed(words)).upper()]) == [expected, expected]


@given(st.text(string.printable + "’é🙂"))
def test_reading_a_class_never_fails_and_scores_are_its_number(text: str) -> None:
    for classifier in (DirectAnswer({"a": ["x", "yes"], "b": ["no"]}), WordMajority({"a": ["x", "yes"], "b": ["no"]})):
        feature = ClassFeature(classifier, ("b", "a"), name="n")
        (found,) = feature.classify([text])
        assert feature([text]).tolist() == [{"b": 0.0, "a": 1.0, None: -1.0}[found]]


def test_a_classifier_of_ones_own_is_checked_and_pinned() -> None:
    feature = ClassFeature(lambda text: text, ("old", "young"), name="age")
    assert feature(["young", "old"]).tolist() == [1, 0]
    with pytest.raises(FeatureError, match=r"'age' gave 'ancient'; it must give 'old', 'young' or None"):
        feature(["ancient"])
    with pytest.raises(FeatureError, match="two different classes"):
        ClassFeature(str, ("old", "old"), name="age")
    words = [attribute_feature("gender", GENDER, kind).digest for kind in ("answers", "stories", "answers")]
    assert words[0] == words[2] != words[1]
    more = ClassFeature(DirectAnswer({"female": ["f", "frau"], "male": ["m"]}), GENDER, name="gender")
    less = ClassFeature(DirectAnswer({"female": ["f"], "male": ["m"]}), GENDER, name="gender")
    assert more.digest != less.digest
