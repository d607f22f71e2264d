"""Likelihoods under experts against their definition: every model over every prefix, one text at a time."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mpf_chains.errors import GenerationError, InvalidInput, VocabularyMismatch  # noqa: E402
from mpf_chains.local import ChatTransformers, ExpertPair, scoring  # noqa: E402
from mpf_chains.local.experts import ExpertEnsemble  # noqa: E402
from mpf_chains.local.likelihood import (  # noqa: E402
    Row,
    Span,
    encode,
    log_likelihoods,
    next_token_log_probabilities,
    windows,
)
from mpf_chains.local.packed import CorrectedModel  # noqa: E402
from tests.local.experts.conftest import BOS, TARGETS, WORDS, save_adapter, tiny_model, tokenizer_of  # noqa: E402

EXACT = 1e-9
ROUNDED = 1e-5  # some models take a softmax in float32 whatever their own precision is
TEXTS = [
    ("", "t h e c a t"), ("", "t h e c o w s"), ("", "t h e c a t"), ("t h e", " c a t"), ("t h e ", "c a t"),
    ("", "q"), ("   ", "d o g"), ("a b c d e f g h i j k l m n o p", " q r"), ("", "a b c d e f g h i j k l m n o z"),
]  # fmt: skip
PROMPTS = ["t h e", "t h e c a t", "", "q", "t h e", "z y x w"]


def merged(model: Any, folder: Path | None) -> Any:
    """A copy with an adapter worked into its weights, in float64."""
    from safetensors.torch import load_file

    model = copy.deepcopy(model)
    tensors = load_file(folder / "adapter_model.safetensors") if folder else {}
    for name, down in tensors.items():
        if name.endswith("lora_A.weight"):
            module = model.get_submodule(name[len("base_model.model.") : -len(".lora_A.weight")])
            config = json.loads((folder / "adapter_config.json").read_text())  # type: ignore[operator]
            up = tensors[name.replace("lora_A", "lora_B")]
            delta = config["lora_alpha"] / config["r"] * up.to(module.weight.dtype) @ down.to(module.weight.dtype)
            module.weight.data += delta.T if hasattr(module, "nf") else delta
    return model


@dataclass
class Case:
    """A base, expert pairs with their strengths, and the same as whole models."""

    base: Any
    tokenizer: Any
    pairs: list[ExpertPair] = field(default_factory=list)
    alphas: list[float] = field(default_factory=list)
    whole: list[tuple[Any, Any]] = field(default_factory=list)
    engine: Any = None
    ensemble: Any = None
    tolerance: float = EXACT
    known: dict[Any, Any] = field(default_factory=dict)

    def add(self, alpha: float, expert: Any, anti: Any, small: Any = None) -> Case:
        """A pair of adapters (folders; None: missing) on a small model, or of models."""
        name = f"pair {len(self.pairs)}"
        self.pairs.append(ExpertPair(name, expert, anti, base=small, tokenizer=self.tokenizer))
        self.alphas.append(alpha)
        halves = (half if small is None else merged(small, half) for half in (expert, anti))
        self.whole.append(tuple(halves))  # type: ignore[arg-type]
        return self

    def made(self) -> Case:
        self.ensemble = ExpertEnsemble(self.pairs)
        self.engine = ChatTransformers(model=self.base, tokenizer=self.tokenizer)._engine
        return self

    def law(self, ids: Sequence[int], alphas: Sequence[float] | None = None) -> Any:
        """Log-probabilities of what follows some tokens."""
        z = self.last(self.base, ids)
        for alpha, (expert, anti) in zip(self.alphas if alphas is None else alphas, self.whole, strict=True):
            z = z + alpha * (self.last(expert, ids) - self.last(anti, ids))
        return z.log_softmax(-1).numpy()

    def last(self, model: Any, ids: Sequence[int]) -> Any:
        key = id(model), tuple(ids)
        if key not in self.known:
            with torch.no_grad():
                logits = model(torch.tensor([list(ids)])).logits
            self.known[key] = logits[0, -1, : len(self.tokenizer)].double()
        return self.known[key]

    def text(self, before: Sequence[int], targets: Sequence[int], alphas: Sequence[float] | None = None) -> Any:
        return [self.law([*before, *targets[:i]], alphas)[target] for i, target in enumerate(targets)]

    def scores(self, texts: Sequence[tuple[str, str]], alphas: Any = "own", **more: Any) -> dict[int, Any]:
        alphas = self.alphas if isinstance(alphas, str) else alphas
        return dict(log_likelihoods(self.engine, texts, ensemble=self.ensemble, alphas=alphas, **more))

    def next(self, prompts: Sequence[str], alphas: Any = "own") -> dict[int, Any]:
        alphas = self.alphas if isinstance(alphas, str) else alphas
        return dict(next_token_log_probabilities(self.engine, prompts, self.ensemble, alphas))


class Models:
    """Tiny models in float64, and random adapters on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tokenizer, self._made = folder, tokenizer_of(WORDS), 0

    def model(self, kind: str = "llama", seed: int = 1, **more: Any) -> Any:
        return tiny_model(kind, seed, **more).double()

    def other(self, kind: str) -> Any:
        import transformers as hf

        small = {"vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.4}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
        with torch.random.fork_rng():
            torch.manual_seed(5)
            if kind == "gemma2":  # its logits are no linear function of its states
                more = {"head_dim": 8, "sliding_window": 16, "final_logit_softcapping": 3.0}
                model: Any = hf.Gemma2ForCausalLM(hf.Gemma2Config(**small, **heads, **more))
            elif kind == "alibi":
                del small["num_hidden_layers"]
                model = hf.BloomForCausalLM(hf.BloomConfig(**small, n_layer=2, n_head=4))
            else:
                model = hf.MambaForCausalLM(hf.MambaConfig(**small, state_size=4))
        return model.double().eval()

    def adapter(self, model: Any, kind: str = "llama") -> Path:
        self._made += 1
        return save_adapter(self.folder / str(self._made), model, TARGETS[kind], self._made)

    def case(self, base: Any = None) -> Case:
        return Case(self.model(width=48) if base is None else base, self.tokenizer)

    def named(self, name: str) -> Case:
        if name == "on the base":
            case = self.case()
            case.add(1.3, self.adapter(case.base), self.adapter(case.base), case.base)
        elif name == "several on several models":  # two share an adapter, two are on the base, one lacks a half there
            case, small = self.case(), self.model(seed=2)
            shared = self.adapter(small)
            case.add(0.7, shared, self.adapter(small), small).add(-0.4, self.adapter(small), shared, small)
            case.add(0.9, self.adapter(case.base), None, case.base).add(0.2, None, self.adapter(case.base), case.base)
        elif name == "full models":
            case = self.case().add(0.8, self.model("gpt2", 3), self.model("llama", 4))
        elif name == "missing half":
            small = self.model(seed=2)
            case = self.case().add(1.5, None, self.adapter(small), small)
        elif name in {"llama", "gpt2"}:
            base, small = self.model(name, width=48), self.model(name, 2)
            case = self.case(base).add(1.2, self.adapter(small, name), self.adapter(small, name), small)
        elif name == "gemma2":
            case, small = self.case(self.other("gemma2")), self.model(seed=2)
            case.add(2.0, self.adapter(case.base), None, case.base)
            case.add(1.0, self.adapter(small), self.adapter(small), small)
            case.tolerance = ROUNDED
        else:
            small = self.model(seed=2)
            case = self.case(self.other(name)).add(1.0, self.adapter(small), self.adapter(small), small)
            case.tolerance = ROUNDED
        return case.made()


CASES = (
    "on the base", "several on several models", "full models", "missing half", "llama", "gpt2", "gemma2", "alibi",
    "recurrent",
)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def cases(models: Models) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in made:
            made[name] = models.named(name)
        return made[name]

    return get


@pytest.fixture
def inputs() -> Iterator[Callable[[Any], list[tuple[int, ...]]]]:
    """Shapes of what modules get, call by call."""
    handles = []

    def watch(module: Any) -> list[tuple[int, ...]]:
        seen: list[tuple[int, ...]] = []
        handles.append(module.register_forward_pre_hook(lambda _module, given: seen.append(tuple(given[0].shape))))
        return seen

    yield watch
    for handle in handles:
        handle.remove()


def assert_same(case: Case, texts: Sequence[tuple[str, str]]) -> None:
    found = case.scores(texts)
    assert sorted(found) == list(range(len(texts)))
    for index, (before, targets) in enumerate(encode(case.tokenizer, texts)):
        expected = case.text(before, targets)
        np.testing.assert_allclose(found[index], expected, rtol=0, atol=case.tolerance, err_msg=str(texts[index]))


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_the_definition(cases: Callable[[str], Case], name: str) -> None:
    assert_same(cases(name), TEXTS)


@pytest.mark.parametrize("name", ["several on several models", "gemma2", "recurrent"])
def test_next_tokens_are_those_of_the_definition(cases: Callable[[str], Case], name: str) -> None:
    case = cases(name)
    for alphas in (case.alphas, [0.0] * len(case.alphas)):
        found = case.next(PROMPTS, alphas)
        assert sorted(found) == list(range(len(PROMPTS)))
        for index, prompt in enumerate(PROMPTS):
            ids = case.tokenizer.encode(prompt) or [BOS]
            assert found[index].shape == (len(WORDS),) and found[index].dtype == np.float32
            np.testing.assert_allclose(found[index], case.law(ids, alphas), rtol=1e-6, atol=1e-6)


def test_a_next_token_is_a_text_of_one_token(cases: Callable[[str], Case]) -> None:
    case = cases("gpt2")
    laws = case.next(PROMPTS)
    scores = case.scores([(prompt, " m") for prompt in PROMPTS])
    for i in range(len(PROMPTS)):
        assert laws[i][WORDS.index("m")] == pytest.approx(scores[i][0], abs=1e-5)


def test_a_pair_on_the_base_is_read_with_it(cases: Callable[[str], Case], models: Models, inputs: Any) -> None:
    one = cases("on the base")
    one.scores(TEXTS)  # trials are over
    read, heads = inputs(one.base.get_input_embeddings()), inputs(one.base.get_output_embeddings())
    one.scores(TEXTS)
    assert read and all(shape[0] % 3 == 0 for shape in read)
    places = {tuple(ids[: i + 1]) for ids in texts_of(one) for i in range(len(ids))}
    assert sum(shape[-2] for shape in heads if len(shape) == 4) <= len(places)  # one product for each position
    lone = models.case()
    lone.add(1.0, models.adapter(lone.base), None, lone.base).made()
    lone.scores(TEXTS)
    read = inputs(lone.base.get_input_embeddings())
    lone.scores([("", "a b c")])
    assert read == [(2, 3)]


def texts_of(case: Case) -> list[list[int]]:
    return [[*before, *targets[:-1]] for before, targets in encode(case.tokenizer, TEXTS)]


def test_without_strength_experts_are_not_read(cases: Callable[[str], Case], models: Models, inputs: Any) -> None:
    case = cases("several on several models")
    small = case.pairs[0].base
    read = inputs(small.get_input_embeddings())
    plain = dict(log_likelihoods(case.engine, TEXTS))
    for index, found in case.scores(TEXTS, [0, 0.0, -0.0, 0]).items():
        np.testing.assert_array_equal(found, plain[index])
    assert not read
    assert case.scores(TEXTS[:1], [0, 0, 0.9, 0])[0] == pytest.approx(
        case.text(*encode(case.tokenizer, TEXTS[:1])[0], [0, 0, 0.9, 0]), abs=EXACT
    )
    assert not read
    same = models.case()
    folder = models.adapter(small)
    same.add(1.0, folder, folder, small).made()
    assert same.scores(TEXTS)[0].tolist() == dict(log_likelihoods(same.engine, TEXTS))[0].tolist()
    assert not read


def test_a_pair_has_a_strength_of_its_own(models: Models) -> None:
    case, small = models.case(), models.model(seed=2)
    case.add(1.0, models.adapter(small), models.adapter(small), small).made()
    assert case.scores(TEXTS[:1], None)[0] == pytest.approx(case.scores(TEXTS[:1], [1.0])[0], abs=EXACT)


def test_padding_behind_the_vocabulary_gets_nothing(models: Models) -> None:
    base, small = models.model(vocabulary=40), models.model(seed=2, vocabulary=33)
    case = models.case(base).add(1.0, models.adapter(small), models.adapter(small), small)
    case.add(0.5, models.adapter(base), None, base).made()
    assert_same(case, TEXTS)
    for law in case.next(PROMPTS).values():
        assert law.shape == (len(WORDS),) and np.exp(law.astype(float)).sum() == pytest.approx(1, abs=1e-6)


# ---- long texts


@pytest.mark.parametrize("name", ["several on several models", "gemma2", "recurrent"])
@pytest.mark.parametrize("logits", [None, 9])
def test_long_texts_are_read_in_windows_and_pieces(
    cases: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch, name: str, logits: int | None
) -> None:
    case = cases(name)
    if logits:
        monkeypatch.setattr(scoring, "_LOGITS", logits * len(WORDS))
        monkeypatch.setattr(scoring, "_PIECE", logits // 4 * len(WORDS))
    rng = random.Random(0)
    texts = [("", " ".join(rng.choices("abc", k=length))) for length in (5, 24, 40)]
    found = case.scores([*texts, ("a b c", " " + "d e " * 20)], window=24)
    for index, (before, targets) in enumerate(encode(case.tokenizer, texts)):
        expected = [
            score
            for span in windows(index, before, targets, 24)
            for score in case.text(span.ids[: len(span.ids) - len(span.targets) + 1], span.targets)
        ]
        np.testing.assert_allclose(found[index], expected, rtol=0, atol=case.tolerance)
    np.testing.assert_allclose(found[3], case.text([3, 4, 5], [6, 7] * 20), rtol=0, atol=case.tolerance)


def test_few_logits_are_held_at_a_time(
    cases: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch, inputs: Any
) -> None:
    case = cases("on the base")
    heads = inputs(case.base.get_output_embeddings())
    monkeypatch.setattr(scoring, "_PIECE", 5 * len(WORDS))
    assert_same(case, TEXTS)
    assert max(shape[-2] for shape in heads if len(shape) == 4) == 5
    whole = cases("gemma2")  # whose logits come from the model: for all positions of a piece, of base and expert
    heads = inputs(whole.base.get_output_embeddings())
    monkeypatch.setattr(scoring, "_LOGITS", 12 * len(WORDS))
    whole.scores([("", "a b c d e " * 5)])
    assert [shape[0] * shape[1] for shape in heads[-5:]] == [12, 12, 12, 12, 2]  # 25 positions


def test_the_smallest_context_counts(models: Models) -> None:
    small = models.model(seed=2, context=16)
    case = models.case().add(1.0, models.adapter(small), models.adapter(small), small).made()
    long = [("", "a b"), ("a " * 10, "b " * 8)]
    with pytest.raises(InvalidInput, match=r"Text 1 has 10 tokens of context and 8 .*model and its experts.* most 16"):
        log_likelihoods(case.engine, long, ensemble=case.ensemble, alphas=case.alphas)
    with pytest.raises(InvalidInput, match=r"Prompt 1 has 17 tokens; the model and its experts.* most 16"):
        next_token_log_probabilities(case.engine, ["a", "b " * 17], case.ensemble, case.alphas)
    assert len(case.scores(long, [0.0])[1]) == len(case.scores([("", "b " * 30)])[0]) - 22 == 8
    np.testing.assert_array_equal(case.scores([("", "b " * 30)])[0], case.scores([("", "b " * 30)], window=16)[0])
    with pytest.raises(InvalidInput, match="Prompt 0 has 65 tokens; the model reads at most 64"):
        next_token_log_probabilities(case.engine, ["a " * 65])


# ---- what is refused


def test_wrong_arguments_are_refused_at_once(cases: Callable[[str], Case], models: Models) -> None:
    case = cases("llama")
    for alphas, message in (
        ([], "0 `alphas` for 1 expert pairs"),
        ([1.0, 1.0], "2 `alphas` for 1 expert pairs"),
        ([float("nan")], "'pair 0' is nan"),
    ):
        with pytest.raises(InvalidInput, match=message):
            log_likelihoods(case.engine, TEXTS, ensemble=case.ensemble, alphas=alphas)
    with pytest.raises(InvalidInput, match="1 `alphas` for 0 expert pairs"):
        next_token_log_probabilities(case.engine, PROMPTS, alphas=[1.0])
    other = models.case(models.model(vocabulary=3))
    other.tokenizer = tokenizer_of(WORDS[:3])
    other.made()
    with pytest.raises(VocabularyMismatch):
        log_likelihoods(other.engine, [("", "<e>")], ensemble=case.ensemble)
    other.tokenizer.bos_token = other.tokenizer.eos_token = None
    with pytest.raises(InvalidInput, match="Prompt 1 has no token, and the tokenizer no BOS"):
        next_token_log_probabilities(other.engine, ["<e>", ""])
    assert case.scores([]) == case.next([]) == {}


def test_logits_out_of_all_bounds_are_an_error(cases: Callable[[str], Case]) -> None:
    case = cases("llama")
    with pytest.raises(GenerationError, match="not all finite"):
        case.scores(TEXTS, [1e308])


# ---- many strengths at once


def test_one_reading_gives_every_strength(cases: Callable[[str], Case]) -> None:
    case = cases("several on several models")
    points = np.array([[0.0] * 4, case.alphas, [0.0, 2.0, 0.0, -1.0]])
    texts = encode(case.tokenizer, TEXTS)
    spans = [Span(i, [*before, *targets[:-1]], targets) for i, (before, targets) in enumerate(texts)]
    seen = set()
    for span, logs, divergences in scoring.scan_spans(
        case.base, case.ensemble.loaded, len(WORDS), spans, points, positions=20
    ):
        seen.add(span.text)
        before, targets = texts[span.text]
        for point, log, divergence in zip(points, logs, divergences, strict=True):
            np.testing.assert_allclose(log, case.text(before, targets, point), rtol=0, atol=EXACT)
            for i, value in enumerate(divergence):
                p, q = (case.law([*before, *targets[:i]], alphas) for alphas in (points[0], point))
                assert value == pytest.approx((np.exp(p) * (p - q)).sum(), abs=EXACT)
    assert seen == set(range(len(TEXTS)))


def test_parts_behind_prompts_make_every_law(cases: Callable[[str], Case]) -> None:
    case = cases("several on several models")
    corrected = CorrectedModel(case.base, case.ensemble.loaded, [0.0] * 4, len(WORDS))
    prompts = [case.tokenizer.encode(prompt) for prompt in ("t h e c a t", "t h e", "q")]
    parts = scoring.next_parts(corrected, [Row(Span(i, ids, [0])) for i, ids in enumerate(prompts)])
    for i, ids in enumerate(prompts):
        law = (parts[0, i] + torch.tensor(case.alphas, dtype=torch.float64) @ parts[1:, i]).log_softmax(-1)
        np.testing.assert_allclose(law, case.law(ids), rtol=0, atol=EXACT)


@pytest.mark.slow
@pytest.mark.real_model
def test_smollm2_with_a_pair_on_itself(tmp_path: Path) -> None:
    chat = ChatTransformers(model="smollm2", dtype="float32")
    model, tokenizer, _ = chat._engine.load()
    folders = [
        save_adapter(tmp_path / name, model, ["q_proj", "v_proj"], seed, rank=8, size=0.02)
        for seed, name in enumerate("ea")
    ]
    case = Case(model, tokenizer, engine=chat._engine, tolerance=1e-4).add(0.8, *folders, model)
    case.ensemble = ExpertEnsemble(case.pairs)
    texts = [("", "My aunt is kind."), ("", "My aunt is late."), ("The capital of France is", " Paris.")]
    plain = dict(log_likelihoods(chat._engine, texts))
    assert_same(case, texts)
    assert max(np.abs(found - plain[index]).max() for index, found in case.scores(texts).items()) > 0.1
