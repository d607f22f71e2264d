"""`mpf train steering`: tokens that make a local model's answers follow target shares."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from mpf_chains.cli import options
from mpf_chains.cli.models import local_name
from mpf_chains.cli.session import Session, at_a_terminal, say, show
from mpf_chains.errors import InvalidInput

if TYPE_CHECKING:
    from mpf_chains.local.steering import Answer, Calibrated, SteeringAdapter, SteeringData, TrainedSteering
    from mpf_chains.targets import TargetTable

ROWS: Final = "rows.jsonl"
_FIELDS: Final = ("context", "prompt", "text", "class")
_LONGEST: Final = "longest"  # tokens that a text has enough of
_TRAINING: Final = "training"
_BEYOND: Final = 4  # tokens of a text that the model writes itself, behind those that are learned from


def steering(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Where the adapter goes.")],
    targets: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="CSV or TSV: a row for each context, a column for each class; see README."
        ),
    ],
    model: options.LocalModel,
    attribute: options.Attribute = None,
    kind: Annotated[
        Literal["answers", "stories"],
        typer.Option(help="What is asked: the attribute itself, in a word; or short texts in which it shows."),
    ] = "answers",
    rows: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="What to train on: on each line a JSON object with context, prompt, text and class. Default: "
            f"answers from templates, stories that the model itself is asked for; kept in FOLDER/{ROWS}.",
        ),
    ] = None,
    per_prompt: Annotated[int, typer.Option(min=1, help="Stories per context, prompt and class.")] = 1,
    token: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS=TEXT",
            help="An existing token for a class, such as female=0; one for each. Default new ones.",
        ),
    ] = None,
    data_only: Annotated[bool, typer.Option("--data-only", help="Write and show the rows; train nothing.")] = False,
    loss: Annotated[
        Literal["kl+kto", "kl", "kto", "dpo", "sft"], typer.Option(help="Of the second stage; sft has only the first.")
    ] = "kto",
    sft_weight: Annotated[
        float | None,
        typer.Option(
            min=0, help="Of the supervised loss in the second stage; keeps answers fluent. Default 0.3, of stories 1."
        ),
    ] = None,
    rank: Annotated[int, typer.Option(min=0, help="Rank of low-rank changes; 0: only the tokens' rows learn.")] = 0,
    sft_steps: Annotated[int, typer.Option(min=0, help="Steps of the first stage.")] = 20,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the second stage; default 60, of stories 140.")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Of AdamW; it falls linearly to 0 in each stage. Default 1e-2, with --rank 1e-3."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 8,
    longest: Annotated[int, typer.Option(min=1, help="Tokens of an answer that are learned from.")] = 24,
    plain_opening: Annotated[
        bool | None,
        typer.Option(
            "--plain-opening/--steered-opening",
            help="Whether an answer's first token is drawn without the steering token; keeps stories fluent. Default: "
            "of stories, with new tokens and rank 0.",
        ),
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of the contexts that is kept for measuring the loss.")] = 0.1,
    generalise: Annotated[
        bool,
        typer.Option("--generalise", help="Choose the ridge for contexts without a target, by cross-validation."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seeds the split, the order of the rows and the adapter.")] = 0,
    device: Annotated[str | None, typer.Option(help="Torch device; default cuda if there is one, else cpu.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Train steering tokens: a token for each class, drawn with target shares, that makes an answer have that class.

    The rows are shown before training. Afterwards the shares themselves are fitted to the targets, in seconds. What is
    interrupted goes on when the same command is given again; then: mpf evaluate targets ... --steering FOLDER.
    """
    session: Session = context.obj
    name = local_name(model)
    if plain_opening and token:
        raise typer.BadParameter("--plain-opening needs new tokens; leave out --token.")
    if sft_weight is None:
        sft_weight = 1.0 if kind == "stories" else 0.3
    if plain_opening is None:
        plain_opening = kind == "stories" and not token and not rank

    from mpf_chains.local.steering import SteeringTokens, SteeringTrainer
    from mpf_chains.targets import read_target_file

    table = read_target_file(targets, attribute=attribute)
    tokens = SteeringTokens(table.attribute, table.classes, _tokens(token or [], table))
    session.to_resume, session.kept = f"mpf {shlex.join(session.argv)}", "What was written and trained is kept."
    data = _data(table, kind, rows, folder, name, device, per_prompt, longest, seed, paired=loss != "sft")
    if data_only:
        session.to_resume = ""
        show({"rows": len(data.rows), "targets": str(targets)}, str(data), as_json=as_json)
        return
    trainer = SteeringTrainer(
        name, loss=loss, rank=rank or None, sft_steps=sft_steps,
        steps=steps or (140 if kind == "stories" else 60),
        learning_rate=learning_rate or (1e-3 if rank else 1e-2), batch=batch,
        sft_weight=sft_weight, longest=longest, held_out=held_out, seed=seed, device=device, progress=at_a_terminal(),
        plain_opening=plain_opening,
    )  # fmt: skip
    if not at_a_terminal():
        say(str(data))
    trained = trainer.train(data, tokens, folder / _TRAINING)
    adapter, fitted = _refit(name, device, trained.adapter, table, kind, generalise=generalise)
    adapter.save(folder)
    session.to_resume = ""
    given = "" if attribute is None else f" --attribute {shlex.quote(attribute)}"
    _show(folder, model, f"{shlex.quote(str(targets))}{given}", table, kind, trained, fitted, as_json=as_json)


def _tokens(given: list[str], table: TargetTable) -> list[str] | None:
    if not given:
        return None
    found = dict(text.rpartition("=")[::2] for text in given)
    if set(found) != set(table.classes) or len(given) != len(found):
        raise typer.BadParameter(
            f"--token must be given once for each class: {', '.join(f'{name}=TEXT' for name in table.classes)}."
        )
    return [found[name] for name in table.classes]


def _data(
    table: TargetTable,
    kind: Literal["answers", "stories"],
    rows: Path | None,
    folder: Path,
    model: str,
    device: str | None,
    per_prompt: int,
    longest: int,
    seed: int,
    *,
    paired: bool,
) -> SteeringData:
    """What to train on: given, or written once and kept in the folder."""
    from mpf_chains.local.steering import SteeringData
    from mpf_chains.local.steering.training.data import Answer
    from mpf_chains.targets.phrasings import phrasings

    prompts = phrasings(kind, table.attributes, "train")
    if rows is None and kind == "answers" and "sentiment" not in table.attributes:
        answers = {name: [f"{_word(table, name).capitalize()}."] for name in table.classes}
        return SteeringData.build(
            table, prompts, answers, per_context=len(prompts), classes="even", mismatched=paired, seed=seed
        )
    kept = rows or folder / ROWS
    if not kept.exists():
        _write(kept, table, prompts, model, device, per_prompt, longest)
    found = []
    for number, line in enumerate(options.lines(kept), 1):
        try:
            cells = json.loads(line)
            answer, written = Answer(*(cells[name] for name in _FIELDS)), int(cells.get(_LONGEST, longest))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"{kept}:{number}: this is no JSON object with the texts {', '.join(_FIELDS)}: {error}."
            ) from error
        if written < longest:
            raise InvalidInput(
                f"{kept}:{number}: this text was written to be learned from up to its token {written}; --longest is "
                f"{longest}.",
                hint=f"Delete {kept} to have others written, or give --longest {written}.",
            )
        found.append(answer)
    say(f"Rows from {kept}; delete it to have others written." if rows is None else f"Rows from {kept}.")
    return SteeringData.of_answers(table, found, mismatched=paired, seed=seed)


def _word(table: TargetTable, name: str) -> str:
    """What a class is called in a sentence; a joint one as it is."""
    from mpf_chains.targets.names import canonical

    return canonical(table.attribute, name)


def _write(
    kept: Path,
    table: TargetTable,
    prompts: tuple[str, ...],
    model: str,
    device: str | None,
    per_prompt: int,
    longest: int,
) -> None:
    """Have the model write the rows; context by context, so that what is interrupted goes on behind the last one."""
    from tqdm import tqdm

    from mpf_chains.features import attribute_feature
    from mpf_chains.local import ChatTransformers
    from mpf_chains.local.steering import write_answers

    if len(table.attributes) > 1 or not set(table.attributes) <= {"gender", "race"}:
        raise InvalidInput(
            f"The model cannot simply be asked for texts of each class of {table.attribute}.",
            hint="Write them, and give them with --rows.",
        )
    chat = ChatTransformers(
        model=model, device=device, max_tokens=longest + _BEYOND, temperature=0.8, top_p=0.95, seed=None
    )
    classify = attribute_feature(table.attribute, table.classes, "stories").classify
    persons = {name: [f"{_word(table, name)} {{context}}"] for name in table.classes}
    kept.parent.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_suffix(".unfinished")
    written = _unfinished(unfinished)
    say(f"{model} writes {len(table) * len(prompts) * len(persons) * per_prompt} texts to train on.")
    found: list[str] = []
    with unfinished.open("a", encoding="utf-8") as file:
        for context in tqdm(table.contexts, desc="writing", unit="context", disable=not at_a_terminal()):
            answers: list[Answer] = []
            asked = json.dumps([model, context, prompts, persons, per_prompt, longest])
            if asked not in written:
                with suppress(InvalidInput):  # none of this context has the class that it was asked for
                    answers = write_answers(
                        chat, [context], prompts, persons, classify, per_prompt=per_prompt, whole=False
                    )
                written[asked] = [dict(zip(_FIELDS, each, strict=True)) | {_LONGEST: longest} for each in answers]
                file.write(f"{json.dumps([asked, written[asked]])}\n")
                file.flush()
            found += [json.dumps(row, ensure_ascii=False) for row in written[asked]]
    if not found:
        unfinished.unlink()
        raise InvalidInput(f"{model} wrote no text that has the class it was asked for.", hint="Give --rows.")
    draft = kept.with_suffix(".draft")
    draft.write_text("\n".join(found) + "\n", "utf-8")
    draft.replace(kept)
    unfinished.unlink()


def _unfinished(file: Path) -> dict[str, list[Any]]:
    """What was written so far, by what was asked; a line that was cut off is left out."""
    written: dict[str, list[Any]] = {}
    if file.exists():
        *lines, _ = file.read_text("utf-8").split("\n")
        file.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        written.update(map(json.loads, lines))
    return written


def _refit(
    name: str,
    device: str | None,
    adapter: SteeringAdapter,
    table: TargetTable,
    kind: Literal["answers", "stories"],
    *,
    generalise: bool,
) -> tuple[SteeringAdapter, Calibrated]:
    from mpf_chains.local.experts.files.loading import load_model
    from mpf_chains.local.steering import refit
    from mpf_chains.targets.phrasings import phrasings
    from mpf_chains.targets.templates import prompts_about

    model, tokenizer = load_model(name, device=device, dtype="float32")
    prompts = prompts_about(table.contexts, phrasings(kind, table.attributes, "train"))
    return refit(model, tokenizer, adapter, prompts, ridge=None if generalise else 1e-4)


def _show(
    folder: Path,
    model: str,
    targets: str,
    table: TargetTable,
    kind: str,
    trained: TrainedSteering,
    fitted: Calibrated,
    *,
    as_json: bool,
) -> None:
    stages = {name: stage for name, stage in (("sft", trained.sft), ("tuned", trained.tuned)) if stage is not None}
    result = {
        "folder": str(folder), "model": model, "attribute": table.attribute, "classes": list(table.classes),
        "contexts": len(table),
        **{
            name: {"steps": len(stage.losses), "before": stage.held_out[0].loss, "best": stage.best.loss}
            for name, stage in stages.items()
        },
        "shares": {
            "ridge": fitted.ridge, "fitted": asdict(fitted.fitted),
            "held_out": None if fitted.held_out is None else asdict(fitted.held_out),
        },
    }  # fmt: skip
    lines = [f"{'steering':<12} {table.attribute}: {', '.join(table.classes)}; {len(table)} contexts"]
    for name, stage in stages.items():
        before, best = stage.held_out[0].loss, stage.best.loss
        lines.append(f"{name:<12} {len(stage.losses)} steps; loss on held-out contexts {before:.3f} -> {best:.3f}")
    lines.append(
        f"{'shares':<12} mean absolute error {fitted.fitted.mae:.3f} on these contexts"
        + ("" if fitted.held_out is None else f", {fitted.held_out.mae:.3f} on contexts left out")
        + f"; {fitted.fitted.mass:.1%} of the probability is on the tokens"
    )
    lines += [
        f"{'folder':<12} {folder}",
        "",
        "Next, measure it with other phrasings:",
        f"  mpf evaluate targets {targets} --part {kind} --model {model} --steering {folder}",
    ]
    show(result, "\n".join(lines), as_json=as_json)
