import pytest

from mpf_chains.perspectives import PerspectiveSet
from mpf_chains.testing import ANSWERS, BiasedChatModel, FaultyChatModel


@pytest.mark.parametrize("perspective", PerspectiveSet.builtin("mpf"), ids=lambda p: p.name)
async def test_the_biased_model_answers_in_the_perspectives_tone(perspective):
    model = BiasedChatModel()
    prompt = [("system", perspective.instruction), ("human", "How is it?")]
    answer = model.invoke(prompt)
    planted = next(answers for part, answers in ANSWERS.items() if part in perspective.instruction)
    assert answer.text in planted
    assert answer.text == model.invoke(prompt).text == (await model.ainvoke(prompt)).text
    pieces = list(model.stream(prompt))
    assert "".join(piece.text for piece in pieces) == answer.text
    assert len(pieces) > len(answer.text.split())
    assert sum(pieces[1:], pieces[0]).usage_metadata == answer.usage_metadata


def test_the_seed_and_the_question_change_the_answer():
    model, other = BiasedChatModel(), BiasedChatModel(seed=1)
    prompts = [[("system", "You are a realist."), ("human", f"Q{index}?")] for index in range(12)]
    texts = [model.invoke(prompt).text for prompt in prompts]
    assert len(set(texts)) == 2
    assert texts != [other.invoke(prompt).text for prompt in prompts]
    assert model.invoke("anything else").text == "It depends."


def test_the_faulty_model_follows_its_script():
    model = FaultyChatModel(script=["first", TimeoutError("slow")], failing={"bad": ValueError("no")})
    assert model.invoke("Q?").text == "first"
    with pytest.raises(ValueError, match="no"):
        model.invoke("bad question")
    with pytest.raises(TimeoutError, match="slow"):
        model.invoke("Q?")
    assert model.invoke("Q?").text == "ok"
