import json
from math import isclose, isnan, log
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from mpf_chains.errors import InvalidInput  # noqa: E402
from mpf_chains.local.experts import ExpertEnsemble, explain  # noqa: E402
from mpf_chains.local.experts.explanation.explain import explain_token  # noqa: E402

WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture
def byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate("ĠÃ©")}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def told(pairs: int = 3, token: int = 4, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    base, contrasts = torch.randn(40, generator=generator), torch.randn(pairs, 40, generator=generator)
    alphas = {f"pair {i}": 0.5 + i for i in range(pairs)}
    return base, contrasts, alphas, explain_token(token, base, contrasts, alphas, WORDS)


def test_contributions_add_up_to_what_changed() -> None:
    base, contrasts, alphas, record = told()
    after = (base + torch.tensor(list(alphas.values())) @ contrasts).softmax(-1)
    assert record.after == pytest.approx(float(after[4])) and record.before == pytest.approx(float(base.softmax(-1)[4]))
    assert isclose(sum(record.contributions.values()), log(record.after / record.before), abs_tol=1e-9)
    changes = [abs(each.after - each.before) for each in record.alternatives]
    assert changes == sorted(changes, reverse=True)
    assert changes[0] == pytest.approx(float((after - base.softmax(-1)).abs().max()))
    json.dumps(record.as_dict(), allow_nan=False)


def test_a_pair_without_strength_contributes_nothing_and_order_does_not_matter() -> None:
    base, contrasts, alphas, _ = told()
    alphas["pair 1"] = 0.0
    record = explain_token(4, base, contrasts, alphas, WORDS)
    assert record.contributions["pair 1"] == 0
    turned = explain_token(4, base, contrasts.flip(0), dict(reversed(alphas.items())), WORDS)
    assert turned.contributions == pytest.approx(record.contributions)


def test_a_token_that_the_base_rules_out_has_no_parts() -> None:
    base, contrasts, alphas, _ = told()
    base[4] = -torch.inf
    record = explain_token(4, base, contrasts, alphas, WORDS)
    assert (record.before, record.after) == (0, 0) and all(isnan(part) for part in record.contributions.values())
    assert record.as_dict()["contributions"] == dict.fromkeys(alphas)


def test_half_characters_and_spaces_are_told(byte_tokenizer: Any) -> None:
    base, contrasts, alphas, _ = told()
    texts = [explain_token(i, base, contrasts, alphas, byte_tokenizer).text for i in byte_tokenizer.encode(" é")]
    assert texts == [" ", r"\xc3", r"\xa9"]


def test_pairs_whose_halves_are_the_same_change_nothing(llama: Any) -> None:
    ensemble = ExpertEnsemble([llama.pair("gender", "e1", "e1")])
    (record,) = explain(llama.base, ensemble, llama.tokenizer, [1, 7], [9])
    assert record.before == record.after > 0 and record.contributions == {"gender": 0}


def test_numbers_must_fit() -> None:
    base, contrasts, _, _ = told()
    with pytest.raises(InvalidInput, match="1 strengths for 3 pairs"):
        explain_token(0, base, contrasts, {"a": 1.0}, WORDS)


def test_an_answer_is_explained_by_the_definition(llama: Any) -> None:
    pairs = [("e1", "a1", 0.6), ("e2", "small", 0.3)]
    prompt = [1, 7, 9]
    answer = llama.greedy(prompt, pairs, 5)
    ensemble = ExpertEnsemble([llama.pair(), llama.pair("race", "e2", None, alpha=0.3)])
    records = explain(llama.base, ensemble, llama.tokenizer, prompt, answer, alphas={"gender": 0.6})
    assert [record.token for record in records] == answer
    for i, record in enumerate(records):
        ids = [*prompt, *answer[:i]]
        before, after = (llama.definition(ids, which).softmax(-1)[answer[i]] for which in ([], pairs))
        assert (record.before, record.after) == pytest.approx((float(before), float(after)), abs=1e-5)
        assert isclose(sum(record.contributions.values()), log(record.after / record.before), abs_tol=1e-9)
        assert set(record.contributions) == {"gender", "race"}
    as_tensors = (torch.tensor(prompt), torch.tensor(answer))
    assert explain(llama.base, ensemble, llama.tokenizer, *as_tensors, alphas={"gender": 0.6}) == records


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"answer": []}, "nothing to explain"), ({"prompt": []}, "nothing to explain"),
     ({"prompt": torch.tensor([[1, 2]])}, r"`prompt` has \[1, 2\] at place 0"),
     ({"prompt": "text"}, "list of token ids"),
     ({"answer": [600]}, "`answer` has 600 at place 0; .*from 0 to 28"), ({"answer": [-1]}, "`answer` has -1"),
     ({"answer": [0.5]}, "`answer` has 0.5"), ({"prompt": 7}, "list of token ids"),
     ({"alternatives": -1}, "`alternatives` is -1"), ({"alternatives": 2.5}, "`alternatives` is 2.5")],
)  # fmt: skip
def test_arguments_are_checked(llama: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        explain(llama.base, ExpertEnsemble([llama.pair()]), llama.tokenizer, **{"prompt": [1], "answer": [7], **wrong})


def test_more_than_twelve_pairs_are_refused_only_if_they_move_something(llama: Any) -> None:
    ensemble = ExpertEnsemble([llama.pair(f"pair {i}", alpha=0.1) for i in range(13)])
    with pytest.raises(InvalidInput, match="13 pairs move something; at most 12"):
        explain(llama.base, ensemble, llama.tokenizer, [1, 7], [9])
    none = {f"pair {i}": 0.0 for i in range(11)}
    (record,) = explain(llama.base, ensemble, llama.tokenizer, [1, 7], [9], alphas=none)
    assert len(record.contributions) == 13 and not any(record.contributions[name] for name in none)
