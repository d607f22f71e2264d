"""`mpf explain`: an answer, and what experts changed about it, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpf_chains.cli import options
from mpf_chains.cli.experts import parse_expert
from mpf_chains.cli.models import chat_model, parse_arguments
from mpf_chains.cli.session import json_text, show


def explain(
    prompt: Annotated[str, typer.Argument(help="What the model is asked.")],
    model: options.LocalModel,
    expert: options.Experts = None,
    expert_base: options.ExpertBase = None,
    filter_: options.Filter = "last",
    model_arg: options.ModelArguments = None,
    system: Annotated[str, typer.Option(help="A system message before it.")] = "",
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    pair: Annotated[
        str | None, typer.Option(metavar="NAME", help="Colour by this pair only; default all together.")
    ] = None,
    html: Annotated[Path | None, typer.Option(dir_okay=False, help="Also write it as a page for a browser.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", dir_okay=False, help="Also write the records (NAME.json).")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Answer with experts, and show what they changed: more probable tokens in blue, less probable ones in orange.

    Colours are left out where the output is no terminal or NO_COLOR is set; the marks stay.
    """
    if not expert:
        raise typer.BadParameter("--expert is needed: the pairs whose work is explained.")
    names = [parse_expert(text).name for text in expert]
    if pair is not None and pair not in names:
        raise typer.BadParameter(f"--pair is {pair!r}; those that --expert names are {', '.join(names)}.")
    for file in (html, out):
        if file is not None:
            options.writable(file)
    seeded = {} if seed is None else {"seed": seed}
    arguments = {**parse_arguments(model_arg or []), **seeded}
    chat = chat_model(model, arguments, options.experts(expert, expert_base, filter_))

    from langchain_core.messages import HumanMessage, SystemMessage

    from mpf_chains.local.experts.explanation.view import ExplanationView

    asked = [*([SystemMessage(system)] if system else []), HumanMessage(prompt)]
    message = chat.invoke(asked, explain=True)
    view = ExplanationView(message, pair=pair)
    experts = message.response_metadata["experts"]
    result = {"prompt": prompt, "system": system, "answer": message.text, "model": model, **experts}
    if html is not None:
        view.save(html, prompt)
    if out is not None:
        out.write_text(json_text(result), "utf-8")
    if as_json:
        show(result, "", as_json=True)
        return
    view.show()
    places = [f"{name:<12} {place}" for name, place in (("page", html), ("records", out)) if place is not None]
    if places:
        typer.echo("\n" + "\n".join(places))
