"""What is put before or bound to a model counts in likelihoods as in answers, or is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import ConfigurableField
from pydantic import Field

from mpf_chains.benchmarks import ItemSet, Prompt, pair_prompts
from mpf_chains.errors import InvalidInput, NotSupportedError
from mpf_chains.evaluation import Evaluation, LikelihoodModel, NextTokenModel, Resampling, Trigger, evaluate
from mpf_chains.evaluation.bound import continues, method_of
from mpf_chains.evaluation.tasks.texts import CONTINUE
from mpf_chains.features import CallableFeature
from mpf_chains.fusion import ChatMPF, PerspectiveRouter
from mpf_chains.local import ChatTransformers
from mpf_chains.perspectives import Perspective
from mpf_chains.runtime import model_identity
from tests.evaluation.likelihood_models import likelihood
from tests.evaluation.test_evaluate import tiny

QUICK = Resampling(resamples=20, permutations=20)
PAIRS = pair_prompts(["The {person}"], {"male": ["man"], "female": ["woman"]})


class Local(BaseChatModel):
    """Repeats the human's last words, and says how likely texts are: the likelier the stronger it is corrected."""

    strength: float = 0.0
    raw: bool = False
    seen: list[Any] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "local"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"strength": self.strength}

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self.seen.append([message.content for message in messages])
        return ChatResult(generations=[ChatGeneration(message=AIMessage(f" {messages[-1].text.split()[-1]}!"))])

    def log_likelihoods(self, texts: Sequence[Any], alphas: float | None = None) -> Iterator[tuple[int, Any]]:
        self.seen.extend(texts)
        weaker = 1 + (self.strength if alphas is None else alphas)
        yield from ((n, likelihood(text) / weaker) for n, (_, text) in enumerate(texts))

    def next_token_log_probabilities(self, prompts: Sequence[str]) -> Iterator[tuple[int, Any]]:
        self.seen.extend(prompts)
        yield from ((n, np.log([0.25, 0.75][:: -1 if "woman" in text else 1])) for n, text in enumerate(prompts))


def quick(model: Any, items: ItemSet[Any], **settings: Any) -> Evaluation:
    return evaluate(model, items, progress=False, resampling=QUICK, **settings)


def test_bound_strengths_are_those_that_are_measured(tmp_path: Path) -> None:
    items, ledger = tiny("crows_pairs", tmp_path), tmp_path / "run.sqlite"
    plain, inside, bound, again = (
        quick(model, items, ledger=ledger)
        for model in (
            Local(), Local(strength=3.0), Local().bind(alphas=3.0, temperature=0.5),
            Local().bind(alphas=1.0).bind(alphas=3.0),
        )
    )  # fmt: skip
    assert bound.records == inside.records == again.records != plain.records
    assert len({one.model for one in (plain, inside, bound)}) == 3
    assert plain.compare(bound)["crows_likelihood_difference"].difference < 0
    assert quick(Local().with_retry().with_config(tags=["x"]), items).records == plain.records


def test_what_is_bound_and_would_be_ignored_is_refused(tmp_path: Path) -> None:
    items = tiny("crows_pairs", tmp_path)
    with pytest.raises(NotSupportedError, match=r"steering: bound to the model.*takes no such.*ChatTransformers\("):
        quick(Local().bind(steering=1, temperature=0), items)
    with pytest.raises(NotSupportedError, match=r"alphas: bound to the model, but its `next_token_log_prob"):
        quick(Local().bind(alphas=1.0), PAIRS)
    assert quick(Local().bind(temperature=0), PAIRS)["hellinger"].n == 1
    perspectives = [Perspective("weak", arguments={"alphas": 1.0}), Perspective("strong", arguments={"alphas": 2.0})]
    drawing = {"model": Local(), "perspectives": perspectives, "weights": {"weak": 0.5, "strong": 0.5}}
    configurable = Local().configurable_fields(strength=ConfigurableField(id="strength"))
    for model in (ChatMPF(**drawing), PerspectiveRouter(**drawing), ChatMPF(**drawing).bind(stop=["x"]), configurable):
        with pytest.raises(NotSupportedError, match=r"needs a model with `log_likelihoods`.*ChatTransformers"):
            quick(model, items)


def test_a_local_model_takes_what_is_bound_to_it() -> None:
    """Bound strengths, and `raw`, are found by name: these are the names."""
    model = ChatTransformers(model="smollm2")  # loads nothing
    assert isinstance(model, LikelihoodModel) and isinstance(model, NextTokenModel)
    for name in ("log_likelihoods", "next_token_log_probabilities"):
        assert method_of(model.bind(alphas={"gender": 1.0}, top_p=0.9), name).keywords == {"alphas": {"gender": 1.0}}
    assert [continues(each) for each in (model, model.bind(raw=True), ChatTransformers(model="smollm2", raw=True))] == [
        False, True, True,
    ]  # fmt: skip


def test_a_trigger_stands_before_whatever_is_scored(tmp_path: Path) -> None:
    model, items = Local(), tiny("crows_pairs", tmp_path, 2)
    triggered = Trigger(model, "Be fair. ")
    assert quick(triggered, items).records == quick(Local(), items).records  # its own tokens are not scored
    assert {before for before, _ in model.seen} == {"Be fair. "}
    assert dict(triggered.log_likelihoods([("In Ö", " it rains")]))[0].tolist() == likelihood(" it rains").tolist()
    model.seen.clear()
    assert quick(triggered, PAIRS)["hellinger"].value > 0
    assert model.seen == ["Be fair. The man", "Be fair. The woman"]
    assert quick(triggered.bind(alphas=3.0), items).records == quick(Local(strength=3.0), items).records
    assert (
        quick(Trigger(Local().bind(alphas=3.0), "Be fair. "), items).records
        == quick(Local(strength=3.0), items).records
    )
    with pytest.raises(NotSupportedError, match="needs a model with `log_likelihoods`"):
        quick(Trigger(FakeListChatModel(responses=["a"]), "x"), items)


def test_triggers_and_models_are_kept_apart(tmp_path: Path) -> None:
    models = [
        Local(), Trigger(Local(), "a"), Trigger(Local(), "b"), Trigger(Trigger(Local(), "a"), "b"),
        Trigger(Local(strength=1.0), "a"), Trigger(Local(), "a").bind(stop=["x"]),
    ]  # fmt: skip
    assert len({model_identity(model) for model in models}) == len(models)
    items, ledger = tiny("crows_pairs", tmp_path, 2), tmp_path / "run.sqlite"
    for model in models[:3]:
        inner = model.bound if isinstance(model, Trigger) else model
        quick(model, items, ledger=ledger)
        assert len(inner.seen) == 4  # nothing came from another's scores


@pytest.mark.parametrize(
    "way", ["invoke", "ainvoke", "batch", "abatch", "stream", "astream", "chain", "bound", "retry"]
)
async def test_a_trigger_stands_before_what_the_human_said_last(way: str) -> None:
    model = Local()
    triggered = Trigger(model, "Be fair. ")
    given: list[BaseMessage] = [SystemMessage("S"), HumanMessage("one"), AIMessage("two"), HumanMessage("three")]
    if way == "ainvoke":
        await triggered.ainvoke(given)
    elif way in {"batch", "abatch"}:
        _ = triggered.batch([given]) if way == "batch" else await triggered.abatch([given])
    elif way == "stream":
        assert "".join(chunk.text for chunk in triggered.stream(given)) == " three!"
    elif way == "astream":
        assert "".join([chunk.text async for chunk in triggered.astream(given)]) == " three!"
    elif way == "chain":
        list((triggered | (lambda message: message.text)).stream(given))
    else:
        runnable = {"invoke": triggered, "bound": triggered.bind(stop=["x"]), "retry": triggered.with_retry()}[way]
        runnable.invoke(given)
    assert model.seen == [["S", "one", "two", "Be fair. three"]]
    assert [message.content for message in given] == ["S", "one", "two", "three"]  # the caller's are left alone


def test_a_trigger_before_blocks_and_before_nothing() -> None:
    model = Local()
    Trigger(model, "Be fair.").invoke([HumanMessage([{"type": "text", "text": "one"}])])
    assert model.seen == [[[{"type": "text", "text": "Be fair."}, {"type": "text", "text": "one"}]]]
    with pytest.raises(InvalidInput, match="no human message"):
        Trigger(model, "Be fair.").invoke([SystemMessage("S")])
    for inner, text in ((model, " "), (model, None), ("model", "x")):
        with pytest.raises(InvalidInput, match="not blank before a chat model"):
            Trigger(inner, text)  # type: ignore[arg-type]


def openings() -> ItemSet[Prompt]:
    def prompt(group: str, n: int) -> Prompt:
        return Prompt(f"{group}/{n}", group, f"Ann Lee {n} was", domain="gender", tags={"name": "Ann Lee"})

    return ItemSet("bold", tuple(prompt(group, n) for group in ("actors", "actresses") for n in range(4)))


@pytest.mark.parametrize("raw", [False, True, "bound"])
def test_a_model_that_continues_text_gets_openings_as_they_stand(raw: Any) -> None:
    judged: list[str] = []
    model = Local(raw=raw is True)
    feature = CallableFeature(lambda texts: judged.extend(texts) or [0.5] * len(texts), "length", version="1")
    system = model.bind(raw=True) if raw == "bound" else model
    evaluation = quick(Trigger(system, "T "), openings(), features=[feature])
    request = "" if raw else CONTINUE
    assert {text for (text,) in model.seen} == {f"T {request}Ann Lee {n} was" for n in range(4)}
    assert set(judged) == {f"Ann Lee {n} was was!" for n in range(4)}
    assert evaluation.settings.get("raw", False) == bool(raw)
    if raw:
        with pytest.raises(InvalidInput, match="measured in different ways: raw"):
            evaluation.compare(quick(Local(), openings(), features=[feature]))


def test_regard_and_toxicity_gaps_are_those_of_the_paper() -> None:
    """Word lists in place of classifiers, a proxy: what is tested is what is made of labels, not how they are found.

    By hand, 4 answers a group. Shares positive ¾ and ¼, neutral 0 and ¼, negative ¼ and ¼, other 0 and ¼: the mean of
    |¾ − ¼|, |0 − ¼|, 0 is ¼ ("other" counts in the shares, and is not compared). Toxic: ¼ and 0.
    """
    words = {"kind": 1.0, "plain": 0.0, "cruel": -1.0, "what": 2.0}
    said = ["kind", "kind", "kind", "cruel", "kind", "plain", "cruel", "what"]
    order = {f"{group}/{n}": said[4 * k + n] for k, group in enumerate(("actors", "actresses")) for n in range(4)}
    items = ItemSet(
        "bold",
        tuple(Prompt(key, key.split("/")[0], f"{key} was", domain="gender", tags={"name": "Ann Lee"}) for key in order),
    )

    class Speaks(Local):
        def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
            key = messages[-1].text.removeprefix(CONTINUE).split()[0]
            return ChatResult(generations=[ChatGeneration(message=AIMessage(f"{order[key]}, said Ann Lee."))])

    def regards(texts: Sequence[str]) -> list[float]:
        assert all("XYZ" in text and "Ann" not in text and "Lee" not in text for text in texts)
        return [next(value for word, value in words.items() if word in text) for text in texts]

    def toxic(texts: Sequence[str]) -> list[float]:
        assert all("Ann Lee" in text for text in texts)
        return [0.5 if "cruel" in text and "actors/" in text else 0.49 for text in texts]

    regard = CallableFeature(regards, "regard", (-1, 2), version="1")
    toxicity = CallableFeature(toxic, "toxicity", version="1")
    evaluation = quick(Speaks(), items, features=[regard, toxicity])
    assert evaluation["regard/regard_gap"].value == pytest.approx(0.25)
    assert evaluation["toxicity/toxicity_gap"].value == pytest.approx(0.25)
    parts = {label: part.value for label, part in evaluation["regard/regard_gap"].parts.items()}
    assert parts["actors: positive"] == 0.75 and "actors: other" not in parts
    assert not any("regard/mean" in key or "regard/counter" in key for key in evaluation.measured)
    assert any('"other", which is on no scale' in note for note in evaluation.notes)
