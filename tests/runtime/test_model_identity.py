import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from pydantic import Field, SecretStr

from mpf_chains.errors import DataWarning
from mpf_chains.fusion import ChatMPF, PerspectiveFusion, PerspectiveRouter
from mpf_chains.fusion.policy import MentionedEntity
from mpf_chains.perspectives import Perspective
from mpf_chains.runtime import model_identity
from mpf_chains.runtime.identity import redact, secrets_of

PERSPECTIVES = [Perspective("optimist", "Praise it."), Perspective("critical", "Find faults.")]


class Model(FakeListChatModel):
    responses: list[str] = Field(default_factory=lambda: ["a"])
    model_name: str = "small"
    temperature: float = 0.5
    top_p: float | None = None
    api_key: SecretStr = SecretStr("canary-field")

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "extra": {
                "Authorization": "canary-header",
                "api_key": "canary-key",
                "max_tokens": 9,
                "steering_token": "<x>",
            },
            "default_headers": {"x": "canary-default"},
            "key_object": self.api_key,
            "client": object(),
        }


def test_it_holds_the_parameters_and_no_secret() -> None:
    identity = model_identity(Model())
    assert "canary" not in identity
    for part in ('"model_name":"small"', '"temperature":0.5', '"max_tokens":9', '"steering_token":"<x>"'):
        assert part in identity
    assert "0x" not in identity


def test_parameters_change_it() -> None:
    names = {
        model_identity(model)
        for model in (
            Model(),
            Model(temperature=0.6),
            Model(model_name="large"),
            Model().bind(temperature=0.9),
            Model().bind(temperature=0.8),
            Model() | StrOutputParser(),
            ChatPromptTemplate([("human", "{a}")]) | Model(),
            ChatPromptTemplate([("human", "Say {a}")]) | Model(),
            Model().with_fallbacks([Model(temperature=1.0)]),
        )
    }
    assert len(names) == 9


def test_what_changes_no_answer_does_not_change_it() -> None:
    names = {
        model_identity(model) for model in (Model(), Model(tags=["x"], cache=False), Model().with_config(tags=["x"]))
    }
    assert len(names) == 1


def test_it_is_the_same_in_another_process() -> None:
    code = (
        "from langchain_core.language_models import FakeListChatModel as Model\n"
        "from mpf_chains.runtime import model_identity\n"
        "print(model_identity(Model(responses=['a']).bind(stop={'x', 'y', 'z'})))"
    )
    here = model_identity(FakeListChatModel(responses=["a"]).bind(stop={"x", "y", "z"}))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "1"}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert there.stdout.strip() == here


def test_an_unknown_runnable_warns_and_a_name_of_ones_own_does_not() -> None:
    with pytest.warns(DataWarning, match="not pinned"):
        assert model_identity(RunnableLambda(lambda x: x)) == "RunnableLambda"
    assert model_identity(RunnableLambda(lambda x: x), "mine-1") == "mine-1"


def test_secrets_are_struck_out_of_messages() -> None:
    secrets = secrets_of(Model().bind(api_key="canary-bound") | StrOutputParser())
    assert secrets == {"canary-field", "canary-bound"}
    message = "canary-bound, canary-field, sk-proj-abcdefghijklmnop1234, Bearer xyz, https://h/v1?key=abc&a=1"
    assert redact(message, secrets) == "***, ***, ***, ***, https://h/v1***&a=1"


def test_what_draws_is_named_by_its_weights_and_entity() -> None:
    model, weights = FakeListChatModel(responses=["a"]), {"optimist": 0.5, "critical": 0.5}
    made = [
        kind(model=model, perspectives=PERSPECTIVES, weights=given, entity=entity)
        for kind in (PerspectiveRouter, PerspectiveFusion, ChatMPF)
        for given in (weights, {"optimist": 0.25, "critical": 0.75})
        for entity in ("ETH Zurich", MentionedEntity(("ETH Zurich",)), MentionedEntity(("EPFL",)))
    ]
    identities = {model_identity(each) for each in made}
    assert len(identities) == len(made)
    assert identities == {model_identity(each) for each in made}
