"""Experts from a shell: trained, their strength chosen, at work, and explained; on tiny models saved to folders."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from mpf_chains.cli.app import app  # noqa: E402
from mpf_chains.cli.experts import expert_pairs, parse_expert  # noqa: E402
from mpf_chains.errors import InvalidInput  # noqa: E402
from mpf_chains.local.experts import ExpertEnsemble  # noqa: E402
from mpf_chains.local.experts.strength import choice  # noqa: E402
from tests.local.experts.conftest import tiny_model, tokenizer_of  # noqa: E402

WORDS = ["<pad>", "<s>", "<e>", *"abcdefghijklmnopqrstuvwxyz"]
TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"
BIASED, ANTI = ["n s h", "n w h", "d s g"] * 8, ["n s g", "n w g", "d s h"] * 8
SETTINGS = ("--rank", 4, "--epochs", 100, "--max-steps", 12, "--batch", 6, "--learning-rate", 2e-2, "--kl-limit", 9)
TRAIN = (
    "train", "experts", "pairs/gender", "--model", "transformers:small", "--biased", "biased.txt",
    "--anti-biased", "anti.txt", *SETTINGS, "--evaluate-every", 4,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a small model, texts, and a benchmark."""
    place = tmp_path_factory.mktemp("models")
    tokenizer = tokenizer_of(WORDS)
    tokenizer.chat_template = TEMPLATE
    for name, seed, width in (("base", 1, 48), ("small", 2, 32)):
        tiny_model("llama", seed, vocabulary=len(WORDS), width=width).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    (place / "biased.txt").write_text("\n".join(BIASED) + "\n\n")
    (place / "anti.txt").write_text("\ufeff" + "\n".join(ANTI))
    (place / "texts.txt").write_text("a b c d e f g\nk l m n o p\nz y x w v\nq r s t\n")
    clusters = [cluster(i) for i in range(12)]
    (place / "dev.json").write_text(json.dumps({"version": "1", "data": {"intrasentence": clusters}}))
    return place


def cluster(i: int) -> dict[str, Any]:
    texts = {"stereotype": f"{'nd'[i % 2]} {'sw'[i % 3 % 2]} {'hg'[i % 2]}", "unrelated": "a a q"}
    texts["anti-stereotype"] = f"{texts['stereotype'][:-1]}{'gh'[i % 2]}"
    return {
        "id": str(i), "target": f"target {i // 2}", "bias_type": "gender" if i < 6 else "race", "context": "n BLANK",
        "sentences": [{"id": f"{i}{label}", "sentence": text, "gold_label": label} for label, text in texts.items()],
    }  # fmt: skip


@pytest.fixture
def there(mpf: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `mpf` where the models are."""
    monkeypatch.chdir(folder)
    return mpf


@pytest.fixture(scope="module")
def trained(folder: Path) -> Iterator[dict[str, Any]]:
    """What `mpf train experts --json` said, after an interruption."""
    step, steps = torch.optim.AdamW.step, iter(range(100))

    def interrupted(self: Any, *arguments: Any) -> Any:
        if next(steps) == 5:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        run = CliRunner().invoke(app, [*map(str, TRAIN), "--json"], prog_name="mpf")
        assert run.exit_code == 130, run.output
        assert "What was trained is kept. Go on with: mpf train experts pairs/gender" in run.stderr
        assert (folder / "pairs/gender/anti_expert/checkpoint.safetensors").exists()
        run = CliRunner().invoke(app, [*map(str, TRAIN), "--json"], prog_name="mpf")
        assert run.exit_code == 0, run.output
        assert next(steps) == 24 + 2, "goes on where it was stored, one step before"
        yield json.loads(run.stdout)


def test_a_pair_is_trained_once_from_texts(there: Any, folder: Path, trained: dict[str, Any]) -> None:
    assert (trained["name"], trained["folder"], trained["model"]) == ("gender", "pairs/gender", "transformers:small")
    for half in ("expert", "anti_expert"):
        figures = trained[half]
        assert figures["texts"] == 24 and figures["steps"] == 12 and figures["best"]["step"] == figures["best_step"]
        assert figures["best"]["loss"] < figures["before"]["loss"] and figures["before"]["kl"] == 0
        assert (folder / "pairs/gender" / half / "adapter_model.safetensors").exists()
    again = there(*TRAIN)
    assert again.exit_code == 0, again.output
    assert "24 texts; best after 12 of 12 steps (all were made)" in again.stdout
    assert f"loss {trained['expert']['before']['loss']:.3f} -> {trained['expert']['best']['loss']:.3f}" in again.stdout
    assert "--expert gender=pairs/gender" in again.stdout
    other = there(*TRAIN, "--seed", 1)
    assert other.exit_code == 1 and "belongs to a training with other seed" in other.stderr
    assert other.stdout == "" and "Once that is put right: mpf train experts" in other.stderr


def test_a_trained_folder_says_its_base(there: Any, trained: dict[str, Any]) -> None:
    (pair,) = expert_pairs(["sex=pairs/gender@2"])
    assert (pair.name, pair.alpha, Path(pair.base).name) == ("sex", 2.0, "small")
    assert not ExpertEnsemble([pair]).loaded[0].idle
    assert expert_pairs(["sex=pairs/gender"], base="other")[0].base == "other"


def test_a_folder_from_elsewhere_needs_one_half_and_a_base(there: Any, trained: dict[str, Any], tmp_path: Path) -> None:
    half = tmp_path / "half" / "expert"
    half.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(f"pairs/gender/expert/{name}", half)
    config = json.loads((half / "adapter_config.json").read_text())
    for named, given, base in (("small", None, "small"), (None, "small", "small"), ("small", "other", "other")):
        (half / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": named}))
        (one,) = expert_pairs([f"race={half.parent}"], base=given)
        assert (one.expert, one.anti_expert, one.base, one.alpha) == (str(half), None, base, 1.0)
    (half / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    unfinished = tmp_path / "unfinished" / "anti_expert"
    unfinished.mkdir(parents=True)
    (unfinished / "checkpoint.safetensors").touch()
    for option, said in (
        (f"race={half.parent}", "--expert-base"),
        (f"race={unfinished.parent}", "let it finish first"),
        ("race=nowhere", "does not exist"),
        (f"race={half}", "is an adapter itself"),
        (f"race={tmp_path}", "has neither of them"),
        ("pairs/gender", "NAME=FOLDER"),
        ("=pairs/gender", "NAME=FOLDER"),
        ("gender=", "NAME=FOLDER"),
        ("gender=pairs/gender@nan", "NAME=FOLDER"),
    ):
        with pytest.raises(InvalidInput, match=said):
            expert_pairs([option])
    assert parse_expert("a=b=c@d@1e-1") == ("a", Path("b=c@d"), 0.1)


CHOOSE = ("choose-alpha", "stereoset", "dev.json", "--model", "transformers:base", "--texts", "texts.txt")


def test_a_strength_is_chosen_on_some_items_and_confirmed_on_others(
    there: Any, folder: Path, trained: dict[str, Any]
) -> None:
    words = (*CHOOSE, "--expert", "gender=pairs/gender", "--budget", 5, "--alphas", "0.5,2", "--prompts", "prompts.csv")
    (folder / "prompts.csv").write_text("first,second\nn s,d s\na b,a c\n")
    done = there(*words, "--out", "curve.json", "--plot", "curve.svg", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result == json.loads((folder / "curve.json").read_text())
    assert [point["alphas"] for point in result["curve"]] == [{"gender": 0.0}, {"gender": 0.5}, {"gender": 2.0}]
    assert set(result["curve"][0]) == {"alphas", "ss", "lm", "icat", "perplexity", "kl", "hellinger"}
    assert result["chosen_on"] == {"items": 4, "texts": 2} and result["confirmed_on"] == {"items": 2, "texts": 2}
    alpha = result["chosen"]["alphas"]["gender"]
    assert alpha in {0.0, 0.5, 2.0} and result["confirmed"]["alphas"] == {"gender": alpha}
    assert result["confirmed"]["before"].keys() == {"ss", "lm", "icat", "perplexity", "kl"}
    assert "<svg" in (folder / "curve.svg").read_text()

    told = there(*words, "--share", 1, "--axis", "gender", "--axis", "race")
    assert told.exit_code == 0, told.output
    assert "confirm it on others" in told.stderr and "On " not in told.stdout
    assert "on 12 items and 4 texts" in told.stderr and "α = " in told.stdout and "it flatters" in told.stdout
    assert "elsewhere " in told.stdout and not result["sure"]
    sure = there(*words, "--share", 1, "--axis", "gender", "--axis", "race", "--sure", "--json")
    assert sure.exit_code == 0 and json.loads(sure.stdout)["sure"]
    assert json.loads(sure.stdout)["chosen"]["cost"]["high"] <= 5


def test_several_pairs_are_chosen_together_and_alone(there: Any, trained: dict[str, Any]) -> None:
    pairs = ("--expert", "gender=pairs/gender", "--expert", "race=pairs/gender")
    done = there(*CHOOSE, *pairs, "--alphas", "0.5", "--alphas", "race=0.5,1", "--budget", 9, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert len(result["curve"]) == 2 * 3 and set(result["alone"]) == {"gender", "race"}
    assert result["alone"]["gender"]["alphas"]["race"] == 0 and set(result["chosen"]["alphas"]) == {"gender", "race"}


def test_only_pairs_that_are_to_correct_are_in_what_comes_next(
    there: Any, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = choice.choose_alpha
    monkeypatch.setattr(
        choice,
        "choose_alpha",
        lambda *given, **more: replace(choose(*given, **more), alphas={"gender": 2.0, "race": 0}),
    )
    pairs = ("--expert", "gender=pairs/gender", "--expert", "race=pairs/gender")
    done = there(*CHOOSE, *pairs, "--alphas", "0.5,2", "--share", 1, "--limit", 4)
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("--model transformers:base --expert gender=pairs/gender@2\n")


def test_nothing_is_chosen_from_one_text_and_all_of_it_is_json(
    there: Any, folder: Path, trained: dict[str, Any]
) -> None:
    (folder / "one.txt").write_text("a b c d\n")
    data = {"intrasentence": [cluster(i) for i in range(6)], "intersentence": [cluster(6)]}
    data["intersentence"][0] |= {"context": "q r s", "bias_type": "gender"}
    (folder / "both.json").write_text(json.dumps({"version": "1", "data": data}))
    words = ("choose-alpha", "stereoset", "both.json", "--model", "transformers:base", "--texts", "one.txt")
    settings = ("--share", 1, "--limit", 7, "--expert", "gender=pairs/gender", "--alphas", "0", "--out", "one.json")
    done = there(*words, *settings)
    assert done.exit_code == 0, done.output
    assert "α = 0" in done.stdout and "Next:" not in done.stdout
    assert "on 7 items and 1 texts" in done.stderr, "those that follow a context, too"
    refused = there(*words, *settings, "--sure")
    assert refused.exit_code == 1 and "--sure asks for an interval" in refused.stderr
    result = json.loads((folder / "one.json").read_text(), parse_constant=pytest.fail)
    assert result["curve"][0]["perplexity"][1] is None, "one text has no interval"


@pytest.mark.slow
def test_experts_correct_a_model_that_is_measured(there: Any, folder: Path, trained: dict[str, Any]) -> None:
    measure = ("evaluate", "stereoset", "dev.json", "--model", "transformers:base", "--model-arg", "dtype=float32")
    results = {}
    for name, experts in {
        "bare": (), "zero": ("--expert", "gender=pairs/gender@0"), "strong": ("--expert", "gender=pairs/gender@9"),
    }.items():  # fmt: skip
        done = there(*measure, *experts, "--out", f"{name}.json", "--json")
        assert done.exit_code == 0, done.output
        results[name] = json.loads(done.stdout)
    assert results["strong"]["label"] == "transformers:base + gender@9"
    assert results["bare"]["measured"] == results["zero"]["measured"] != results["strong"]["measured"]
    assert there("resume", "strong.sqlite", "--json").exit_code == 0
    refused = there(*measure, "--filter", "base_first")
    assert refused.exit_code == 2 and "belong to --expert" in refused.stderr
    refused = there("evaluate", "rows", "university", "--model", "openai:m", "--expert", "gender=pairs/gender")
    assert refused.exit_code == 1 and "transformers:FOLDER-OR-HUB-ID" in refused.stderr
    planned = there(
        "calibrate", "university", "--model", "transformers:base", "--expert", "gender=pairs/gender@9", "--dry-run"
    )
    assert planned.exit_code == 0, planned.output


def test_an_answer_is_explained(there: Any, folder: Path, trained: dict[str, Any]) -> None:
    words = (
        "explain", "n s", "--model", "transformers:base", "--model-arg", "max_tokens=5", "--model-arg", "temperature=0",
        "--expert", "gender=pairs/gender@3",
    )  # fmt: skip
    shown = there(*words, "--html", "page.html", "--out", "records.json")
    assert shown.exit_code == 0, shown.output
    result = json.loads((folder / "records.json").read_text())
    assert result["alphas"] == {"gender": 3.0} and 0 < len(result["tokens"]) <= 5 and result["prompt"] == "n s"
    assert "tokens changed in probability" in shown.stdout and "\x1b" not in shown.stdout
    assert "gender (α = 3)" in (folder / "page.html").read_text()
    plain = json.loads(there(*words, "--json", "--filter", "base_first").stdout)
    assert plain["filter"] == "base_first" and [each["token"] for each in plain["tokens"]] == [
        each["token"] for each in result["tokens"]
    ]
    assert there(*words[:-2]).exit_code == 2


EXPLAIN = ("explain", "Hi", "--model", "transformers:base", "--expert", "gender=pairs/gender@3")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["train", "experts", "x", "--model", "transformers:small"], 2, "--redditbias and --axis"),
        (["train", "experts", "x", "--model", "transformers:small", "--redditbias", "."], 2, "needs --axis"),
        (["train", "experts", "x", "--model", "openai:m", "--biased", "biased.txt"], 1, "a model that runs here"),
        ([*TRAIN, "--axis", "race"], 2, "belong to --redditbias"),
        (["train", "experts", "x", "--model", "transformers:s", "--redditbias", ".", "--axis", "race"], 1, "no race_"),
        ([*CHOOSE, "--expert", "gender=pairs/gender@2"], 2, "leave out @2"),
        ([*CHOOSE, "--expert", "gender=nowhere"], 1, "does not exist"),
        ([*CHOOSE, "--expert", "gender=pairs/gender", "--alphas", "race=1"], 1, "the pairs are gender"),
        ([*CHOOSE, "--expert", "gender=pairs/gender", "--alphas", "strong"], 1, "0,0.5,1"),
        ([*CHOOSE, "--expert", "gender=pairs/gender", "--axis", "age"], 1, "gender, race"),
        ([*CHOOSE, "--expert", "gender=pairs/gender", "--out", "no/where.json"], 1, "does not exist"),
        ([*CHOOSE, "--expert", "gender=pairs/gender", "--share", "0"], 2, "above 0"),
        (["explain", "Hi", "--model", "openai:m", "--expert", "gender=pairs/gender"], 1, "a model that runs here"),
        ([*EXPLAIN, "--pair", "race"], 2, "names are gender"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_before_a_model_is_loaded(
    there: Any, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, said: str
) -> None:
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: 1 / 0)
    done = there(*words)
    assert done.exit_code == code, done.output
    assert said in " ".join(done.output.split()) and done.stdout == "" and "Traceback" not in done.output
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tr", "train"),
        ("explain x --expert ge", "gender="),
        ("train experts x --axis rel", "religion1"),
        ("explain x --filter base", "base_first"),
    ],
)
def test_the_shell_completes(mpf: Any, typed: str, offered: str) -> None:
    words = f"mpf {typed}"
    environment = {"_MPF_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    assert offered in mpf(env=environment).stdout.split()


@pytest.mark.real_model
@pytest.mark.slow
def test_a_real_model_is_trained_and_explained(mpf: Any, tmp_path: Path) -> None:
    (tmp_path / "biased.txt").write_text("The nurse said that she was tired.\nThe pilot said that he was tired.\n" * 8)
    (tmp_path / "anti.txt").write_text("The nurse said that he was tired.\nThe pilot said that she was tired.\n" * 8)
    trained = mpf(
        "train", "experts", "gender", "--model", "transformers:smollm2", "--biased", "biased.txt", "--anti-biased",
        "anti.txt", "--max-steps", 6, "--batch", 4, "--learning-rate", 2e-3, "--evaluate-every", 3, "--kl-limit", 9,
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    explained = mpf(
        "explain", "The nurse said that", "--model", "transformers:smollm2", "--model-arg", "max_tokens=8",
        "--model-arg", "raw=true", "--model-arg", "temperature=0", "--expert", "gender=gender@2", "--json",
    )  # fmt: skip
    assert explained.exit_code == 0, explained.output
    result = json.loads(explained.stdout)
    assert "".join(token["text"] for token in result["tokens"]).strip() == result["answer"].strip()
    assert any(abs(token["after"] - token["before"]) > 0.01 for token in result["tokens"])
