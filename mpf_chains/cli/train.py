"""`mpf train`: what corrects a model: small expert models, steering tokens."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mpf_chains.cli import options
from mpf_chains.cli.models import local_name
from mpf_chains.cli.session import Session, at_a_terminal, say, show
from mpf_chains.cli.steering import steering

if TYPE_CHECKING:
    from mpf_chains.local.experts.training.trainer import TrainedPair, Training

commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train what corrects a model that runs here.")


@commands.callback()
def train() -> None:
    """Train what corrects a model that runs here."""


commands.command()(steering)


@commands.command()
def experts(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Where the pair goes: expert/ and anti_expert/.")],
    model: options.LocalModel,
    redditbias: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="The text files of RedditBias; needs --axis.")
    ] = None,
    axis: Annotated[
        Literal["gender", "orientation", "race", "religion1", "religion2"] | None,
        typer.Option(help="Which axis of RedditBias."),
    ] = None,
    swapped: Annotated[
        Literal["attr", "targets"],
        typer.Option(help="What RedditBias's counterparts have instead: the opposite attribute, or the other group."),
    ] = "attr",
    biased: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Or: texts with the bias, one on each line.")
    ] = None,
    anti_biased: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="And their counterparts against it, in the same order."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the pair; default the axis, or the folder's name.")] = "",
    full: Annotated[
        bool, typer.Option("--full", help="Train two full models, which take far more memory, and no adapters.")
    ] = False,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters.")] = 8,
    scale: Annotated[float, typer.Option(help="Factor of the low-rank product.")] = 2.0,
    targets: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Linear module to adapt; repeatable. Default peft's choice."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Times that each text is read.")] = 3,
    max_steps: Annotated[int | None, typer.Option(min=1, help="At most so many steps.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of AdamW; it falls linearly to 0. Default 3e-4, with --full 5e-5.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Texts of a step.")] = 32,
    block: Annotated[int, typer.Option(min=2, help="Longest piece of a text, in tokens.")] = 128,
    held_out: Annotated[float, typer.Option(help="Share of the texts that is kept for measuring.")] = 0.1,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between measurements, which are also kept.")] = 10,
    patience: Annotated[int, typer.Option(min=1, help="Stop after so many measurements without a lower loss.")] = 3,
    kl_limit: Annotated[float, typer.Option(help="Stop where the mean KL from the base passes this, in nats.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seeds the split, the order of the texts and the adapters.")] = 0,
    device: Annotated[str | None, typer.Option(help="Torch device; default cuda if there is one, else cpu.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Train an expert pair: two versions of a small model, on texts with a bias and on texts against it.

    The small model's vocabulary must be that of the model to be corrected; it may be that model itself.

    What is interrupted goes on when the same command is given again; a finished training is not repeated. Then choose
    the pair's strength with `mpf choose-alpha`.
    """
    session: Session = context.obj
    small = local_name(model)
    with_bias, against = _texts(redditbias, axis, swapped, biased, anti_biased)
    if redditbias is None and (axis or swapped != "attr"):
        raise typer.BadParameter("--axis and --swapped belong to --redditbias.")

    from mpf_chains.local.experts.training.trainer import ExpertTrainer

    trainer = ExpertTrainer(
        small, rank=None if full else rank, scale=scale, targets=targets or None, epochs=epochs, max_steps=max_steps,
        learning_rate=learning_rate, batch=batch, block=block, held_out=held_out, evaluate_every=evaluate_every,
        patience=patience, kl_limit=kl_limit, seed=seed, device=device, progress=at_a_terminal(),
    )  # fmt: skip
    session.to_resume, session.kept = f"mpf {shlex.join(session.argv)}", "What was trained is kept."
    called = name or axis or folder.absolute().name
    say(f"{len(with_bias)} texts for the anti-expert, {len(against)} for the expert; {held_out:.0%} are held out.")
    trained = trainer.train(with_bias, against, folder, name=called)
    session.to_resume = ""
    _show(trained, called, folder, {"expert": len(against), "anti_expert": len(with_bias)}, model, as_json=as_json)


def _texts(
    redditbias: Path | None,
    axis: str | None,
    swapped: Literal["attr", "targets"],
    biased: Path | None,
    anti: Path | None,
) -> tuple[list[str], list[str]]:
    from mpf_chains.local.experts.training.texts import texts_of_redditbias

    if redditbias is not None and biased is None and anti is None:
        if axis is None:
            raise typer.BadParameter("--redditbias needs --axis.")
        return texts_of_redditbias(redditbias, axis, swapped=swapped)
    if redditbias is not None or biased is None or anti is None:
        raise typer.BadParameter("Give --redditbias and --axis; or --biased and --anti-biased.")
    return options.lines(biased), options.lines(anti)


def _show(trained: TrainedPair, name: str, folder: Path, counts: dict[str, int], model: str, *, as_json: bool) -> None:
    halves = {"expert": trained.expert, "anti_expert": trained.anti_expert}
    result = {
        "name": name, "folder": str(folder), "model": model,
        **{half: {"texts": counts[half], **_figures(training)} for half, training in halves.items()},
    }  # fmt: skip
    lines = [f"{'pair':<12} {name}, two versions of {model}"]
    for half, training in halves.items():
        first, best = training.held_out[0], training.best
        steps = f"best after {training.best_step} of {len(training.losses)} steps ({_why(training)})"
        lines += [
            f"{half.replace('_', '-'):<12} {counts[half]} texts; {steps}, on held-out texts:",
            f"{'':<12} loss {first.loss:.3f} -> {best.loss:.3f} nats per token, KL from the base {best.kl:.3f}",
        ]
        if training.best_step == 0:
            say(f"warning: the {half} is the small model as it was: no state on the way was better on held-out texts.")
    pair = shlex.quote(f"{name}={folder}")
    lines += [
        f"{'folder':<12} {folder}",
        "",
        "Next, choose its strength on data that is not trained on:",
        f"  mpf choose-alpha stereoset dev.json --texts texts.txt --model transformers:... --expert {pair}",
    ]
    show(result, "\n".join(lines), as_json=as_json)


def _figures(training: Training) -> dict[str, Any]:
    return {
        "folder": str(training.folder), "steps": len(training.losses), "best_step": training.best_step,
        "stopped": training.stopped, "before": asdict(training.held_out[0]), "best": asdict(training.best),
    }  # fmt: skip


def _why(training: Training) -> str:
    return {
        "steps": "all were made", "patience": "stopped: the held-out loss no longer fell",
        "kl": "stopped: too far from the base",
    }[training.stopped]  # fmt: skip
