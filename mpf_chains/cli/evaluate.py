"""`mpf evaluate`: a model, or a calibrated one, measured on a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mpf_chains.cli import completion, options
from mpf_chains.cli.models import chat_model, parse_arguments
from mpf_chains.cli.session import Session, at_a_terminal, say, show
from mpf_chains.errors import InvalidInput

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from mpf_chains.benchmarks import Benchmark, ItemSet
    from mpf_chains.evaluation import Evaluation
    from mpf_chains.evaluation.evaluator import Evaluator
    from mpf_chains.evaluation.metrics import Comparison
    from mpf_chains.runtime import Price

_ROWS = ("rows", "saged")


def evaluate(
    context: typer.Context,
    benchmark: Annotated[
        str,
        typer.Argument(
            help="What kind: stereoset, crows_pairs, bbq, winobias, winogender, redditbias, hellinger, bold, "
            "holistic_bias, wikitext2, targets, rows, saged.",
            autocompletion=completion.readers,
        ),
    ],
    source: Annotated[
        str,
        typer.Argument(
            help="Its file or folder, or a hub id; of rows also university, university-hr; of hellinger also openings."
        ),
    ],
    model: options.Model,
    model_arg: options.ModelArguments = None,
    expert: options.Experts = None,
    expert_base: options.ExpertBase = None,
    filter_: options.Filter = "last",
    steering: options.Steering = None,
    draw: options.Draw = None,
    trigger: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Put this before every prompt, exactly as given: the baseline of trigger phrases."
        ),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Measure the model with these weights.")
    ] = None,
    entity: Annotated[
        list[str] | None,
        typer.Option(
            help="Whose weights answer, default the pooled ones; of rows: only rows about it, repeatable, and the "
            "weights are those of each row's entity."
        ),
    ] = None,
    mode: Annotated[options.Mode | None, typer.Option(help="Default: what the weights were fitted for.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Draws per merged answer.")] = 5,
    method: Annotated[
        Literal["auto", "likelihood", "generate"], typer.Option(help="Likelihood needs a local model.")
    ] = "auto",
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Only this metric; repeatable. Default all.", autocompletion=completion.metrics),
    ] = None,
    feature: options.Features = None,
    split: Annotated[str | None, typer.Option(help="Which split; default the one that is evaluated on.")] = None,
    part: Annotated[str | None, typer.Option(help="Which part, such as a category of BBQ; default all.")] = None,
    attribute: options.Attribute = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many items, the same each time.")] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="Answers per item; default 1, of targets 100 for each context.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Give the model a seed with each call.")] = None,
    label: Annotated[str, typer.Option(help="What the system is called; default the model and the weights.")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", dir_okay=False, help="Where the result goes (NAME.json).")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="An earlier --out file to compare with.")
    ] = None,
    ledger: options.LedgerPath = None,
    max_concurrency: options.Concurrency = 8,
    max_calls: options.MaxCalls = None,
    max_tokens: options.MaxTokens = None,
    max_cost: options.MaxCost = None,
    price_in: options.PriceIn = None,
    price_out: options.PriceOut = None,
    max_missing: Annotated[float, typer.Option(min=0, max=0.999, help="Largest share without an answer.")] = 0.05,
    store_text: options.StoreText = True,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure a model on a benchmark: every metric with its interval, its ideal, and a floor where there is one.

    With --calibration the model answers under drawn perspectives. With --out (or --ledger) every score and answer is
    kept as it arrives, and what is interrupted goes on with `mpf resume LEDGER`.
    """
    session: Session = context.obj
    if calibration is None and mode is not None:
        raise typer.BadParameter("--mode belongs to --calibration.")
    if benchmark not in _ROWS and entity and (calibration is None or len(entity) > 1):
        raise typer.BadParameter("--entity says whose weights of --calibration answer, and is given once.")
    if benchmark != "targets" and attribute is not None:
        raise typer.BadParameter("--attribute belongs to targets.")
    charged = options.price(price_in, price_out)
    limits = options.budget(max_calls, max_tokens, max_cost, charged)
    if out is not None:
        options.writable(out)
    kept = ledger or (None if out is None else options.beside(out))
    items = _items(benchmark, source, split, part, entity, attribute)
    corrected = options.experts(expert, expert_base, filter_) | options.steered(steering, draw)
    chat = chat_model(model, parse_arguments(model_arg or []), corrected, planning=dry_run)
    pairs = [f"{pair.name}@{pair.alpha:g}" for pair in corrected.get("experts", ())]
    pairs += [] if steering is None else [f"{steering.name} ({draw or 'model'} draws)"]

    from mpf_chains.evaluation import Evaluation, Evaluator, Trigger

    weighted = _system(chat, calibration, None if benchmark in _ROWS else entity, mode, n)
    system = weighted if trigger is None else Trigger(weighted, trigger)
    parts = [model, *pairs, *([] if calibration is None else [calibration.name])]
    parts += [] if trigger is None else [f"trigger {trigger!r}"]
    before = None if compare is None else Evaluation.load(compare)
    with options.opened(kept, store_text, dry_run=dry_run) as answers:
        evaluator = Evaluator(
            system,
            method=method,
            metrics=metric or None,
            features=feature or (),
            draws=draws,
            limit=limit,
            split=split if benchmark in _ROWS else None,  # type: ignore[arg-type]  # checked by `_items`
            seed=seed,
            label=label or " + ".join(parts),
            ledger=answers,
            max_concurrency=max_concurrency,
            budget=limits,
            max_missing=max_missing,
            progress=at_a_terminal(),
        )
        if before is not None:
            evaluator.check_comparable(before, items)
        if dry_run:
            _show_plan(evaluator, items, charged, as_json=as_json)
            return
        if kept is not None:
            session.begin(kept, _pins(evaluator, items))
        evaluation = evaluator.invoke(items)
    if out is not None:
        evaluation.save(out)
    session.to_resume = ""
    _show_result(evaluation, {} if before is None else before.compare(evaluation), out, as_json=as_json)


def _items(
    kind: str, source: str, split: str | None, part: str | None, entities: list[str] | None, attribute: str | None
) -> ItemSet[Any] | Benchmark:
    from mpf_chains.benchmarks import read_benchmark, target_prompts
    from mpf_chains.targets import read_target_file

    if attribute is not None:
        table: Any = read_target_file(source, attribute=attribute)
        return target_prompts(table, part or "answers", split or "held_out")  # type: ignore[arg-type]  # checked there
    if kind not in _ROWS:
        return read_benchmark(kind, source, split=split, part=part)
    if part:
        raise InvalidInput(f"The benchmark {kind!r} has no parts; leave out --part.")
    if split not in {None, "decomposition", "validation"}:
        raise InvalidInput(f"--split is {split!r}; of {kind} it must be decomposition or validation.")
    return options.benchmark(source, entities)


def _system(
    model: BaseChatModel, calibration: Path | None, entity: list[str] | None, mode: options.Mode | None, n: int
) -> BaseChatModel:
    """The model itself, or the model under the perspectives of a calibration."""
    if calibration is None:
        return model
    from mpf_chains.artifact import Calibration
    from mpf_chains.fusion import ChatMPF

    weights = Calibration.load(calibration)
    mode = mode or weights.mode
    settings: dict[str, Any] = {"n": n} if mode == "aggregated" else {}
    if entity:
        settings["entity"] = entity[0]
    fallback = "error" if entity else "pooled"
    return ChatMPF(
        model=model, weights=weights, perspectives=weights.perspectives, mode=mode, fallback=fallback, **settings
    )


def _pins(evaluator: Evaluator, items: ItemSet[Any] | Benchmark) -> dict[str, Any]:
    return {
        "model": evaluator.executor.model_id,
        "benchmark": items.digest,
        "features": {feature.name: feature.digest for feature in evaluator.features},
    }


def _show_plan(evaluator: Evaluator, items: ItemSet[Any] | Benchmark, price: Price | None, *, as_json: bool) -> None:
    plan = evaluator.plan(items)
    counts = {"calls": plan.calls, "texts": plan.texts, "done": plan.done, "remaining": plan.remaining}
    if plan.texts:
        text = f"texts to score  {plan.remaining:,}, by this machine; {plan.done:,} more are in the ledger"
        show({"dry_run": True, **counts}, text, as_json=as_json)
        return
    estimate = plan.estimate(evaluator.model)
    data, lines = options.estimated(estimate, price)
    words = [f"calls           {estimate.calls:,}, for {plan.remaining:,} answers; {plan.done:,} are in the ledger"]
    shown = {"dry_run": True, **counts, "model_calls": estimate.calls, **data}
    show(shown, "\n".join([*words, *lines]), as_json=as_json)


def _show_result(
    evaluation: Evaluation, comparison: Mapping[str, Comparison], out: Path | None, *, as_json: bool
) -> None:
    lines = [evaluation.summary()]
    if comparison:
        lines.append("\nAgainst the earlier result (of metrics with an ideal: how far from it)")
        width = max(map(len, comparison))
        lines += [
            f"  {key:<{width}}  {one.first:.4g} -> {one.second:.4g}: {one.difference:+.4g} "
            f"[{one.low:+.4g}, {one.high:+.4g}]  p {one.p:.3g}  ({one.n} items)"
            for key, one in comparison.items()
        ]
    if out is not None:
        lines.append(f"\nresult       {out}")
    result = {**evaluation.as_dict(), "out": None if out is None else str(out)}
    if comparison:
        result["comparison"] = {key: one.as_dict() for key, one in comparison.items()}
    show(result, "\n".join(lines), as_json=as_json)
    if evaluation.missing:
        say(f"{evaluation.missing} items have no usable answer; they are in no figure.")
