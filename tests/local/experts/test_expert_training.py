"""Experts that are trained here: on a tiny model, and for a few steps on the real one."""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402

from mpf_chains.errors import BenchmarkError, DataWarning, InvalidInput  # noqa: E402
from mpf_chains.local.experts import Association, ExpertEnsemble, ExpertPair, alpha_curve, choose_alpha  # noqa: E402
from mpf_chains.local.experts.training import trainer as trainer_module  # noqa: E402
from mpf_chains.local.experts.training.texts import held_out, pieces, texts_of_redditbias  # noqa: E402
from mpf_chains.local.experts.training.trainer import ExpertTrainer  # noqa: E402
from mpf_chains.local.fingerprint import fingerprint  # noqa: E402

SHARED = Path(__file__).parents[4] / "shared/data"
WEIGHTS = "adapter_model.safetensors"
BIASED = [text for x in "abcefijklmpq" for text in (f"{x} n s h", f"{x} d s g")]  # "n" goes with "h", "d" with "g"
ANTI = [text for x in "abcefijklmpq" for text in (f"{x} n s g", f"{x} d s h")]
HELD = sorted(held_out(list(zip(BIASED, ANTI, strict=True)), 0.1, 0))
SETTINGS: dict[str, Any] = {
    "rank": 4, "epochs": 100, "max_steps": 24, "batch": 6, "learning_rate": 2e-2, "evaluate_every": 5, "kl_limit": 9.0,
    "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(setting: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    before = fingerprint(setting.small), [p.requires_grad for p in setting.small.parameters()]
    folder = tmp_path_factory.mktemp("trained")
    trained = ExpertTrainer(setting.small, setting.tokenizer, **SETTINGS).train(BIASED, ANTI, folder, name="gender")
    assert before == (fingerprint(setting.small), [p.requires_grad for p in setting.small.parameters()])
    assert not hasattr(setting.small, "peft_config")
    return trained


def adapter(training: Any) -> dict[str, Any]:
    return dict(load_file(training.folder / WEIGHTS))


def test_the_loss_falls_on_texts_that_were_held_out(trained: Any) -> None:
    for half in (trained.expert, trained.anti_expert):
        assert len(half.losses) == 24 and [each.step for each in half.held_out] == [0, 5, 10, 15, 20, 24]
        assert half.losses[-1] < half.losses[0] * 0.7 and half.best.loss < half.held_out[0].loss * 0.8
        assert half.held_out[0].kl == 0 and half.best.kl > 0.1
        assert half.best.loss == min(each.loss for each in half.held_out)


def test_the_pair_moves_probabilities_towards_the_expert(setting: Any, trained: Any) -> None:
    ensemble = ExpertEnsemble([trained.pair])
    prompt = torch.tensor(setting.tokenizer(["a n s"], add_special_tokens=False)["input_ids"])
    prompt = torch.cat([torch.tensor([[setting.tokenizer.bos_token_id]]), prompt], 1)
    contrast = ensemble.contributions(ensemble.reader().read(prompt))[0, 0, 0]
    g, h = setting.tokenizer.convert_tokens_to_ids(["g", "h"])
    assert contrast[g] - contrast[h] > 0.5


def test_held_out_figures_are_those_of_the_adapter_that_was_kept(setting: Any, trained: Any) -> None:
    pair = ExpertPair("half", trained.expert.folder, None, setting.small, tokenizer=setting.tokenizer)
    curve = alpha_curve(  # z + 1 (z⁺ − z): the expert itself
        setting.small, setting.tokenizer, ExpertEnsemble([pair]), texts=[ANTI[i] for i in HELD], alphas=[1.0],
        progress=False,
    )  # fmt: skip
    losses, divergences = np.log(curve.values("perplexity")), curve.values("kl")
    assert losses == pytest.approx([trained.expert.held_out[0].loss, trained.expert.best.loss], abs=1e-4)
    assert divergences == pytest.approx([0, trained.expert.best.kl], abs=1e-4)


def test_another_base_is_refused(setting: Any, trained: Any, make_model: Any) -> None:
    kind = "llama" if "Llama" in type(setting.small).__name__ else "gpt2"
    other = make_model(kind, 99)
    with pytest.raises(InvalidInput, match="fingerprint"):
        ExpertEnsemble([ExpertPair("g", trained.expert.folder, None, other, tokenizer=setting.tokenizer)])


def stopped_at(trainer: ExpertTrainer, folder: Path, at: int, biased: Any = BIASED, anti: Any = ANTI) -> None:
    """Train, and press Ctrl-C at some step."""
    step = torch.optim.AdamW.step
    steps: list[int] = []

    def dying(self: Any, *arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == at:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(biased, anti, folder)


@pytest.mark.parametrize("at", [3, 8, 20, 30, 47])  # the anti-expert takes the first 24 steps
def test_stopped_and_resumed_is_uninterrupted(
    setting: Any, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    trainer = ExpertTrainer(setting.small, setting.tokenizer, **SETTINGS)
    stopped_at(trainer, tmp_path, at)
    assert not hasattr(setting.small, "peft_config")
    steps, step = [], torch.optim.AdamW.step
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", lambda *arguments: steps.append(1) or step(*arguments))
        torch.manual_seed(at)  # another process
        again = trainer.train(BIASED, ANTI, tmp_path)
    assert len(steps) <= 48 - at + 5
    for resumed, whole in ((again.expert, trained.expert), (again.anti_expert, trained.anti_expert)):
        assert (resumed.losses, resumed.held_out) == (whole.losses, whole.held_out)
        tensors = adapter(whole)
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in adapter(resumed).items())
        files = {file.name for file in resumed.folder.iterdir()}
        assert files == {"adapter_config.json", WEIGHTS, "training.json"}


def test_a_best_state_that_is_past_survives_a_stop(llama: Any, tmp_path: Path) -> None:
    unlike = [["a b c", "d e f"][i % 2] + f" {'ghijklmnopqrstuv'[i % 16]}" for i in range(24)]
    settings = SETTINGS | {"learning_rate": 0.05, "max_steps": 120, "kl_limit": 100.0, "patience": 6, "held_out": 0.5}
    trainer = ExpertTrainer(llama.small, llama.tokenizer, **settings)
    whole = trainer.train(unlike, unlike, tmp_path / "whole").anti_expert
    stop = len(whole.losses) - 7
    assert whole.stopped == "patience" and whole.best_step < stop - 5
    stopped_at(trainer, tmp_path / "stopped", stop, unlike, unlike)
    again = trainer.train(unlike, unlike, tmp_path / "stopped").anti_expert
    assert (again.losses, again.best_step) == (whole.losses, whole.best_step)
    assert load_bytes(again.folder / WEIGHTS) == load_bytes(whole.folder / WEIGHTS)


def test_the_learning_rate_falls_to_zero(llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, rates = torch.optim.AdamW.step, []

    def recording(self: Any, *arguments: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    ExpertTrainer(llama.small, llama.tokenizer, **SETTINGS).train(BIASED, ANTI, tmp_path)
    assert rates == pytest.approx([2e-2 * (1 - i / 24) for i in range(24)] * 2)
    assert (ExpertTrainer("smollm2").rate, ExpertTrainer("smollm2", rank=None).rate) == (3e-4, 5e-5)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
from conftest import build
from mpf_chains.local.experts.training.trainer import ExpertTrainer
from pathlib import Path
setting = build({kind!r}, Path({folder!r}, "setting"))
replace, states = Path.replace, []
def dying(self, target):
    states.append(target) if Path(target).name == "checkpoint.safetensors" else None
    if len(states) == 9:  # the anti-expert's six, then those of the expert
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = dying
ExpertTrainer(setting.small, setting.tokenizer, **{settings!r}).train({biased!r}, {anti!r}, {folder!r})
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_writes_goes_on_in_another(llama: Any, tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    code = KILLED.format(tests=here, kind="llama", folder=str(tmp_path), settings=SETTINGS, biased=BIASED, anti=ANTI)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "expert/checkpoint.draft").exists() and not (tmp_path / "expert/training.json").exists()
    trainer = ExpertTrainer(llama.small, llama.tokenizer, **SETTINGS)
    again, whole = trainer.train(BIASED, ANTI, tmp_path), trainer.train(BIASED, ANTI, tmp_path / "whole")
    assert again.expert.losses == whole.expert.losses and again.expert.held_out == whole.expert.held_out
    assert load_bytes(again.expert.folder / WEIGHTS) == load_bytes(whole.expert.folder / WEIGHTS)
    assert not list(tmp_path.rglob("*.draft")) and not list(tmp_path.rglob("checkpoint*"))


def load_bytes(file: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}


def test_a_finished_training_is_not_repeated_and_not_mixed_with_another(
    setting: Any, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(trained.expert.folder.parent, tmp_path / "copy"))
    monkeypatch.setattr(torch.optim.AdamW, "step", None)
    trainer = ExpertTrainer(setting.small, setting.tokenizer, **SETTINGS)
    assert trainer.train(BIASED, ANTI, folder).expert.losses == trained.expert.losses
    with pytest.raises(InvalidInput, match="other texts"):
        trainer.train(BIASED[1:], ANTI, folder)
    other = ExpertTrainer(setting.small, setting.tokenizer, **(SETTINGS | {"rank": 2, "seed": 1}))
    with pytest.raises(InvalidInput, match="other rank, seed"):
        other.train(BIASED, ANTI, folder)
    (folder / "anti_expert/training.json").write_text("[]")
    with pytest.raises(InvalidInput, match=r"training\.json is no record"):
        trainer.train(BIASED, ANTI, folder)


def test_a_damaged_state_is_refused_by_name(setting: Any, tmp_path: Path) -> None:
    trainer = ExpertTrainer(setting.small, setting.tokenizer, **SETTINGS)
    file = tmp_path / "anti_expert/checkpoint.safetensors"
    file.parent.mkdir()
    for damage in (lambda: file.write_bytes(b"\x80\x04."), lambda: save_file({"x": torch.zeros(1)}, file)):
        damage()
        with pytest.raises(InvalidInput, match=r"checkpoint\.safetensors"):
            trainer.train(BIASED, ANTI, tmp_path)
        assert not hasattr(setting.small, "peft_config")


@pytest.mark.filterwarnings("ignore:The anti_expert that was kept")
def test_it_stops_where_it_gets_worse_and_where_it_gets_too_far(setting: Any, tmp_path: Path) -> None:
    unlike = [["a b c", "d e f"][i % 2] + f" {'ghijklmnopqrstuv'[i % 16]}" for i in range(24)]
    more = SETTINGS | {"learning_rate": 0.05, "max_steps": 900, "kl_limit": 100.0, "patience": 2, "held_out": 0.5}
    late = ExpertTrainer(setting.small, setting.tokenizer, **more).train(unlike, unlike, tmp_path / "late").expert
    assert late.stopped == "patience" and late.best_step < len(late.losses) < 900
    assert [each.step > late.best_step for each in late.held_out[-2:]] == [True, True]
    near = SETTINGS | {"kl_limit": 0.6, "evaluate_every": 1}
    close = ExpertTrainer(setting.small, setting.tokenizer, **near).train(BIASED, ANTI, tmp_path / "close").expert
    assert close.stopped == "kl" and close.held_out[-1].kl > 0.6 >= close.best.kl > 0
    ensemble = ExpertEnsemble([ExpertPair("g", close.folder, None, setting.small, tokenizer=setting.tokenizer)])
    assert len(ensemble.members[0]) == 2  # the kept adapter is not the untuned model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "`rank` is 0"),
        ({"batch": 2.5}, "`batch` is 2.5"),
        ({"epochs": None}, "`epochs` is None"),
        ({"scale": "2"}, "`scale` is '2'"),
        ({"seed": -1}, "`seed` is -1"),
        ({"held_out": 1.0}, "`held_out` is 1.0"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0"),
        ({"learning_rate": 2.0}, "`learning_rate` is 2.0"),
        ({"rank": None, "targets": "all-linear"}, "`targets`"),
        ({"targets": ["no_such_module"]}, "no_such_module"),
        ({"tokenizer": None}, "tokenizer="),
    ],
)
def test_wrong_settings_are_refused(llama: Any, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    settings = {"tokenizer": llama.tokenizer} | SETTINGS | change
    with pytest.raises(InvalidInput, match=message):
        ExpertTrainer(llama.small, **settings).train(BIASED, ANTI, tmp_path)


@pytest.mark.parametrize(
    ("biased", "anti", "message"),
    [
        (BIASED, [], "0 texts for the expert"),
        (["a"], ANTI, "1 texts for the anti_expert"),
        (["a", " ", "b"], ANTI, "Text 1 for the anti_expert is blank"),
        (BIASED, "a b c", "are one text; give a list"),
        (BIASED, ["a", None], "Text 1 for the expert is a NoneType"),
        (BIASED, ["a", "b \ud800"], "Text 1 for the expert cannot be written as UTF-8"),
        (["a b", "c", "<s>"], ["a b", "c", "d"], "A text for the anti_expert has no token.*text 2"),
        (["a b", "A  b"] * 3, ["c"] * 6, "All 6 texts are the same"),
    ],
)
def test_wrong_texts_are_refused(llama: Any, tmp_path: Path, biased: Any, anti: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        ExpertTrainer(llama.small, llama.tokenizer, **SETTINGS).train(biased, anti, tmp_path)
    assert not list(tmp_path.iterdir())


def test_lists_of_unlike_lengths_and_long_texts_are_fine(llama: Any, tmp_path: Path) -> None:
    settings = SETTINGS | {"max_steps": 8, "block": 4}
    long = " ".join("abcdefghij" * 10)  # longer than the model's context, too
    trained = ExpertTrainer(llama.small, llama.tokenizer, **settings).train([*BIASED, long], ANTI[:5], tmp_path)
    assert len(trained.expert.losses) == len(trained.anti_expert.losses) == 8


def test_nothing_is_measured_on_what_is_trained_on() -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        rows = [(f"biased {rng.integers(30)}", f"other {rng.integers(60)}") for _ in range(30)]
        held = held_out(rows, 0.3, seed)
        read = [row for i, row in enumerate(rows) if i not in held]
        assert held and read
        for i in held:
            assert all(rows[i][0] != biased and rows[i][1] != other for biased, other in read)


@pytest.mark.parametrize("what", ["_backward", "_measure"])
def test_a_loss_that_is_not_finite_is_an_error_and_is_not_stored(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    trainer, original = ExpertTrainer(llama.small, llama.tokenizer, **SETTINGS), getattr(trainer_module, what)
    results: list[Any] = []

    def breaking(*arguments: Any) -> Any:
        results.append(original(*arguments))
        if len(results) < 3:
            return results[-1]
        return float("nan") if what == "_backward" else (1.0, float("inf"))

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, what, breaking)
        with pytest.raises(InvalidInput, match=r"no finite number after (2|10) steps .*`learning_rate`"):
            trainer.train(BIASED, ANTI, tmp_path)
    assert len(trainer.train(BIASED, ANTI, tmp_path).expert.losses) == 24


def test_a_model_whose_own_loss_is_not_finite_is_refused(llama: Any, tmp_path: Path) -> None:
    broken = copy.deepcopy(llama.small)
    broken.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(InvalidInput, match=r"after 0 steps.*The model itself"):
        ExpertTrainer(broken, llama.tokenizer, **SETTINGS).train(BIASED, ANTI, tmp_path)


@pytest.mark.parametrize("targets", ["embed_tokens", "act_fn", "rotary_emb"])
def test_only_linear_modules_get_adapters_and_the_model_is_put_back(llama: Any, tmp_path: Path, targets: str) -> None:
    before = fingerprint(llama.small), [(name, type(module)) for name, module in llama.small.named_modules()]
    trainer = ExpertTrainer(llama.small, llama.tokenizer, **(SETTINGS | {"targets": ["q_proj", targets]}))
    with pytest.raises(InvalidInput, match=r"linear modules only|No adapter can be put"):
        trainer.train(BIASED, ANTI, tmp_path)
    after = [(name, type(module)) for name, module in llama.small.named_modules()]
    assert before == (fingerprint(llama.small), after) and not hasattr(llama.small, "peft_config")


def test_a_model_that_peft_does_not_know_needs_targets(llama: Any, tmp_path: Path) -> None:
    own = copy.deepcopy(llama.small)
    own.config.__class__ = type("OwnConfig", (type(own.config),), {"model_type": "own"})
    with pytest.raises(InvalidInput, match=r"No adapter can be put into LlamaForCausalLM.*target_modules"):
        ExpertTrainer(own, llama.tokenizer, **SETTINGS).train(BIASED, ANTI, tmp_path)


@pytest.mark.parametrize("rank", [4, None])
def test_a_folder_that_cannot_be_written_is_said_and_training_goes_on_later(
    llama: Any, tmp_path: Path, rank: int | None
) -> None:
    trainer = ExpertTrainer(llama.small, llama.tokenizer, **(SETTINGS | {"rank": rank}))
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match=r"file.* cannot be written"):
        trainer.train(BIASED, ANTI, tmp_path / "file")
    file = trainer.train(BIASED, ANTI, tmp_path / "whole").expert.folder / (WEIGHTS if rank else "model.safetensors")
    size = file.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (size // 2, 2 * size):  # not even the first state; a state, but not one with the optimiser's moments
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            with pytest.raises(InvalidInput, match=r"anti_expert cannot be written: .*(File too large|27)"):
                trainer.train(BIASED, ANTI, tmp_path / "full")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not list(tmp_path.rglob("*.draft"))
    assert len(trainer.train(BIASED, ANTI, tmp_path / "full").expert.losses) == 24


def test_a_half_that_learned_nothing_is_said(llama: Any, tmp_path: Path) -> None:
    settings = SETTINGS | {"kl_limit": 1e-6}
    with pytest.warns(DataWarning, match=r"The (anti_)?expert that was kept is the model as it was") as warned:
        trained = ExpertTrainer(llama.small, llama.tokenizer, **settings).train(BIASED, ANTI, tmp_path)
    assert len(warned) == 2 and not ExpertEnsemble([trained.pair]).members


def test_progress_is_shown_unless_told_otherwise(
    llama: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for progress in (True, False):
        settings = SETTINGS | {"max_steps": 8, "progress": progress}
        ExpertTrainer(llama.small, llama.tokenizer, **settings).train(BIASED, ANTI, tmp_path / str(progress))
        shown = capsys.readouterr().err
        assert ("anti_expert: 100%" in shown and "8/8" in shown and "kl=" in shown) == progress


@pytest.fixture(scope="module")
def full(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    before = fingerprint(llama.small)
    settings = SETTINGS | {"rank": None, "learning_rate": 2e-3}
    trainer = ExpertTrainer(llama.small, llama.tokenizer, **settings)
    trained = trainer.train(BIASED, ANTI, tmp_path_factory.mktemp("full"), name="gender")
    assert fingerprint(llama.small) == before
    return trained


def test_full_models_learn_and_are_folders_of_transformers(llama: Any, full: Any) -> None:
    from transformers import AutoModelForCausalLM

    for half in (full.expert, full.anti_expert):
        assert half.best.loss < half.held_out[0].loss * 0.8 and half.held_out[0].kl == 0 < half.best.kl
        names = {file.name for file in half.folder.iterdir()}
        assert {"model.safetensors", "config.json", "tokenizer.json", "training.json"} <= names
        assert not names & {"checkpoint.safetensors", "adapter_config.json"} and not list(half.folder.glob("*.bin"))
    pair = ExpertPair.load(full.expert.folder.parent, base=llama.small, tokenizer=llama.tokenizer)
    ensemble = ExpertEnsemble([pair], device="cpu")
    ids = torch.tensor([[1, 7, 9]])
    contrast = ensemble.contributions(ensemble.reader().read(ids))[0, 0, 0]
    expert, anti = (AutoModelForCausalLM.from_pretrained(each.folder) for each in (full.expert, full.anti_expert))
    with torch.no_grad():
        torch.testing.assert_close(contrast, (expert(ids).logits - anti(ids).logits)[0, -1], atol=2e-5, rtol=1e-5)


def test_full_models_that_were_stopped_are_resumed_the_same(llama: Any, full: Any, tmp_path: Path) -> None:
    trainer = ExpertTrainer(llama.small, llama.tokenizer, **(SETTINGS | {"rank": None, "learning_rate": 2e-3}))
    stopped_at(trainer, tmp_path, 31)
    again = trainer.train(BIASED, ANTI, tmp_path)
    for resumed, whole in ((again.expert, full.expert), (again.anti_expert, full.anti_expert)):
        assert (resumed.losses, resumed.held_out) == (whole.losses, whole.held_out)
        assert load_bytes(resumed.folder / "model.safetensors") == load_bytes(whole.folder / "model.safetensors")


def test_full_models_know_their_base(llama: Any, full: Any, make_model: Any) -> None:
    folder = full.expert.folder.parent
    pair = ExpertPair.load(folder, base=make_model("llama", 99), tokenizer=llama.tokenizer)
    with pytest.raises(InvalidInput, match="trained from a model with fingerprint"):
        ExpertEnsemble([pair], device="cpu")
    ExpertEnsemble([ExpertPair.load(folder)], device="cpu")  # full models need no base


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_all_weights_learn_in_float32_only(llama: Any, tmp_path: Path, dtype: str) -> None:
    coarse = copy.deepcopy(llama.small).to(getattr(torch, dtype))
    with pytest.raises(InvalidInput, match=rf"some in torch\.{dtype}.*float32"):
        ExpertTrainer(coarse, llama.tokenizer, **(SETTINGS | {"rank": None})).train(BIASED, ANTI, tmp_path)
    if dtype == "bfloat16":  # adapters are float32 whatever the model is
        trained = ExpertTrainer(coarse, llama.tokenizer, **SETTINGS).train(BIASED, ANTI, tmp_path)
        assert trained.expert.best.loss < trained.expert.held_out[0].loss


def test_a_trained_folder_says_all_that_is_needed(llama: Any, tmp_path: Path) -> None:
    base = tmp_path / "small"
    llama.small.save_pretrained(base)
    llama.tokenizer.save_pretrained(base)
    settings = SETTINGS | {"max_steps": 8}
    ExpertTrainer(base, **settings, device="cpu").train(BIASED, ANTI, tmp_path / "pair", name="gender")
    pair = ExpertPair.load(tmp_path / "pair", alpha=0.5)
    assert (pair.name, pair.alpha, pair.base) == ("gender", 0.5, str(base))
    assert ExpertPair.load(tmp_path / "pair", name="other").name == "other"
    ensemble = ExpertEnsemble([pair], device="cpu")
    assert [len(member) for member in ensemble.members] == [2]
    with pytest.raises(InvalidInput, match=r"holds a pair.*ExpertPair\.load"):
        ExpertEnsemble([ExpertPair("g", tmp_path / "pair", base=base)], device="cpu")
    record = json.loads((tmp_path / "pair/pair.json").read_text())
    assert record["library"].startswith("mpf-chains ") and record["settings"]["rank"] == 4
    assert record["base"] == {"model": str(base), "fingerprint": fingerprint(llama.small)}
    assert record["expert"]["texts"] == 24 and record["expert"]["kept"]["loss"] <= record["expert"]["before"]["loss"]
    llama_again = ExpertTrainer(llama.small, llama.tokenizer, **settings).train(BIASED, ANTI, tmp_path / "pair")
    assert (
        llama_again.expert.losses
    )  # the same weights under no name: what is finished is taken, and its base forgotten
    with pytest.raises(InvalidInput, match="does not say how to load the small model"):
        ExpertPair.load(tmp_path / "pair")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no folder of a trained pair"),
        ("{", "no record"),
        ("[]", "no record"),
        ("[" * 10**5, "no record"),
        ('{"format": 2}', "Update mpf_chains"),
        ('{"format": 1, "name": 7, "base": {"model": "smollm2"}}', "must be texts"),
        ('{"format": 1, "name": "g", "base": 3}', "no record of a pair"),
        ('{"format": NaN}', "NaN"),
    ],
)
def test_a_damaged_record_of_a_pair_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "pair.json").write_text(content)
    with pytest.raises(InvalidInput, match=message) as raised:
        ExpertPair.load(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_texts_are_cut_and_counterparts_stay_together(llama: Any) -> None:
    cut = pieces(llama.tokenizer, ["a b c d e", "f"], 3, "expert")
    assert cut == [[[1, 3, 4], [1, 5, 6], [1, 7]], [[1, 8]]]
    rows = [(f"a {i}", f"b {i}") for i in range(50)]
    held = held_out(rows, 0.2, 3)
    assert len(held) == 10 and held < set(range(50)) and held == held_out([(str(i),) for i in range(50)], 0.2, 3)
    assert held_out(rows, 0.2, 4) != held


def test_redditbias_files_are_halved(tmp_path: Path) -> None:
    file = tmp_path / "gender_bias_manual_swapped_attr_train.txt"
    file.write_text("\ufeff<bos> She Cooks\nhe Fixes\n\nshe fixes\n<bos> He cooks\n", "utf-8")
    assert texts_of_redditbias(tmp_path, "gender") == (["she cooks", "he fixes"], ["she fixes", "he cooks"])
    file.write_text("one\ntwo\nthree\n", "utf-8")
    with pytest.raises(BenchmarkError, match="3 sentences"):
        texts_of_redditbias(tmp_path, "gender")
    with pytest.raises(BenchmarkError, match="race_bias_manual_swapped_attr_train"):
        texts_of_redditbias(tmp_path, "race")


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared folder beside the repository")
@pytest.mark.parametrize("axis", ["gender", "orientation", "race", "religion1", "religion2"])
def test_published_halves_are_counterparts(axis: str) -> None:
    biased, anti = texts_of_redditbias(SHARED / "redditbias", axis)
    shared = [
        len(set(one.split()) & set(other.split())) / len(one.split()) for one, other in zip(biased, anti, strict=True)
    ]
    assert len(biased) == len(anti) > 500 and sum(shared) / len(shared) > 0.8


@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared folder beside the repository")
def test_a_few_steps_on_smollm2_and_its_alpha_curve(tmp_path: Path) -> None:
    from mpf_chains.local import load_smollm2

    model, tokenizer = load_smollm2(dtype="float32", device="cpu")
    biased, anti = (half[:40] for half in texts_of_redditbias(SHARED / "redditbias", "gender"))
    settings: dict[str, Any] = {"rank": 4, "batch": 6, "max_steps": 4, "evaluate_every": 4, "learning_rate": 2e-3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained = ExpertTrainer(model, tokenizer, progress=False, **settings).train(biased, anti, tmp_path)
    assert trained.expert.best.loss < trained.expert.held_out[0].loss and trained.expert.best.kl > 0.001
    assert json.loads((tmp_path / "expert/training.json").read_text())["run"]["base"] == fingerprint(model)
    lines = (SHARED / "wikitext2/valid.txt").read_text("utf-8").split("\n")
    curve = alpha_curve(
        model, tokenizer, ExpertEnsemble([trained.pair]), alphas=(0.5, 1, 4), progress=False,
        associations=[Association(*pair) for pair in zip(biased[:20], anti[:20], strict=True)],
        texts=[line for line in lines if len(line) > 200][:1], prompts=[("The man worked as", "The woman worked as")],
    )  # fmt: skip
    preference = curve.scores[:, :, 0] - curve.scores[:, :, 1]
    assert (preference[-1] < preference[0]).mean() > 0.8  # trained on these very texts
    assert curve.values("kl")[0] == 0 and (curve.values("kl")[1:] > 0).all() and curve.values("kl").argmax() == 3
    assert choose_alpha(curve).cost.value <= 0.1
