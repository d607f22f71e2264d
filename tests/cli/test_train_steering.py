"""Steering from a shell: trained on a table, at work, and measured; on a tiny model saved to a folder."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from mpf_chains.errors import InvalidInput  # noqa: E402
from mpf_chains.local import ChatTransformers, SteeringAdapter  # noqa: E402
from mpf_chains.local.steering import Answer  # noqa: E402
from mpf_chains.targets.phrasings import phrasings  # noqa: E402
from tests.local.experts.conftest import tiny_model, tokenizer_of  # noqa: E402

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"
CONTEXTS = ("nurse", "plumber", "tailor", "baker")
SHARES = (0.9, 0.1, 0.5, 0.7)
SETTINGS = ("--sft-steps", 4, "--steps", 4, "--batch", 4, "--held-out", 0.25)
TRAIN = ("train", "steering", "out", "targets.csv", "--model", "transformers:small", *SETTINGS)


@pytest.fixture
def folder(tmp_path: Path, mpf: Any) -> Path:
    """Where the commands run: a model, a table, and rows."""
    asked = " ".join(phrasings("answers", ["gender"], "all") + phrasings("stories", ["gender"], "all"))
    punctuation = [*".,?{}_", "Female", "Male", "She", "He", "slept"]
    words = [
        "<pad>",
        "<s>",
        "<e>",
        *dict.fromkeys([*punctuation, *CONTEXTS, *asked.replace(".", " ").split(), "<unk>"]),
    ]
    tokenizer = tokenizer_of(words)
    tokenizer.chat_template = TEMPLATE
    tiny_model("llama", 1, vocabulary=len(words), width=32).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    table = "\n".join(f"{name},{share},{1 - share:g}" for name, share in zip(CONTEXTS, SHARES, strict=True))
    (tmp_path / "targets.csv").write_text(f"occupation,female,male\n{table}\n")
    rows = [
        {"context": name, "prompt": f"Write a story about a {name}.", "text": f"{word} slept.", "class": each}
        for name in CONTEXTS
        for each, word in (("female", "She"), ("male", "He"))
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_it_is_trained_shown_and_measured(mpf: Any, folder: Path) -> None:
    done = mpf(*TRAIN, "--rank", 4, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["classes"] == ["female", "male"] and result["contexts"] == 4
    assert result["sft"]["steps"] == result["tuned"]["steps"] == 4
    assert result["shares"]["fitted"]["mae"] < 0.15 and result["shares"]["held_out"] is None
    assert "token 'female'" in done.stderr and "[female] 'Male.' (male)" in done.stderr, "rows come first"
    adapter = SteeringAdapter.load(folder / "out")
    assert adapter.tokens.new and adapter.lora is not None and not adapter.plain_opening
    assert adapter.targets["nurse"]["female"] == pytest.approx(0.9)

    told = ("evaluate", "targets", "targets.csv", "--model", "transformers:small", "--steering", "out", "--json")
    drawn = [mpf(*told, "--draw", draw, "--draws", 2, "--model-arg", "max_tokens=2") for draw in ("quota", "model")]
    assert [run.exit_code for run in drawn] == [0, 0], drawn[0].output + drawn[1].output
    assert "out (quota draws)" in drawn[0].stdout and "target_mae" in drawn[0].stdout


def test_rows_may_be_given(mpf: Any, folder: Path) -> None:
    given = (*TRAIN, "--rows", "rows.jsonl", "--kind", "stories", "--generalise", "--json")
    shown = mpf(*TRAIN, "--rows", "rows.jsonl", "--data-only")
    assert shown.exit_code == 0 and "'She slept.'" in shown.stdout and not (folder / "out").exists()
    done = mpf(*given)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["shares"]["held_out"] is not None
    adapter = SteeringAdapter.load(folder / "out")
    assert adapter.lora is None and adapter.plain_opening, "stories begin as the model begins them"
    steered = ChatTransformers(model=str(folder / "small"), steering=folder / "out", max_tokens=3)
    about = steered.invoke("Write a story about a baker.").response_metadata["steering"]
    assert about["class"] in {"female", "male"} and about["context"] == "baker"


def test_interrupted_writing_goes_on_behind_the_last_context(
    mpf: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def write(_chat: Any, contexts: list[str], *_: Any, **__: Any) -> list[Answer]:
        (context,) = contexts
        asked.append(context)
        if asked == ["nurse", "plumber", "tailor"]:
            raise KeyboardInterrupt
        if context == "plumber":
            raise InvalidInput("None of 8 answers has the class that was asked for.")
        prompt = f"Write a story about a {context}."
        return [Answer(context, prompt, "She slept.", "female"), Answer(context, prompt, "He slept.", "male")]

    monkeypatch.setattr("mpf_chains.local.steering.write_answers", write)
    words = (*TRAIN, "--kind", "stories", "--data-only")
    run = mpf(*words)
    assert run.exit_code == 130 and "mpf train steering" in run.stderr and not (folder / "out/rows.jsonl").exists()
    unfinished = folder / "out/rows.unfinished"
    with unfinished.open("a") as file:
        file.write('["cut off, [')
    assert mpf(*words).exit_code == 0
    assert asked == ["nurse", "plumber", "tailor", "tailor", "baker"]
    kept = [json.loads(line)["context"] for line in (folder / "out/rows.jsonl").read_text().splitlines()]
    assert kept == ["nurse", "nurse", "tailor", "tailor", "baker", "baker"] and not unfinished.exists()
    longer = mpf(*words, "--longest", 40)
    assert longer.exit_code == 1 and "learned from up to its token 24; --longest is 40" in " ".join(
        longer.stderr.split()
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--token", "female=She"), "once for each class"),
        (("--token", "female=She slept", "--token", "male=He"), "'She slept' of class 'female' is 2 tokens"),
        (("--rows", "targets.csv"), "targets.csv:1: this is no JSON object with the texts"),
        (("--batch", "1"), "`batch` is 1; it must be at least 2"),
        (("--token", "female=She", "--token", "male=He", "--plain-opening"), "--plain-opening needs new tokens"),
    ],
)
def test_what_cannot_be_trained_is_said(mpf: Any, folder: Path, words: tuple[str, ...], said: str) -> None:
    run = mpf(*TRAIN, *words)
    assert run.exit_code in {1, 2} and said in " ".join(run.stderr.replace("│", " ").split()), run.output
    assert not (folder / "out/steering.safetensors").exists()


def test_steering_options_belong_together(mpf: Any, folder: Path) -> None:
    asked = ("evaluate", "targets", "targets.csv", "--draw", "quota", "--model")
    run = mpf(*asked, "transformers:small")
    assert run.exit_code == 2 and "--draw belongs to --steering" in run.stderr
    (folder / "out").mkdir()
    run = mpf(*asked, "openai:gpt-4.1-mini", "--steering", "out")
    assert run.exit_code == 1 and "--expert and --steering correct a model that runs here" in run.stderr
