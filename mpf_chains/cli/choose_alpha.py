"""`mpf choose-alpha`: how strongly expert pairs are to correct a model, by measurement."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from math import isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from mpf_chains.cli import completion, options
from mpf_chains.cli.experts import expert_pairs, parse_expert
from mpf_chains.cli.models import chat_model, local_name, parse_arguments
from mpf_chains.cli.session import at_a_terminal, json_text, say, show
from mpf_chains.errors import InvalidInput

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from mpf_chains.benchmarks import Choice, ItemSet
    from mpf_chains.local import ExpertPair
    from mpf_chains.local.experts import AlphaCurve, Association, ChosenAlpha

T = TypeVar("T")

_SEVERAL: Final = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Strengths of each of several pairs: all combinations are measured."""


def choose_alpha(
    benchmark: Annotated[
        str,
        typer.Argument(
            help="What kind of sentences show the bias: stereoset, crows_pairs or redditbias.",
            autocompletion=completion.readers,
        ),
    ],
    source: Annotated[str, typer.Argument(help="Its file or folder, or a hub id.")],
    model: options.LocalModel,
    expert: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=FOLDER",
            autocompletion=completion.experts,
            help="A pair as `mpf train experts` makes it; repeatable.",
        ),
    ],
    texts: Annotated[
        Path,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Fluent texts that nothing was trained on, one on each line: perplexity is measured on them.",
        ),
    ],
    budget: Annotated[float, typer.Option(min=0, help="How much the perplexity may rise: 0.1 allows 10 % more.")] = 0.1,
    sure: Annotated[
        bool,
        typer.Option("--sure", help="Also keep the upper end of the interval of what it costs within the budget."),
    ] = False,
    expert_base: options.ExpertBase = None,
    model_arg: options.ModelArguments = None,
    alphas: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]A,B,...",
            help="Strengths to try, of all pairs or of one; repeatable. Default 0 to 16 for one pair, 0 to 4 for "
            "several, in all their combinations.",
        ),
    ] = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(
            help="Only sentences of this bias type; repeatable. Default those that pairs are named after, else all."
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Also measure the Hellinger distance on pairs of prompts: a .csv or .jsonl file, or openings."
        ),
    ] = None,
    share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Choose on this share of items and texts, confirm on the rest; 1: on all."),
    ] = 0.5,
    part: Annotated[str | None, typer.Option(help="Which part of the benchmark; default all.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many items, the same each time.")] = None,
    most_texts: Annotated[int, typer.Option(min=1, help="At most so many of --texts, the same each time.")] = 200,
    seed: Annotated[int, typer.Option(help="Seeds the parting of the items and the resampling.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", dir_okay=False, help="Where the whole curve goes (NAME.json).")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Draw it: a .svg, .png or .pdf file (extra: plots).")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Choose how strongly expert pairs correct: the least bias whose perplexity stays within a budget.

    Everything is read once, and what each strength does is computed from that. The choice is made on one part of the
    items and texts and measured on the other, since the figure it was chosen for flatters.
    """
    _check(share, expert, [out, plot])
    local_name(model)
    pairs = expert_pairs(expert, expert_base)
    names = [pair.name for pair in pairs]
    grid = _grid(alphas or [], names)
    items = _items(benchmark, source, part, axis, names)
    data = _data(items, limit, _some(options.lines(texts), most_texts), share, seed)
    if sure and len(data.texts) < 2:
        raise InvalidInput("--sure asks for an interval, and there is one text to choose on; give --texts more.")
    couples = _prompts(prompts)
    chat = chat_model(model, parse_arguments(model_arg or []))

    found = _measured(chat, pairs, data, couples, grid, budget, sure, seed)
    if plot is not None:
        found.curve.plot(plot)
    confirmed = found.confirmed
    result = {
        "model": model, "experts": list(expert), "benchmark": benchmark, "budget": budget,
        "sure": sure,
        "chosen_on": {"items": len(data.items), "texts": len(data.texts)},
        "chosen": asdict(found.chosen),
        "alone": {name: asdict(choice) for name, choice in found.alone.items()},
        "confirmed_on": {"items": len(data.other_items), "texts": len(data.other_texts)},
        "confirmed": None if confirmed is None else _confirmed(confirmed, found.chosen.alphas),
        "curve": found.curve.records(),
    }  # fmt: skip
    if out is not None:
        out.write_text(json_text(result), "utf-8")
    _warn(found, grid)
    lines = [*_choice(found.chosen, "together" if len(names) > 1 else "")]
    for name, choice in found.alone.items():
        lines += _choice(choice, f"{name} by itself", only=name)
    lines += _confirmation(result)
    lines += [f"{name:<12} {file}" for name, file in (("curve", out), ("plot", plot)) if file is not None]
    strengths = {text: found.chosen.alphas[parse_expert(text).name] for text in expert}
    corrected = [f"--expert {shlex.quote(f'{text}@{alpha:g}')}" for text, alpha in strengths.items() if alpha]
    if corrected:
        lines += ["", f"Next:  mpf explain 'The nurse said that' --model {shlex.quote(model)} {' '.join(corrected)}"]
    show(result, "\n".join(lines).rstrip(), as_json=as_json)


@dataclass(frozen=True)
class _Data:
    """What is chosen on, and what is only measured on afterwards."""

    items: Sequence[Association]
    texts: Sequence[str]
    other_items: Sequence[Association] = ()
    other_texts: Sequence[str] = ()


@dataclass(frozen=True)
class _Found:
    """The choice for all pairs together and for each alone, and what it does to other data."""

    curve: AlphaCurve
    chosen: ChosenAlpha
    alone: Mapping[str, ChosenAlpha]
    confirmed: AlphaCurve | None


def _measured(
    chat: BaseChatModel,
    pairs: Sequence[ExpertPair],
    data: _Data,
    prompts: Sequence[tuple[str, str]],
    grid: Mapping[str, Sequence[float]],
    budget: float,
    sure: bool,
    seed: int,
) -> _Found:
    from mpf_chains.local.experts.ensemble import ExpertEnsemble
    from mpf_chains.local.experts.strength.choice import choose_alpha as choose
    from mpf_chains.local.experts.strength.measuring import alpha_curve

    model, tokenizer, _ = chat._engine.load()  # type: ignore[attr-defined]  # it runs here
    ensemble = ExpertEnsemble(pairs, device=str(model.device))
    count = prod(map(len, grid.values()))
    say(f"Choosing one of {count} strengths, on {len(data.items)} items and {len(data.texts)} texts.")
    common: dict[str, Any] = {"seed": seed, "progress": at_a_terminal()}
    curve = alpha_curve(
        model, tokenizer, ensemble, associations=data.items, texts=data.texts, prompts=prompts, alphas=grid, **common
    )
    chosen = choose(curve, budget, sure=sure)
    axes = {item.axis for item in data.items}
    own = [name for name in grid if name in axes and len(grid) > 1]
    alone = {name: choose(curve, budget, axes=[name], pairs=[name], sure=sure) for name in own}
    confirmed = None
    if data.other_items:
        at = {name: [alpha] for name, alpha in chosen.alphas.items()}
        confirmed = alpha_curve(
            model, tokenizer, ensemble, associations=data.other_items, texts=data.other_texts, alphas=at, **common
        )
    return _Found(curve, chosen, alone, confirmed)


def _check(share: float, experts: Sequence[str], files: Sequence[Path | None]) -> None:
    if share == 0:
        raise typer.BadParameter("--share must be above 0.")
    for given in map(parse_expert, experts):
        if given.alpha is not None:
            raise typer.BadParameter(f"The strength of {given.name} is to be chosen; leave out @{given.alpha:g}.")
    for file in files:
        if file is not None:
            options.writable(file)


def _items(kind: str, source: str, part: str | None, axes: list[str] | None, pairs: Sequence[str]) -> ItemSet[Choice]:
    from mpf_chains.benchmarks import Choice, ItemSet, read_benchmark

    items = read_benchmark(kind, source, part=part)
    needed = {"stereotype", "anti-stereotype"}
    choices = [item for item in items if isinstance(item, Choice) and not item.question]
    usable = [item for item in choices if needed <= set(item.labels)]
    if not usable:
        raise InvalidInput(
            f"{kind} has no sentences with the labels {' and '.join(sorted(needed))}.",
            hint="Choose on stereoset, crows_pairs or redditbias.",
        )
    groups = dict.fromkeys(item.group for item in usable)
    wanted = set(axes or [name for name in pairs if name in groups] or groups)
    unknown = sorted(wanted - set(groups))
    if unknown:
        raise InvalidInput(f"--axis is {unknown[0]!r}; the bias types there are {', '.join(groups)}.")
    return ItemSet(items.name, tuple(item for item in usable if item.group in wanted), items.source)


def _data(items: ItemSet[Choice], limit: int | None, texts: Sequence[str], share: float, seed: int) -> _Data:
    from mpf_chains.benchmarks import ItemSet

    kept = items if limit is None else ItemSet(items.name, tuple(_some(items.items, limit)), items.source)
    if share == 1:
        return _Data(_associations(kept), texts)
    if len(texts) < 2:
        raise InvalidInput("--texts has one text; two are needed, one to choose on.", hint="Or give --share 1.")
    by = "target" if all("target" in item.tags for item in kept) else "family"
    first, second = kept.split(by, share, seed)
    cut = min(max(1, round(share * len(texts))), len(texts) - 1)
    return _Data(_associations(first), texts[:cut], _associations(second), texts[cut:])


def _associations(items: ItemSet[Choice]) -> list[Association]:
    from mpf_chains.local.experts.strength.measuring import Association

    made = []
    for item in items:
        texts = dict(zip(item.labels, item.candidates, strict=True))
        unrelated, term = texts.get("unrelated", ""), str(item.tags.get("target", ""))
        made.append(
            Association(texts["stereotype"], texts["anti-stereotype"], unrelated, item.group, term, item.context)
        )
    return made


def _prompts(source: str | None) -> list[tuple[str, str]]:
    from mpf_chains.benchmarks import read_benchmark

    return [] if source is None else [item.prompts for item in read_benchmark("hellinger", source)]


def _grid(given: Sequence[str], names: Sequence[str]) -> dict[str, list[float]]:
    """Strengths to try, by pair, ascending, zero among them."""
    from mpf_chains.local.experts.strength.measuring import ALPHAS

    grid = {name: list(ALPHAS if len(names) == 1 else _SEVERAL) for name in names}
    for text in given:
        name, equals, values = text.rpartition("=")
        if equals and name not in names:
            raise InvalidInput(f"--alphas is {text!r}; the pairs are {', '.join(names)}.")
        try:
            strengths = [float(value) for value in values.split(",")]
        except ValueError as error:
            raise InvalidInput(f"--alphas is {text!r}; it must be numbers such as 0,0.5,1 or gender=0,1,2.") from error
        grid |= {each: sorted({0.0, *strengths}) for each in ([name] if equals else names)}
    return grid


def _some(items: Sequence[T], most: int) -> list[T]:
    """At most so many, drawn by a hash of what they are: the same each time, and fewer are some of them."""
    ordered = sorted(range(len(items)), key=lambda i: blake2b(repr(items[i]).encode()).digest())
    return [items[i] for i in sorted(ordered[:most])]


def _confirmed(curve: AlphaCurve, alphas: Mapping[str, float]) -> dict[str, Any]:
    """What was measured on other items, without correction and at the strengths that were chosen."""
    last = int((curve.points == list(alphas.values())).all(axis=1).argmax())
    columns = {name: curve.estimates(name) for name in curve.metrics}
    return {
        "alphas": dict(alphas),
        "before": {name: asdict(each[curve.zero]) for name, each in columns.items()},
        "after": {name: asdict(each[last]) for name, each in columns.items()},
    }


def _warn(found: _Found, grid: Mapping[str, Sequence[float]]) -> None:
    if found.confirmed is None:
        say("warning: the bias is that of the items that the strength was chosen on; confirm it on others.")
    if not any(found.chosen.alphas.values()):
        say("warning: no strength that was tried lowers the bias within the budget.")
    for name, alpha in found.chosen.alphas.items():
        if alpha and alpha in {grid[name][0], grid[name][-1]}:
            say(f"warning: {alpha:g} is the last strength of {name} that was tried; give further ones with --alphas.")


def _choice(choice: ChosenAlpha, title: str, only: str = "") -> Iterator[str]:
    if title:
        yield title
    for name, alpha in choice.alphas.items():
        if name == only or not only:
            low, high = choice.intervals[name]
            yield f"{name:<12} α = {alpha:g} [{low:g}, {high:g}]"
    before, bias, cost = choice.before, choice.bias, choice.cost
    change = f"{_estimate(asdict(before))} -> {_estimate(asdict(bias))}"
    yield f"|SS - 50|    {change}; the least that was found, so it flatters"
    if isfinite(choice.elsewhere.value):
        yield f"elsewhere    {_estimate(asdict(choice.elsewhere))}: on items left out of the choice, in turn"
    yield f"perplexity   {cost.value:+.1%} [{cost.low:+.1%}, {cost.high:+.1%}], where {choice.budget:+.0%} is allowed"
    yield ""


def _confirmation(result: Mapping[str, Any]) -> Iterator[str]:
    if result["confirmed"] is not None:
        before, after = result["confirmed"]["before"], result["confirmed"]["after"]
        counts = result["confirmed_on"]
        yield f"On {counts['items']} other items and {counts['texts']} other texts, which nothing was chosen on:"
        yield from (f"{name:<12} {_estimate(before[name])} -> {_estimate(after[name])}" for name in before)
        yield ""


def _estimate(one: Mapping[str, float]) -> str:
    return f"{one['value']:.4g} [{one['low']:.4g}, {one['high']:.4g}]"
