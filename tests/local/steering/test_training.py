"""Training: what it reads, what it learns, and that a kill changes nothing (fault 35)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mpf_chains.errors import InvalidInput  # noqa: E402
from mpf_chains.local.prompt import write_prompt  # noqa: E402
from mpf_chains.local.steering.adapter import SteeringAdapter  # noqa: E402
from mpf_chains.local.steering.steered import Steered, refit  # noqa: E402
from mpf_chains.local.steering.tokens import SteeringTokens  # noqa: E402
from mpf_chains.local.steering.training.data import SteeringData, SteeringRow  # noqa: E402
from mpf_chains.local.steering.training.learner import Learner, learning  # noqa: E402
from mpf_chains.local.steering.training.trainer import SteeringTrainer  # noqa: E402
from mpf_chains.targets.table import TargetTable  # noqa: E402
from mpf_chains.targets.templates import prompts_about  # noqa: E402

CLASSES = ("female", "male")
NEW, EXISTING = SteeringTokens("gender", CLASSES), SteeringTokens("gender", CLASSES, ("x", "y"))
SHARES = {"nurse": 0.9, "chef": 0.4, "judge": 0.3, "plumber": 0.05, "poet": 0.5, "dean": 0.6}
TARGETS = TargetTable.of(
    {name: {"female": share, "male": 1 - share} for name, share in SHARES.items()}, {"gender": CLASSES}
)
PROMPTS = ["Who is {a_context}?", "Name {a_context}."]
ANSWERS = {"female": ["She.", "Her, {context}."], "male": ["He.", "Him, {context}."]}
DATA = SteeringData.build(TARGETS, PROMPTS, ANSWERS)
SETTINGS: dict[str, Any] = {
    "rank": 2, "sft_steps": 6, "steps": 9, "batch": 5, "held_out": 0.3, "evaluate_every": 3, "progress": False,
}  # fmt: skip


def test_rows_follow_the_targets_and_have_a_wrong_one_beside_them() -> None:
    data = SteeringData.build(TARGETS, PROMPTS, ANSWERS, per_context=20)
    for context, share in SHARES.items():
        rows = [row for row in data.rows if row.context == context]
        right = [row for row in rows if row.desirable]
        assert len(rows) == 40 and abs(sum(row.token == "female" for row in right) - 20 * share) < 1
    for one, other in zip(data.rows[::2], data.rows[1::2], strict=True):
        assert one.desirable and not other.desirable and (one.prompt, one.token) == (other.prompt, other.token)
        assert {"female": "he", "male": "she"}[one.token] not in one.answer.casefold().split(".")[0].split()
    even = SteeringData.build(TARGETS, PROMPTS, ANSWERS, per_context=3, classes="even", mismatched=False)
    assert len(even.rows) == 18 and sum(row.token == "male" for row in even.rows) == 9
    text = str(data)
    assert "240 rows about 6 contexts, gender:" in text and "token 'male': " in text and "- 'Who is a" in text
    assert data.digest == SteeringData.build(TARGETS, PROMPTS, ANSWERS, per_context=20).digest
    assert data.digest != SteeringData.build(TARGETS, PROMPTS, ANSWERS, per_context=20, seed=1).digest


def test_contexts_are_held_out_whole() -> None:
    read, held = DATA.held_out(0.3, 0)
    assert len(read.rows) + len(held.rows) == len(DATA.rows) and len({row.context for row in held.rows}) == 2
    assert [len({row.context for row in DATA.held_out(0.1, 0, least=n)[1].rows}) for n in (1, 2, 4)] == [1, 2, 1]
    assert not {row.context for row in read.rows} & {row.context for row in held.rows}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SteeringData.build(TARGETS, PROMPTS, {"female": ["She {context}"]}), "no answers of class 'male'"),
        (lambda: SteeringData.build(TARGETS, ["Who?"], ANSWERS), "no place for a context"),
        (lambda: SteeringData.build(TARGETS, [], ANSWERS), "0 prompts"),
        (lambda: SteeringData(TARGETS, DATA.rows[1::2]), "None of 24 rows is desirable"),
        (
            lambda: SteeringData(TARGETS, [SteeringRow("cook", "a", "b", "male", "male")] * 2),
            "'cook', which has no target",
        ),
        (lambda: SteeringData(TARGETS, [SteeringRow("chef", "a", "b", "men", "male")] * 2), "class 'men'"),
        (lambda: SteeringData(TARGETS, [SteeringRow("chef", "a", " ", "male", "male")] * 2), "blank"),
        (lambda: DATA.held_out(1.0, 0), r"1\.0 of 6 contexts"),
    ],
)
def test_wrong_data_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()


@pytest.mark.parametrize("rank", [2, None])
@pytest.mark.parametrize(("tokens", "plain"), [(NEW, False), (NEW, True), (EXISTING, False)])
def test_padded_rows_are_read_as_each_row_alone(
    tiny: Any, tokens: SteeringTokens, plain: bool, rank: int | None
) -> None:
    model, tokenizer = tiny
    adapter = SteeringAdapter.fresh(model, tokenizer, tokens, TARGETS, plain_opening=plain)
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in model.named_parameters()}
    with learning(model, tokenizer, adapter, rank=rank, scale=2.0, targets=None, seed=0) as learner:
        with torch.no_grad():
            for i, parameter in enumerate(learner.parameters.values()):
                generator = torch.Generator().manual_seed(i)
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        rows = [learner.ids(row) for row in DATA.rows[:5]]
        learner.read(rows[2:])  # without low-rank changes prompts are read once only
        found, classes = learner.read(rows)
        (found.sum() + classes.sum()).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in learner.parameters.values())
        learned = learner.adapter
    assert all(torch.equal(now, before[name][0]) for name, now in model.named_parameters())
    assert not adapter.output_rows.any() and learned.output_rows.any()
    assert [now.requires_grad for now in model.parameters()] == [learns for _, learns in before.values()]

    steered = Steered(model, tokenizer, learned)
    for i, (prompt, (first, *rest), _) in enumerate(rows):
        wanted = steered.log_probabilities([prompt])[0]
        assert classes[i].detach().numpy() == pytest.approx(wanted, abs=1e-4)
        with torch.no_grad(), steered.active():
            logs = model(torch.tensor([[*prompt, first, *rest]])).logits[0].log_softmax(-1)
        after = sum(float(logs[len(prompt) + j, token]) for j, token in enumerate(rest) if j or not plain)
        assert found[i].item() == pytest.approx(wanted[steered.ids.index(first)] + after, abs=1e-3)


def test_the_first_loss_is_its_definition(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    trainer = SteeringTrainer(model, tokenizer, **(SETTINGS | {"sft_steps": 0, "steps": 1, "batch": 999}))
    trained = trainer.train(DATA, NEW, tmp_path)
    assert trained.sft is None and trained.tuned is not None
    read, _ = DATA.held_out(0.3, 0)
    steered = Steered(model, tokenizer, SteeringAdapter.fresh(model, tokenizer, NEW, TARGETS))
    divergences = []
    for row in read.rows:
        if row.desirable:
            prompt = write_prompt(tokenizer, [{"role": "user", "content": row.prompt}])
            share = np.array(list(TARGETS[row.context].values()))
            divergences.append(float((share * (np.log(share) - steered.log_probabilities([prompt])[0])).sum()))
    # nothing has moved from the reference, so KTO is 1 − σ(0) for every row
    assert trained.tuned.losses[0] == pytest.approx(np.mean(divergences) + 0.5, abs=1e-4)


def test_a_plain_opening_is_not_learned(tiny: Any, tmp_path: Path) -> None:
    """Stage 1 begins at the mean −log p of steering token and answer without the answer's first token."""
    model, tokenizer = tiny
    settings = SETTINGS | {"rank": None, "loss": "sft", "sft_steps": 1, "batch": 999, "plain_opening": True}
    trained = SteeringTrainer(model, tokenizer, **settings).train(DATA, NEW, tmp_path)
    fresh = SteeringAdapter.fresh(model, tokenizer, NEW, TARGETS)
    steered, found = Steered(model, tokenizer, fresh), []
    for row in DATA.held_out(0.3, 0)[0].rows:
        if row.desirable:
            prompt = write_prompt(tokenizer, [{"role": "user", "content": row.prompt}])
            answer = [*tokenizer.encode(row.answer, add_special_tokens=False), tokenizer.eos_token_id]
            index = CLASSES.index(row.token)
            found.append(float(steered.log_probabilities([prompt])[0][index]))
            with torch.no_grad(), steered.active():
                logs = model(torch.tensor([[*prompt, steered.ids[index], *answer]])).logits[0].log_softmax(-1)
            found += [float(logs[len(prompt) + j, token]) for j, token in enumerate(answer) if j]
    assert trained.sft is not None and trained.adapter.plain_opening
    assert trained.sft.losses[0] == pytest.approx(-np.mean(found), abs=1e-4)


@pytest.mark.parametrize("plain", [False, True])
def test_mismatched_responses_are_about_another_context(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    """In training, and where the held-out loss is measured."""
    model, tokenizer = tiny
    contexts = {
        tuple(write_prompt(tokenizer, [{"role": "user", "content": row.prompt}])): row.context for row in DATA.rows
    }
    read, calls = Learner.read, []
    monkeypatch.setattr(Learner, "read", lambda self, rows: calls.append(rows) or read(self, rows))
    settings = SETTINGS | {"sft_steps": 0, "steps": 3, "held_out": 0.01, "loss": "kto", "plain_opening": plain}
    SteeringTrainer(model, tokenizer, **settings).train(DATA, NEW, tmp_path)
    assert len(calls) > 4 * 3
    for policy, mismatched in zip(calls[::4], calls[1::4], strict=True):  # then both once more, of the reference
        for row, wrong in zip(policy, mismatched, strict=True):
            (owner,) = (each for each in policy if each.response is wrong.response)
            assert wrong.prompt == row.prompt and wrong.given == owner.given == plain
            assert contexts[tuple(owner.prompt)] != contexts[tuple(row.prompt)]


@pytest.fixture(scope="module")
def whole(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model, tokenizer = tiny
    folder = tmp_path_factory.mktemp("whole")
    return SteeringTrainer(model, tokenizer, **SETTINGS).train(DATA, NEW, folder), folder


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("at", "rank"), [(2, 2), (5, 2), (8, 2), (15, 2), (9, None)])
def test_35_killed_and_resumed_is_uninterrupted(
    tiny: Any, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, rank: int | None
) -> None:
    model, tokenizer = tiny
    trainer = SteeringTrainer(model, tokenizer, **(SETTINGS | {"rank": rank}))
    uninterrupted = whole[0] if rank else trainer.train(DATA, NEW, tmp_path / "whole")
    tmp_path = tmp_path / "killed"
    step, steps = torch.optim.AdamW.step, 0

    def dying(self: Any, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == at:
            raise Killed
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", dying)
        with pytest.raises(Killed):
            trainer.train(DATA, NEW, tmp_path)
        assert not hasattr(model, "peft_config")
        torch.manual_seed(at)
        again = trainer.train(DATA, NEW, tmp_path)
    assert steps <= 15 + 1 + 3
    for stage in ("sft", "tuned"):
        one, other = getattr(again, stage), getattr(uninterrupted, stage)
        assert (one.losses, one.held_out, one.best_step) == (other.losses, other.held_out, other.best_step)
    assert again.adapter.digest == uninterrupted.adapter.digest
    names = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.*")}
    files = {"steering.safetensors", "training.json"}
    files |= {"adapter_config.json", "adapter_model.safetensors"} if rank else set()
    assert names == files | {f"sft/{name}" for name in files}


def test_a_finished_training_is_not_repeated_and_not_mixed_with_another(
    tiny: Any, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny
    folder = Path(shutil.copytree(whole[1], tmp_path / "copy"))
    monkeypatch.setattr(torch.optim.AdamW, "step", None)
    again = SteeringTrainer(model, tokenizer, **SETTINGS).train(DATA, NEW, folder)
    assert again.adapter.digest == whole[0].adapter.digest and again.tuned.losses == whole[0].tuned.losses
    with pytest.raises(InvalidInput, match="other batch"):
        SteeringTrainer(model, tokenizer, **(SETTINGS | {"batch": 4})).train(DATA, NEW, folder)
    with pytest.raises(InvalidInput, match="other loss"):
        SteeringTrainer(model, tokenizer, loss="kto", **SETTINGS).train(DATA, NEW, folder)
    with pytest.raises(InvalidInput, match="other texts"):
        SteeringTrainer(model, tokenizer, **SETTINGS).train(SteeringData(TARGETS, DATA.rows[:-2]), NEW, folder)


@pytest.mark.parametrize("loss", ["kl", "kto", "dpo", "sft"])
@pytest.mark.parametrize("tokens", [NEW, EXISTING])
def test_every_loss_falls_and_every_token_learns(tiny: Any, tmp_path: Path, loss: Any, tokens: SteeringTokens) -> None:
    model, tokenizer = tiny
    settings = SETTINGS | {"steps": 30, "sft_steps": 30 if loss == "sft" else 0, "learning_rate": 1e-2, "batch": 6}
    trained = SteeringTrainer(model, tokenizer, loss=loss, **settings).train(DATA, tokens, tmp_path)
    stage = trained.sft if loss == "sft" else trained.tuned
    assert np.mean(stage.losses[-4:]) < 0.9 * np.mean(stage.losses[:4])
    fresh = SteeringAdapter.fresh(model, tokenizer, tokens, TARGETS)
    assert trained.adapter.digest != fresh.digest and trained.adapter.base == fresh.base
    if loss == "kl":
        assert trained.adapter.input_rows is None or torch.equal(trained.adapter.input_rows, fresh.input_rows)


def test_rows_alone_can_learn_and_be_refitted(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    settings = SETTINGS | {"rank": None, "sft_weight": 0.3, "steps": 12}
    trained = SteeringTrainer(model, tokenizer, **settings).train(DATA, NEW, tmp_path)
    assert trained.adapter.lora is None and not (tmp_path / "adapter_config.json").exists()
    assert (tmp_path / "steering.safetensors").stat().st_size < 2000
    prompts = prompts_about(TARGETS.contexts, PROMPTS)
    adapter, found = refit(model, tokenizer, trained.adapter, prompts, ridge=1e-5)
    assert torch.equal(adapter.input_rows, trained.adapter.input_rows)
    ids = [write_prompt(tokenizer, [{"role": "user", "content": prompt.text}]) for prompt in prompts]
    wanted = np.array([list(TARGETS[prompt.context].values()) for prompt in prompts])
    realised = Steered(model, tokenizer, adapter).shares(ids)
    assert np.abs(realised - wanted).mean() == pytest.approx(found.fitted.mae, abs=1e-3) and found.fitted.mae < 0.05
    assert (
        np.abs(realised - wanted).mean()
        < np.abs(Steered(model, tokenizer, trained.adapter).shares(ids) - wanted).mean()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"longest": 0}, "`longest` is 0"),
        ({"batch": 1}, r"`batch` is 1; it must be at least 2 \(KTO has no reference point for a row alone\)"),
        ({"loss": "nll"}, "`loss` is 'nll'"),
        ({"rank": 0}, "`rank` is 0"),
        ({"loss": "sft", "sft_steps": 0}, "`sft_steps` is 0"),
        ({"beta": 0.0}, r"`beta` is 0\.0"),
        ({"held_out": 1.0}, r"`held_out` is 1\.0"),
        ({"learning_rate": 2.0}, r"`learning_rate` is 2\.0"),
        ({"sft_weight": -1.0}, r"`sft_weight` is -1\.0"),
        ({"plain_opening": True, "longest": 1}, "nothing is left to learn behind its first token"),
        ({"modules": ["no_such"]}, "no_such"),
        ({"tokenizer": None}, "tokenizer="),
    ],
)
def test_wrong_settings_are_refused(tiny: Any, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    model, tokenizer = tiny
    with pytest.raises(InvalidInput, match=message):
        SteeringTrainer(model, **({"tokenizer": tokenizer} | SETTINGS | change)).train(DATA, NEW, tmp_path)
    assert not hasattr(model, "peft_config")


def test_what_cannot_be_trained_on_is_refused_before_training(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny
    monkeypatch.setattr(torch.optim.AdamW, "step", None)
    trainer = SteeringTrainer(model, tokenizer, **SETTINGS)
    with pytest.raises(InvalidInput, match="'ab' of class 'female' is 2 tokens"):
        trainer.train(DATA, SteeringTokens("gender", CLASSES, ("ab", "c")), tmp_path)
    with pytest.raises(InvalidInput, match="tokens male, female"):
        trainer.train(DATA, SteeringTokens("gender", ("male", "female")), tmp_path)
    alone = SteeringData(TARGETS, [row for row in DATA.rows if row.desirable])
    with pytest.raises(InvalidInput, match="DPO needs an undesirable row"):
        SteeringTrainer(model, tokenizer, loss="dpo", **SETTINGS).train(alone, NEW, tmp_path)
    long = SteeringData(TARGETS, [SteeringRow(name, "a", "b" * 600, "male", "male") for name in SHARES])
    with pytest.raises(InvalidInput, match="tokens; the model reads 512"):
        trainer.train(long, NEW, tmp_path)


def test_of_a_long_answer_the_beginning_is_learned_without_its_end(tiny: Any) -> None:
    model, tokenizer = tiny
    adapter = SteeringAdapter.fresh(model, tokenizer, NEW, TARGETS)
    row, how = DATA.rows[0], {"rank": None, "scale": 2.0, "targets": None, "seed": 0}
    with learning(model, tokenizer, adapter, **how) as learner:
        whole = learner.ids(row).response
    with learning(model, tokenizer, adapter, **how, longest=2) as learner:
        short = learner.ids(row).response
    assert short == whole[:3] and whole[-1] == tokenizer.eos_token_id


def test_35_a_row_alone_has_no_reference_point(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    once = {row.context: row for row in DATA.rows if row.desirable and row.context in {"nurse", "chef", "judge"}}
    with pytest.raises(InvalidInput, match="1 to measure with; KTO needs 2"):
        SteeringTrainer(model, tokenizer, **(SETTINGS | {"held_out": 0.1})).train(
            SteeringData(TARGETS, tuple(once.values())), NEW, tmp_path
        )


def test_the_rows_are_shown_before_training(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = tiny
    SteeringTrainer(model, tokenizer, **(SETTINGS | {"sft_steps": 0, "steps": 1, "progress": True})).train(
        DATA, NEW, tmp_path
    )
    assert DATA.preview() in capsys.readouterr().out


def test_35_an_all_desirable_batch_trains(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    alone = SteeringData(TARGETS, [row for row in DATA.rows if row.desirable])
    trained = SteeringTrainer(model, tokenizer, **(SETTINGS | {"batch": 3})).train(alone, NEW, tmp_path)
    assert np.isfinite(trained.tuned.losses).all()


@pytest.mark.parametrize("kind", ["gpt2", "mistral"])  # positions are learned; the cache is no plain one
@pytest.mark.parametrize("rank", [2, None])
def test_other_architectures_are_steered(tiny: Any, tmp_path: Path, kind: str, rank: int | None) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

    _, tokenizer = tiny
    ends = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **ends))
    else:
        model = MistralForCausalLM(MistralConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            sliding_window=16, **ends,
        ))  # fmt: skip
    trained = SteeringTrainer(model, tokenizer, **(SETTINGS | {"rank": rank})).train(DATA, NEW, tmp_path)
    assert trained.tuned.losses[-1] < trained.tuned.losses[0]
    prompts = prompts_about(TARGETS.contexts, PROMPTS)
    adapter, found = refit(model, tokenizer, trained.adapter, prompts, ridge=1e-5)
    ids = [write_prompt(tokenizer, [{"role": "user", "content": prompt.text}]) for prompt in prompts]
    wanted = np.array([list(TARGETS[prompt.context].values()) for prompt in prompts])
    error = np.abs(Steered(model, tokenizer, adapter).shares(ids) - wanted).mean()
    assert error == pytest.approx(found.fitted.mae, abs=1e-3) and error < 0.05
