"""The convex fit: certified, the same as the trained loss, exact where it may be, and honest about other contexts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from mpf_chains.errors import InvalidInput, NotConverged  # noqa: E402
from mpf_chains.local import ChatTransformers  # noqa: E402
from mpf_chains.local.prompt import write_prompt  # noqa: E402
from mpf_chains.local.steering.calibration.calibration import calibrate, infer_targets  # noqa: E402
from mpf_chains.local.steering.calibration.contrasts import GENDER_PROBES, read_contrasts  # noqa: E402
from mpf_chains.local.steering.calibration.rows import Readings, fit_rows  # noqa: E402
from mpf_chains.local.steering.calibration.states import read_states  # noqa: E402
from mpf_chains.local.steering.tokens import SteeringTokens  # noqa: E402
from mpf_chains.local.steering.training.losses import kl_to_target  # noqa: E402
from mpf_chains.targets.files import read_winogender_targets  # noqa: E402
from mpf_chains.targets.table import TargetTable  # noqa: E402
from mpf_chains.targets.templates import Prompt, fill, prompts_about  # noqa: E402

SHARED = Path(__file__).parents[4] / "shared/data"
GENDER = {"gender": ("female", "male")}


def readings_of(seed: int, prompts: int = 12, width: int = 20, classes: int = 3, *, per_context: int = 1) -> Readings:
    generator = np.random.default_rng(seed)
    states = generator.normal(size=(prompts, width)) + 3 * generator.normal(size=width)
    logits = generator.normal(size=(prompts, classes))
    contexts = tuple(f"occupation {i // per_context}" for i in range(prompts))
    return Readings(states, generator.normal(size=prompts) + 5, logits, contexts)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([1e-3, 1e-1, 10.0]), st.sampled_from([(12, 20), (30, 6)]))
def test_the_gap_is_certified_and_the_optimum_is_that_of_the_trained_loss(
    seed: int, ridge: float, shape: tuple[int, int]
) -> None:
    readings = readings_of(seed, *shape)
    target = np.random.default_rng(seed + 1).dirichlet(np.ones(3), shape[0])
    fit = fit_rows(readings, target, ridge=ridge)
    assert 0 <= fit.gap <= 1e-8

    logits = torch.tensor(readings.logits)  # the K tokens and one for all others, as the model's logits
    states = torch.tensor(readings.states)
    along = states.mean(0) / states.mean(0).norm()
    rows = torch.tensor(fit.rows, requires_grad=True)
    both = torch.cat([logits + states @ rows.T, torch.tensor(readings.rest)[:, None]], dim=1)
    loss = kl_to_target(both.log_softmax(-1)[:, :3], torch.tensor(target), torch.ones(shape[0], dtype=torch.bool))
    penalty = (rows**2).sum() - (1 - 1e-3) * ((rows @ along) ** 2).sum()
    objective = loss + ridge * readings.spread / 2 * penalty
    objective.backward()
    assert objective.item() == pytest.approx(fit.objective, abs=1e-9)
    assert rows.grad.abs().max().item() < 1e-3 * max(1.0, ridge * readings.spread)
    worse = torch.tensor(fit.rows) + 1e-2 * torch.randn(rows.shape, dtype=torch.float64)
    both = torch.cat([logits + states @ worse.T, torch.tensor(readings.rest)[:, None]], dim=1)
    loss = kl_to_target(both.log_softmax(-1)[:, :3], torch.tensor(target), torch.ones(shape[0], dtype=torch.bool))
    moved = loss + ridge * readings.spread / 2 * ((worse**2).sum() - (1 - 1e-3) * ((worse @ along) ** 2).sum())
    assert moved.item() > fit.objective - fit.gap


def test_a_small_ridge_fits_exactly_and_a_large_one_changes_nothing() -> None:
    readings = readings_of(0)
    target = np.random.default_rng(1).dirichlet(np.ones(3), 12)
    close = fit_rows(readings, target, ridge=1e-6)
    assert readings.shares(close.rows) == pytest.approx(target, abs=0.01)
    assert np.exp(readings.log_probabilities(close.rows)).sum(axis=1) == pytest.approx(np.ones(12), abs=0.01)
    far = fit_rows(readings, target, ridge=1e9)
    assert readings.shares(far.rows) == pytest.approx(readings.shares(np.zeros((3, 20))), abs=1e-3)


def test_what_does_not_fit_is_refused() -> None:
    readings = readings_of(0)
    target = np.full((12, 3), 1 / 3)
    with pytest.raises(InvalidInput, match=r"shape \(12, 2\); they must be \(12, 3\)"):
        fit_rows(readings, target[:, :2], ridge=1)
    with pytest.raises(InvalidInput, match="`ridge` is 0"):
        fit_rows(readings, target, ridge=0)
    with pytest.raises(NotConverged, match="Raise `ridge`"):
        fit_rows(readings, target, ridge=1e-3, tolerance=-1.0)
    with pytest.raises(InvalidInput, match=r"`states` has shape \(11, 20\); there are 12 prompts"):
        Readings(readings.states[:11], readings.rest, readings.logits, readings.contexts)
    with pytest.raises(InvalidInput, match="`logits` has values that are no finite numbers"):
        Readings(readings.states, readings.rest, readings.logits - np.inf, readings.contexts)
    table = TargetTable.uniform(["occupation 0"], {"a": ("x", "y", "z")})
    with pytest.raises(InvalidInput, match="no context 'occupation 1'"):
        calibrate(readings, table)
    with pytest.raises(InvalidInput, match="2 classes; the readings are of 3 tokens"):
        calibrate(readings, TargetTable.uniform(["occupation 0"], GENDER))
    with pytest.raises(InvalidInput, match="1 contexts, 10 folds"):
        calibrate(readings.take([0]), table)
    with pytest.raises(InvalidInput, match="0 about contexts without"):
        infer_targets(readings.take([0]), table)


def world(contexts: int, per_context: int, noise: float) -> tuple[Readings, TargetTable]:
    """Contexts whose log-odds are linear in their states, which are seen with noise in each prompt."""
    generator = np.random.default_rng(0)
    truth = generator.normal(size=(contexts, 30))
    odds = truth[:, :2] @ [1.5, -1.0]
    shares = 1 / (1 + np.exp(-odds))
    seen = np.repeat(truth, per_context, axis=0) + noise * generator.normal(size=(contexts * per_context, 30)) + 4
    names = tuple(f"occupation {i}" for i in range(contexts))
    n = contexts * per_context
    readings = Readings(seen, np.full(n, 10.0), np.zeros((n, 2)), tuple(np.repeat(names, per_context).tolist()))
    return readings, TargetTable(GENDER, names, np.column_stack([shares, 1 - shares]))


def test_held_out_errors_are_those_on_contexts_that_were_left_out() -> None:
    readings, table = world(100, 2, 0.3)
    known = table.contexts[:50]
    inside = [i for i, name in enumerate(readings.contexts) if name in known]
    found = calibrate(readings.take(inside), table.select(known))
    assert found.held_out is not None and found.fitted.mae < found.held_out.mae < 0.15
    assert found.fitted.mass > 0.98
    assert found.ridge == min(found.path, key=lambda point: point.held_out.kl).ridge
    inferred, again = infer_targets(readings, table.select(known))
    assert again.ridge == found.ridge and inferred.contexts == table.contexts[50:]
    truth = table.select(inferred.contexts).flat
    outside = np.abs(inferred.flat - truth).mean()
    constant = np.abs(table.flat[:50].mean(axis=0) - truth).mean()
    assert outside == pytest.approx(found.held_out.mae, abs=0.02) and outside < constant / 2
    given = calibrate(readings.take(inside), table, ridge=1e-5)
    assert given.held_out is None and given.path == () and given.fitted.mae < found.fitted.mae


def test_prompts_of_one_context_are_left_out_together() -> None:
    readings, table = world(30, 3, 0.0)  # a context's prompts are the same: seeing one is seeing all
    shuffled = TargetTable(GENDER, table.contexts, np.random.default_rng(1).permutation(table.flat))
    found = calibrate(readings, shuffled)
    constant = np.abs(table.flat.mean(axis=0) - table.flat).mean()
    assert found.held_out is not None and found.held_out.mae > 0.9 * constant


@pytest.mark.parametrize("given", [None, ("x", "y")])
def test_readings_are_what_the_model_says_where_the_answer_begins(tiny: Any, given: Any) -> None:
    model, tokenizer = tiny
    tokens = SteeringTokens("gender", ("female", "male"), given)
    prompts = prompts_about(["nurse", "chef"], ["Who is {a_context}?", "{context}"])
    readings = read_states(model, tokenizer, prompts, tokens, batch=3)
    assert readings.contexts == ("nurse", "nurse", "chef", "chef")
    rows = np.random.default_rng(0).normal(size=(2, 32)) * 0.1
    found = readings.log_probabilities(rows)
    ids = list(tokens.ids(model, tokenizer))
    for i, prompt in enumerate(prompts):
        text = torch.tensor([write_prompt(tokenizer, [{"role": "user", "content": prompt.text}])])
        with torch.no_grad():
            output = model(text, output_hidden_states=True)
        logits, state = output.logits[0, -1].double(), output.hidden_states[-1][0, -1].double()
        assert readings.states[i] == pytest.approx(state.numpy(), abs=1e-4)
        if given is None:
            logits = torch.cat([logits, torch.zeros(2, dtype=torch.float64)])
        logits[ids] += torch.tensor(rows) @ state
        assert found[i] == pytest.approx(logits.log_softmax(-1)[ids].numpy(), abs=1e-4)


class Counting:
    """Finds a text the likelier the more of a class's letter is in it."""

    def log_likelihoods(self, texts: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Any]]:
        for i in reversed(range(len(texts))):
            letter, name = texts[i][1].split()
            yield i, np.array([-9.0, name.count(letter)])


def test_contrasts_are_log_likelihoods_between_classes() -> None:
    readings = read_contrasts(Counting(), ["aab", "abb", "bbb"], [("a {context}", "b {context}")])
    difference = readings.states[:, 0] - readings.states[:, 1]
    assert difference[0] > difference[1] > difference[2] and readings.states[:, :2].sum() == pytest.approx(0)
    assert readings.states[:, :2].std(axis=0) == pytest.approx([1, 1])
    inferred, _ = infer_targets(readings, TargetTable(GENDER, ("aab", "bbb"), [[0.9, 0.1], [0.1, 0.9]]), ridge=1e-3)
    assert 0.1 < inferred["abb"]["female"] < 0.6
    for contexts, probes, message in (
        (["a"], [("a {context}", "b {context}")], "1 contexts"),
        (["a", "a"], [("a {context}", "b {context}")], "1 of them different"),
        (["a", "b"], ["a {context}"], "a text for every class"),
        (["a", "b"], [("a {context}", "b {context}"), ("{context}",)], "a text for every class"),
        (["a", "b"], [("a", "b {context}")], "no place for a context"),
    ):
        with pytest.raises(InvalidInput, match=message):
            read_contrasts(Counting(), contexts, probes)


def test_templates_take_contexts_and_leave_other_braces() -> None:
    assert fill("{A_context} met {a_context}: {}", "nurse") == "A nurse met a nurse: {}"
    assert prompts_about(["nurse"], ["{context}!"]) == [Prompt("nurse", "nurse!")]
    with pytest.raises(InvalidInput, match="one text"):
        prompts_about(["nurse"], "{context}")


@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared folder beside the repository")
def test_smollm2_fits_us_labour_shares_and_says_how_far_others_are_off() -> None:
    from mpf_chains.local import load_smollm2

    table = read_winogender_targets(SHARED / "winogender")
    model, tokenizer = load_smollm2(device="cpu")
    prompts = prompts_about(table.contexts, ["Write the gender of {a_context}."])
    readings = read_states(model, tokenizer, prompts, SteeringTokens("gender", table.classes))
    fitted = calibrate(readings, table, ridge=1e-4).fitted
    assert fitted.mae < 0.02 and fitted.mass > 0.99
    chat = ChatTransformers(model=model, tokenizer=tokenizer)
    found = calibrate(read_contrasts(chat, table.contexts, GENDER_PROBES[:12]), table)
    assert found.held_out is not None and found.held_out.mae < 0.16  # 0.24 if all occupations were taken to be alike
