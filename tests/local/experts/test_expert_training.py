"""Experts that are trained here: on a tiny model, and for a few steps on the real one."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402

from mpf_chains.errors import BenchmarkError, InvalidInput  # noqa: E402
from mpf_chains.local.experts import ExpertEnsemble, ExpertPair  # noqa: E402
from mpf_chains.local.experts.strength import Association, alpha_curve, choose_alpha  # noqa: E402
from mpf_chains.local.experts.texts import pieces, split, texts_of_redditbias  # noqa: E402
from mpf_chains.local.experts.training import ExpertTrainer  # noqa: E402
from mpf_chains.local.fingerprint import fingerprint  # noqa: E402

SHARED = Path(__file__).parents[4] / "shared/data"
WEIGHTS = "adapter_model.safetensors"
BIASED = ["n s h", "n w h", "d s g"] * 8  # after "n" ... comes "h"; in the other half "g"
ANTI = ["n s g", "n w g", "d s h"] * 8
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
        assert half.losses[-1] < half.losses[0] / 2 and half.best.loss < half.held_out[0].loss / 2
        assert half.held_out[0].kl == 0 and half.best.kl > 0.1
        assert half.best.loss == min(each.loss for each in half.held_out)


def test_the_pair_moves_probabilities_towards_the_expert(setting: Any, trained: Any) -> None:
    ensemble = ExpertEnsemble([trained.pair])
    prompt = torch.tensor(setting.tokenizer(["n s"], add_special_tokens=False)["input_ids"])
    prompt = torch.cat([torch.tensor([[setting.tokenizer.bos_token_id]]), prompt], 1)
    contrast = ensemble.contributions(ensemble.reader().read(prompt))[0, 0, 0]
    g, h = setting.tokenizer.convert_tokens_to_ids(["g", "h"])
    assert contrast[g] - contrast[h] > 1


def test_held_out_figures_are_those_of_the_adapter_that_was_kept(setting: Any, trained: Any) -> None:
    pair = ExpertPair("half", trained.expert.folder, None, setting.small, tokenizer=setting.tokenizer)
    curve = alpha_curve(  # z + 1 (z⁺ − z): the expert itself
        setting.small, setting.tokenizer, ExpertEnsemble([pair]), texts=split(ANTI, 0.1, 0)[1], alphas=[1.0],
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


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [3, 8, 20, 30, 47])  # the anti-expert takes the first 24 steps
def test_killed_and_resumed_is_uninterrupted(
    setting: Any, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    trainer = ExpertTrainer(setting.small, setting.tokenizer, **SETTINGS)
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
            trainer.train(BIASED, ANTI, tmp_path)
        torch.manual_seed(at)  # another process
        again = trainer.train(BIASED, ANTI, tmp_path)
    assert steps < 48 + 1 + 5
    for resumed, whole in ((again.expert, trained.expert), (again.anti_expert, trained.anti_expert)):
        assert (resumed.losses, resumed.held_out) == (whole.losses, whole.held_out)
        tensors = adapter(whole)
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in adapter(resumed).items())
        files = {file.name for file in resumed.folder.iterdir()}
        assert files == {"adapter_config.json", WEIGHTS, "training.json"}


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


def test_it_stops_where_it_gets_worse_and_where_it_gets_too_far(setting: Any, tmp_path: Path) -> None:
    unlike = [["a b c", "d e f"][i % 2] + f" {'ghijklmnopqrstuv'[i % 16]}" for i in range(24)]
    more = SETTINGS | {"learning_rate": 0.05, "max_steps": 900, "kl_limit": 100.0, "patience": 2, "held_out": 0.5}
    late = ExpertTrainer(setting.small, setting.tokenizer, **more).train(unlike, unlike, tmp_path / "late").expert
    assert late.stopped == "patience" and late.best_step < len(late.losses) < 900
    assert [each.step > late.best_step for each in late.held_out[-2:]] == [True, True]
    near = SETTINGS | {"kl_limit": 0.2, "evaluate_every": 1}
    close = ExpertTrainer(setting.small, setting.tokenizer, **near).train(BIASED, ANTI, tmp_path / "close").expert
    assert close.stopped == "kl" and close.held_out[-1].kl > 0.2 >= close.best.kl > 0
    ensemble = ExpertEnsemble([ExpertPair("g", close.folder, None, setting.small, tokenizer=setting.tokenizer)])
    assert len(ensemble.members[0]) == 2  # the kept adapter is not the untuned model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "`rank` is 0"),
        ({"held_out": 1.0}, "`held_out` is 1.0"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0"),
        ({"targets": ["no_such_module"]}, "no_such_module"),
        ({"tokenizer": None}, "tokenizer="),
    ],
)
def test_wrong_settings_are_refused(llama: Any, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    settings = {"tokenizer": llama.tokenizer} | SETTINGS | change
    with pytest.raises(InvalidInput, match=message):
        ExpertTrainer(llama.small, **settings).train(BIASED, ANTI, tmp_path)


def test_wrong_texts_are_refused(llama: Any, tmp_path: Path) -> None:
    trainer = ExpertTrainer(llama.small, llama.tokenizer, **SETTINGS)
    with pytest.raises(InvalidInput, match="1 texts for the expert"):
        trainer.train(BIASED, ["a"], tmp_path)
    with pytest.raises(InvalidInput, match="blank"):
        trainer.train(["a", " ", "b"], ANTI, tmp_path)


def test_texts_are_cut_and_counterparts_stay_together(llama: Any) -> None:
    assert pieces(llama.tokenizer, ["a b c d e", "f"], 3) == [[1, 3, 4], [1, 5, 6], [1, 7], [1, 8]]
    numbers = list(range(50))
    (kept, held), (_, also) = split(numbers, 0.2, 3), split([-i for i in numbers], 0.2, 3)
    assert len(held) == 10 and sorted(kept + held) == numbers and also == [-i for i in held]
    assert split(numbers, 0.2, 4)[1] != held


def test_redditbias_files_are_halved(tmp_path: Path) -> None:
    file = tmp_path / "gender_bias_manual_swapped_attr_train.txt"
    file.write_text("<bos> She Cooks\nhe Fixes\n\nshe fixes\n<bos> He cooks\n", "utf-8")
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
