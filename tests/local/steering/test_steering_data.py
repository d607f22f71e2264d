"""Rows from answers whose class is known, and answers that a model is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from mpf_chains.errors import InvalidInput
from mpf_chains.local.steering.training.data import Answer, SteeringData
from mpf_chains.local.steering.training.written import write_answers
from mpf_chains.targets import TargetTable

TARGETS = TargetTable.uniform(["nurse", "chef"], {"gender": ("female", "male")})
PERSONS = {"female": ["{context} named Ann", "{context} named Eve"], "male": ["{context} named Bob"]}


class Writer:
    """Says its prompt again; about a chef named Bob it says nothing of use, and about Eve it does not stop."""

    def batch(self, texts: Sequence[str]) -> list[AIMessage]:
        return [self.answer(text) for text in texts]

    def answer(self, text: str) -> AIMessage:
        said = "It rained." if "chef named Bob" in text else text
        return AIMessage(said, response_metadata={"finish_reason": "length" if "Eve" in text else "stop"})


def classify(texts: Sequence[str]) -> list[str | None]:
    return [{"Ann": "female", "Eve": "female", "Bob": "male"}.get(text.rstrip(".").split()[-1]) for text in texts]


def write(**settings: Any) -> list[Answer]:
    writer: Any = Writer()
    return write_answers(writer, TARGETS.contexts, ["Tell of {a_context}."], PERSONS, classify, **settings)


def test_kept_is_what_has_the_class_and_came_to_an_end_under_the_prompt_without_it() -> None:
    found = write(per_prompt=2)
    assert {answer.prompt for answer in found} == {"Tell of a nurse.", "Tell of a chef."}
    assert [(answer.context, answer.cls, answer.text) for answer in found] == [
        ("nurse", "female", "Tell of a nurse named Ann."),
        ("nurse", "male", "Tell of a nurse named Bob."),
        ("nurse", "male", "Tell of a nurse named Bob."),
        ("chef", "female", "Tell of a chef named Ann."),
    ]
    assert sum("Eve" in answer.text for answer in write(per_prompt=2, whole=False)) == 2


def test_each_answer_gets_one_of_another_class_about_the_same_context_beside_it() -> None:
    data = SteeringData.of_answers(TARGETS, write(per_prompt=2))
    right = [row for row in data.rows if row.desirable]
    wrong = [row for row in data.rows if not row.desirable]
    assert len(right) == 4 and {row.context for row in wrong} == {"nurse"}  # of the chef there are none of men
    assert all(row.prompt == "Tell of a nurse." and row.token != row.text for row in wrong) and len(wrong) == 3
    assert not any(not row.desirable for row in SteeringData.of_answers(TARGETS, write(), mismatched=False).rows)


def test_data_are_added_where_the_targets_are_the_same() -> None:
    short = SteeringData.build(TARGETS, ["Who is {a_context}?"], {"female": ["She."], "male": ["He."]}, per_context=1)
    both = short + SteeringData.of_answers(TARGETS, write(per_prompt=2))
    assert both.rows[: len(short.rows)] == short.rows and len(both.rows) == len(short.rows) + 7
    other = SteeringData(TARGETS.select(["nurse"]), [row for row in short.rows if row.context == "nurse"])
    with pytest.raises(InvalidInput, match="different targets"):
        short + other


def test_useless_requests_are_refused() -> None:
    writer: Any = Writer()
    with pytest.raises(InvalidInput, match="None of 4 answers"):
        write_answers(writer, TARGETS.contexts, ["Tell of {a_context}."], PERSONS, lambda texts: [None] * len(texts))
    with pytest.raises(InvalidInput, match="list of persons for 'male'"):
        write_answers(writer, ["chef"], ["Tell of {a_context}."], PERSONS | {"male": []}, classify)
    with pytest.raises(InvalidInput, match="no place for a context"):
        write_answers(writer, ["chef"], ["Tell."], PERSONS, classify)
