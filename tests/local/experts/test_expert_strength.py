"""The α curve against its definition, model by model and strength by strength; and choices on planted curves."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mpf_chains.errors import InvalidInput, VocabularyMismatch  # noqa: E402
from mpf_chains.local.experts import (  # noqa: E402
    AlphaCurve,
    Association,
    ExpertEnsemble,
    ExpertPair,
    alpha_curve,
    choose_alpha,
)

BOS = 1
ASSOCIATIONS = [
    Association("a b c", "a b d", "a b z", "gender", "nurse"),
    Association("e f g h", "e f", "q r s t u", "gender", "nurse"),
    Association("k l", "m n o", "p", "race", "chef"),
]
TEXTS = ["a b c d e f g h i j k", "z y x"]
PROMPTS = [("a b", "c d e"), ("x", "y")]
ALPHAS = {"gender": (0.5, 1.0, -0.3), "race": (0.7,)}


@pytest.fixture(scope="module")
def ensemble(setting: Any) -> ExpertEnsemble:
    return ExpertEnsemble([setting.pair("gender"), setting.pair("race", "e2", "a2")])


@pytest.fixture(scope="module")
def curve(setting: Any, ensemble: ExpertEnsemble) -> AlphaCurve:
    return measured(setting, ensemble)


def measured(setting: Any, ensemble: ExpertEnsemble, **more: Any) -> AlphaCurve:
    arguments = dict(associations=ASSOCIATIONS, texts=TEXTS, prompts=PROMPTS, alphas=ALPHAS, progress=False) | more
    return alpha_curve(setting.base, setting.tokenizer, ensemble, **arguments)


@cache
def logits(model: Any, *ids: int) -> Any:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


class Naive:
    """Every number from z + Σ α (z⁺ − z⁻), read anew for each prefix."""

    def __init__(self, setting: Any, point: np.ndarray) -> None:
        self.setting, self.pairs = setting, [("e1", "a1", point[0]), ("e2", "a2", point[1])]

    def law(self, ids: list[int], corrected: bool = True) -> Any:
        z, copies = logits(self.setting.base, *ids), self.setting.copies
        for expert, anti, alpha in self.pairs if corrected else []:
            z = z + alpha * (logits(copies[expert], *ids) - logits(copies[anti], *ids))
        return z.double().log_softmax(-1)

    def text(self, text: str, block: int = 256) -> tuple[float, float, int]:
        """Sums of ln p and of KL(base ‖ corrected), and tokens."""
        targets = self.setting.tokenizer(text, add_special_tokens=False)["input_ids"]
        logs = divergence = 0.0
        for i, token in enumerate(targets):
            ids = [BOS, *targets[i - i % (block - 1) : i]]
            after, before = self.law(ids), self.law(ids, corrected=False)
            logs += float(after[token])
            divergence += float((before.exp() * (before - after)).sum())
        return logs, divergence, len(targets)

    def distance(self, prompts: tuple[str, str]) -> float:
        p, q = (self.law(self.setting.tokenizer(text)["input_ids"]).exp() for text in prompts)
        return float(((p.sqrt() - q.sqrt()).pow(2).sum() / 2).sqrt())


@pytest.mark.parametrize("block", [256, 5])
def test_one_pass_equals_a_pass_for_every_strength(setting: Any, ensemble: ExpertEnsemble, block: int) -> None:
    curve = measured(setting, ensemble, block=block)
    assert curve.points.tolist() == [[a, b] for a in (-0.3, 0, 0.5, 1) for b in (0, 0.7)] and curve.zero == 2
    for i, point in enumerate(curve.points):
        naive = Naive(setting, point)
        for j, each in enumerate(ASSOCIATIONS):
            for k, text in enumerate((each.stereotype, each.anti, each.unrelated)):
                logs, _, tokens = naive.text(text)
                assert curve.scores[i, j, k] == pytest.approx(logs / tokens, abs=2e-4)
        for j, text in enumerate(TEXTS):
            logs, divergence, tokens = naive.text(text, block)
            assert curve.tokens[j] == tokens
            assert curve.losses[i, j] == pytest.approx(-logs, abs=1e-3)
            assert curve.divergences[i, j] == pytest.approx(divergence, abs=1e-3)
        assert curve.distances[i] == pytest.approx([naive.distance(prompts) for prompts in PROMPTS], abs=1e-4)


def test_batches_change_nothing(setting: Any, ensemble: ExpertEnsemble, curve: AlphaCurve) -> None:
    pieces = measured(setting, ensemble, positions=1)
    for name in ("scores", "losses", "divergences", "distances"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(curve, name), atol=1e-3)


def test_texts_are_read_once_however_many_strengths(setting: Any, ensemble: ExpertEnsemble, shapes: Any) -> None:
    seen = shapes(setting.base.get_input_embeddings())
    measured(setting, ensemble)  # how a model takes packed texts is tried once
    seen.clear()
    measured(setting, ensemble, alphas=(0.0, 1.0))
    few = list(seen)
    seen.clear()
    measured(setting, ensemble, alphas=np.linspace(0, 2, 9).tolist())
    assert seen == few
    assert few


def test_metrics_of_a_measured_curve(setting: Any, curve: AlphaCurve) -> None:
    assert curve.metrics == (
        "ss", "lm", "icat", "ss/gender", "lm/gender", "icat/gender", "ss/race", "lm/race", "icat/race",
        "perplexity", "kl", "hellinger",
    )  # fmt: skip
    base = [Naive(setting, np.zeros(2)).text(text) for text in TEXTS]
    perplexity = np.exp(-sum(each[0] for each in base) / sum(each[2] for each in base))
    assert curve.values("perplexity")[curve.zero] == pytest.approx(perplexity, rel=1e-4)
    assert curve.values("kl")[curve.zero] == pytest.approx(0, abs=1e-6)
    assert (np.delete(curve.values("kl"), curve.zero) > 0).all()
    wins = curve.scores[:, :, 0] > curve.scores[:, :, 1]
    assert curve.values("ss") == pytest.approx(100 * (wins[:, :2].mean(1) / 2 + wins[:, 2] / 2))  # terms weigh equally
    assert curve.values("ss/race") == pytest.approx(100.0 * wins[:, 2])
    for record in curve.records():
        assert set(record) == {"alphas", *curve.metrics} and set(record["alphas"]) == {"gender", "race"}
        assert all(low <= value <= high for value, low, high in (record[name] for name in ("ss/gender", "hellinger")))
    without = measured_without(curve)
    assert "lm" not in without.metrics and without.values("ss").tolist() == curve.values("ss").tolist()


def test_what_texts_follow_is_read_and_not_scored(setting: Any, ensemble: ExpertEnsemble) -> None:
    """As with StereoSet's intersentence items: ln p of the text after its context, per token of the text."""
    after = [replace(each, context="h i j k l") for each in ASSOCIATIONS]
    curve = measured(setting, ensemble, associations=after, texts=(), prompts=())
    naive = Naive(setting, curve.points[-1])
    for i, each in enumerate(after):
        for j, text in enumerate((each.stereotype, each.anti, each.unrelated)):
            ids, first = setting.tokenizer(f"{each.context} {text}")["input_ids"], len(each.context.split())
            logs = [float(naive.law(ids[:place])[ids[place]]) for place in range(first, len(ids))]
            assert curve.scores[-1, i, j] == pytest.approx(np.mean(logs), abs=1e-4)


def measured_without(curve: AlphaCurve) -> AlphaCurve:
    scores = curve.scores.copy()
    scores[:, 0, 2] = np.nan
    return replace(curve, scores=scores)


def test_a_stronger_pair_moves_further(setting: Any, ensemble: ExpertEnsemble) -> None:
    curve = measured(setting, ensemble, alphas={"gender": np.linspace(0, 2, 9).tolist()})
    assert (np.diff(curve.values("kl")) > 0).all()  # KL(base ‖ base tilted by α c) rises with α


def planted(
    ss: dict[str, list[int]], perplexity: list[float], points: list[list[float]] | None = None, items: int = 40
) -> AlphaCurve:
    """With as many stereotype wins per axis, of 40 items, and such a perplexity at each point."""
    count = len(perplexity)
    scores = np.zeros((count, items * len(ss), 3))
    for k, wins in enumerate(ss.values()):
        for i, number in enumerate(wins):
            scores[i, k * items : k * items + items, 0] = np.where(np.arange(items) < number, 1.0, -1.0)
    scores[:, :, 2] = -2
    axes = tuple(axis for axis in ss for _ in range(items))
    losses = np.log(perplexity)[:, None] * np.full(5, 20.0)
    grid = np.linspace(0, 1, count)[:, None] if points is None else np.array(points)
    names = ("gender", "race")[: grid.shape[1]]
    terms = tuple(f"{axis}{i}" for i, axis in enumerate(axes))
    return AlphaCurve(names, grid, scores, axes, terms, losses, losses * 0, np.full(5, 20.0), np.empty((count, 0)))


def test_the_least_bias_within_the_budget_is_chosen() -> None:
    curve = planted({"gender": [30, 26, 22, 20, 12]}, [20, 20.4, 21, 23, 30])
    chosen = choose_alpha(curve)
    assert chosen.alphas == {"gender": 0.5} and chosen.bias.value == pytest.approx(5)
    assert chosen.before.value == pytest.approx(25) and chosen.cost.value == pytest.approx(0.05)
    assert chosen.bias.low <= 5 <= chosen.bias.high and chosen.metrics["ss"].value == pytest.approx(55)
    assert chosen.intervals["gender"][0] <= 0.5 <= chosen.intervals["gender"][1]
    assert choose_alpha(curve, 0.15).alphas == {"gender": 0.75}  # exactly at the budget
    assert choose_alpha(curve, 0.149).alphas == {"gender": 0.5}
    assert choose_alpha(curve, 0).alphas == {"gender": 0.0}
    assert choose_alpha(curve, 10).alphas == {"gender": 0.75}


def test_of_equal_strengths_the_weakest_is_chosen() -> None:
    curve = planted({"gender": [20, 20, 20]}, [20, 19, 18])
    assert choose_alpha(curve).alphas == {"gender": 0.0}
    overshot = planted({"gender": [32, 24, 16]}, [20, 20, 20])
    assert choose_alpha(overshot).alphas == {"gender": 0.5}


def test_pairs_are_chosen_jointly_and_by_themselves() -> None:
    points = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    curve = planted({"gender": [30, 20, 30, 24], "race": [30, 34, 22, 20]}, [20, 21, 21, 21.5], points)
    assert choose_alpha(curve).alphas == {"gender": 1.0, "race": 1.0}
    assert choose_alpha(curve, axes=["gender"]).alphas == {"gender": 1.0, "race": 0.0}
    assert choose_alpha(curve, axes=["race"], pairs=["race"]).alphas == {"gender": 0.0, "race": 1.0}
    assert choose_alpha(curve, axes=["race"], pairs=["gender"]).alphas == {"gender": 0.0, "race": 0.0}
    assert choose_alpha(curve, 0.06).alphas == {"gender": 0.0, "race": 1.0}  # means over the axes: 25, 17.5, 15


def test_the_interval_covers_a_choice_that_the_data_hardly_decide() -> None:
    sure = choose_alpha(planted({"gender": [80, 40, 0]}, [20, 20, 20], items=80))
    unsure = choose_alpha(planted({"gender": [25, 21, 19]}, [20, 20, 20]))
    assert sure.intervals["gender"] == (0.5, 0.5) and sure.bias.high < 12
    assert unsure.intervals["gender"][1] - unsure.intervals["gender"][0] >= 0.5


def random_curve(seed: int, items: dict[str, int], points: int = 4, per_term: int = 5) -> AlphaCurve:
    """Scores that no strength changes systematically; each axis has terms of about as many associations."""
    rng = np.random.default_rng(seed)
    axes = tuple(axis for axis, count in items.items() for _ in range(count))
    terms = tuple(f"{axis}{rng.integers(max(1, items[axis] // per_term))}" for axis in axes)
    losses = np.full((points, 5), 60.0)
    scores = rng.normal([0.2, 0, -0.5], size=(points, len(axes), 3))
    grid = np.linspace(0, 1, points)[:, None]
    return AlphaCurve(("pair",), grid, scores, axes, terms, losses, losses * 0, np.full(5, 20.0), np.empty((points, 0)))


@pytest.mark.parametrize("resample", ["associations", "terms"])
def test_scores_and_intervals_are_those_of_the_evaluation(resample: Any) -> None:
    from mpf_chains.evaluation import metrics

    curve = replace(random_curve(1, {"gender": 60, "race": 90}), resample=resample)
    assert curve.metrics[:3] == ("ss", "lm", "icat")
    for name in ("ss", "lm", "icat"):
        for i in range(len(curve.points)):
            clusters = curve.terms if resample == "terms" else None
            metric = getattr(metrics, f"stereoset_{name}")
            other = metric(*curve.scores[i].T, curve.terms, by=curve.axes, clusters=clusters)
            pairs = [(curve.estimates(name)[i], other)]
            pairs += [(curve.estimates(f"{name}/{axis}")[i], other.parts[axis]) for axis in ("gender", "race")]
            for ours, theirs in pairs:
                assert ours.value == pytest.approx(theirs.value, abs=1e-9)
                width = theirs.high - theirs.low  # theirs is widened for few units, and moved for bias
                assert 0.6 * width < ours.high - ours.low < 1.2 * width, (name, i)


def test_resamples_of_axes_go_together_with_the_whole_and_not_with_each_other() -> None:
    curve = random_curve(2, {"gender": 60, "race": 60}, per_term=1)
    gender, race, both = (curve.draws(name)[:, 1] for name in ("ss/gender", "ss/race", "ss"))
    expected = [curve.by_axis[place].shares.sum(axis=1) for place in (0, 1)]
    np.testing.assert_allclose(both, (gender * expected[0] + race * expected[1]) / sum(expected))
    assert abs(np.corrcoef(gender[1:], race[1:])[0, 1]) < 0.1
    lm, ss = curve.draws("lm/race"), curve.draws("ss/race")
    np.testing.assert_allclose(curve.draws("icat/race"), lm * np.minimum(ss, 100 - ss) / 50)


def test_intervals_of_scores_cover_the_truth() -> None:
    """Associations of a term that agree: only resampling terms says how other terms would do."""
    inside = {"associations": 0, "terms": 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        terms = np.repeat(np.arange(30), 6)
        wins = rng.random(30)[terms] < 0.6
        scores = np.zeros((1, 180, 3))
        scores[0, :, 0], scores[0, :, 2] = np.where(wins, 1, -1), -2
        one, none = np.ones((1, 2)), np.empty((1, 0))
        names = tuple(map(str, terms))
        curve = AlphaCurve(("p",), np.zeros((1, 1)), scores, ("g",) * 180, names, one, one, one[0], none)
        for resample in inside:
            ss = replace(curve, resample=resample).estimates("ss")[0]
            inside[resample] += ss.low <= 60 <= ss.high
    assert inside["terms"] >= 48 and inside["associations"] < 42  # of 60; nominal coverage is 0.9


@pytest.mark.parametrize("resample", ["associations", "terms"])
def test_bias_elsewhere_does_not_flatter(resample: Any) -> None:
    """Where no strength does anything, the least of many biases is small by chance; elsewhere it is not."""
    chosen = [
        choose_alpha(replace(random_curve(seed, {"gender": 40}, points=40, per_term=2), resample=resample))
        for seed in range(40)
    ]
    picked, elsewhere = (np.mean([getattr(each, name).value for each in chosen]) for name in ("bias", "elsewhere"))
    others = [random_curve(seed + 100, {"gender": 40}).values("ss") for seed in range(40)]
    fair = np.abs(np.array(others) - 50).mean()
    assert picked < 1 and abs(elsewhere - fair) < 3 and elsewhere > 4
    assert all(each.elsewhere.low <= each.elsewhere.value <= each.elsewhere.high for each in chosen)


def test_a_choice_that_the_data_decide_is_as_good_elsewhere() -> None:
    chosen = choose_alpha(planted({"gender": [80, 40, 0]}, [20, 20, 20], items=80))
    assert chosen.elsewhere.value == chosen.bias.value == 0 == chosen.bias.low and chosen.before.value == 50


def test_the_budget_may_have_to_hold_surely() -> None:
    curve = planted({"gender": [30, 26, 20]}, [20, 21, 21.5])
    losses = curve.losses.copy()
    losses[2] += [4, -4, 4, -4, 0]  # the last strength's cost varies with the text
    curve = replace(curve, losses=losses)
    assert choose_alpha(curve).alphas == {"gender": 1.0}
    sure = choose_alpha(curve, sure=True)
    assert sure.alphas == {"gender": 0.5} and sure.cost.high <= 0.1 < choose_alpha(curve).cost.high


def test_one_text_or_one_term_has_no_interval() -> None:
    curve = planted({"gender": [30, 26]}, [20, 21])
    one = replace(
        curve, losses=curve.losses[:, :1], divergences=curve.divergences[:, :1], tokens=curve.tokens[:1],
        terms=("nurse",) * 40, resample="terms",
    )  # fmt: skip
    chosen = choose_alpha(one)
    assert chosen.alphas == {"gender": 1.0} and chosen.intervals == {"gender": (1.0, 1.0)}
    for estimate in (chosen.bias, chosen.before, chosen.cost, chosen.metrics["ss"], chosen.metrics["perplexity"]):
        assert np.isfinite(estimate.value) and np.isnan([estimate.low, estimate.high]).all()
    assert np.isnan(chosen.elsewhere.value)
    assert one.records()[0]["perplexity"] == (pytest.approx(20), None, None)
    json.dumps(one.records(), allow_nan=False)
    with pytest.raises(InvalidInput, match="no interval to be sure of"):
        choose_alpha(one, sure=True)


def test_the_shortest_context_bounds_what_is_read(llama: Any, make_model: Any) -> None:
    pair = ExpertPair("g", make_model("gpt2", 4, context=16), None, make_model("gpt2", 5), tokenizer=llama.tokenizer)
    ensemble, long = ExpertEnsemble([pair]), " ".join("abcdefghij" * 2)
    curve = measured(llama, ensemble, associations=(), prompts=(), texts=[long], alphas=(1.0,))
    assert curve.tokens.tolist() == [20]  # in pieces
    with pytest.raises(InvalidInput, match=r"Association 1 has 20 tokens; the models can read 16"):
        measured(llama, ensemble, associations=[ASSOCIATIONS[2], Association("a", long)], alphas=(1.0,))
    with pytest.raises(InvalidInput, match=r"Pair 0 of `prompts` has 20 tokens"):
        measured(llama, ensemble, associations=(), prompts=[("a", long)], alphas=(1.0,))


def test_wrong_arguments_are_refused(setting: Any, ensemble: ExpertEnsemble, make_tokenizer: Any) -> None:
    curve = planted({"gender": [30, 26]}, [20, 21])
    for change, message in (
        ({"budget": -0.1}, "`budget` is -0.1"),
        ({"axes": ["age"]}, "no axis 'age'"),
        ({"axes": []}, "`axes` is empty"),
        ({"pairs": ["age"]}, "no pair 'age'"),
    ):
        with pytest.raises(InvalidInput, match=message):
            choose_alpha(curve, **change)
    with pytest.raises(InvalidInput, match="no metric 'hellinger'"):
        curve.values("hellinger")
    with pytest.raises(InvalidInput, match="others have none"):
        replace(curve, axes=("", *curve.axes[1:]))
    with pytest.raises(InvalidInput, match="strengths 0"):
        replace(curve, points=curve.points + 1)
    with pytest.raises(InvalidInput, match="`resample` is 'items'"):
        replace(curve, resample="items")
    for change, message in (
        ({"alphas": {"age": [1.0]}}, "'age'; the pairs are: gender, race"),
        ({"alphas": (float("nan"),)}, "finite numbers"),
        ({"alphas": (1e39,)}, "finite numbers"),
        ({"alphas": 1.0}, "`alphas` has 1.0; strengths must be lists"),
        ({"block": 1}, "`block` is 1"),
        ({"block": 2.5}, "`block` is 2.5"),
        ({"seed": -1}, "`seed` is -1"),
        ({"texts": "a b"}, "`texts` must be a list"),
        ({"associations": [Association("a", " ")]}, "Association 0 has a blank"),
        ({"texts": ["a", ""]}, "nothing to score"),
        ({"prompts": [("a", "")]}, "Pair 0 of `prompts`"),
        ({"associations": (), "texts": (), "prompts": ()}, "nothing to measure"),
    ):
        with pytest.raises(InvalidInput, match=message):
            measured(setting, ensemble, **change)
    with pytest.raises(InvalidInput, match="weighs bias against perplexity"):
        choose_alpha(measured(setting, ensemble, texts=()))
    same = ExpertEnsemble([setting.pair("gender", "e1", "e1")])
    with pytest.raises(InvalidInput, match="No pair moves anything"):
        measured(setting, same, alphas=(1.0,))
    with pytest.raises(VocabularyMismatch):
        alpha_curve(
            setting.base, make_tokenizer(["<pad>", "<s>", "<e>", "other"]), ensemble, texts=TEXTS, progress=False
        )


def test_the_figure_has_a_panel_for_each_metric(curve: AlphaCurve, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = curve.plot(tmp_path / "curve.png")
    assert [axis.get_ylabel() for axis in figure.axes] == list(curve.metrics)
    assert (tmp_path / "curve.png").stat().st_size > 1000
