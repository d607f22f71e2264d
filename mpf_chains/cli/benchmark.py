"""`mpf benchmark`: benchmarks from texts, and what is in one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mpf_chains.cli import completion, options
from mpf_chains.cli.models import chat_model, parse_arguments
from mpf_chains.cli.session import Session, at_a_terminal, say
from mpf_chains.cli.session import show as show_result
from mpf_chains.errors import InvalidInput

if TYPE_CHECKING:
    from mpf_chains.builder import BuildPlan, Built
    from mpf_chains.runtime import Price
    from mpf_chains.runtime.tokens import Estimate

commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Build benchmarks, and look at them.")


@commands.command()
def build(
    context: typer.Context,
    corpus: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Texts: .txt and .md files.")],
    model: options.Model,
    entity: Annotated[list[str], typer.Option(metavar="NAME", help="Who is asked about; repeatable.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", dir_okay=False, help="Where the benchmark goes (NAME.jsonl).")
    ] = None,
    ledger: options.LedgerPath = None,
    model_arg: options.ModelArguments = None,
    fictional: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What the texts call the entity they are about: its full name, then shorter ones. Default: they are "
            "about the entities themselves.",
        ),
    ] = None,
    topic: Annotated[str, typer.Option(help="What the questions are about, in a few words.")] = "",
    keyword: Annotated[
        list[str] | None, typer.Option(metavar="WORD", help="Take sentences with this word; repeatable.")
    ] = None,
    choose: Annotated[
        Literal["corpus", "model"],
        typer.Option(help="Without --keyword: words that stand out by count, or that the model chooses of these."),
    ] = "corpus",
    most_keywords: Annotated[int, typer.Option(min=1, help="How many to choose.")] = 10,
    per_keyword: Annotated[int, typer.Option(min=1, help="Most sentences of a keyword.")] = 10,
    questions: Annotated[int, typer.Option(min=1, help="Questions per sentence.")] = 1,
    tries: Annotated[int, typer.Option(min=1, help="Calls per question, until it can be used.")] = 3,
    named: Annotated[
        bool, typer.Option("--named/--unnamed", help="Only sentences that name the entity, or others as well.")
    ] = True,
    baseline: Annotated[
        Literal["counterfactual", "role-play"],
        typer.Option(help="The target: the sentence with the name swapped, or what a role answers."),
    ] = "counterfactual",
    role: Annotated[str, typer.Option(help='Who speaks in "role-play", such as "You advise families."')] = "",
    roles: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="JSON file: entity to a sentence on its standing."),
    ] = None,
    validation: Annotated[float, typer.Option(min=0, max=0.999, help="Share of sentences to judge on.")] = 0.3,
    articles: Annotated[
        bool, typer.Option("--articles/--no-articles", help='Make "a" or "an" follow the name; for English.')
    ] = True,
    structured: Annotated[
        bool | None, typer.Option("--structured/--plain", help="Ask for structured output; default if it can.")
    ] = None,
    method: Annotated[
        Literal["function_calling", "json_schema", "json_mode"], typer.Option(help="How structure is asked for.")
    ] = "function_calling",
    name: Annotated[str, typer.Option(help="Name of the benchmark; default the topic.")] = "",
    seed: Annotated[int, typer.Option(help="Orders equal sentences and splits them.")] = 0,
    max_concurrency: options.Concurrency = 8,
    max_calls: options.MaxCalls = None,
    max_tokens: options.MaxTokens = None,
    max_cost: options.MaxCost = None,
    price_in: options.PriceIn = None,
    price_out: options.PriceOut = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Make a benchmark of texts: sentences become questions about many entities.

    Every answer is kept in the ledger (by default beside --out, as NAME.sqlite). What is interrupted goes on with
    `mpf resume LEDGER`. Nothing is fetched.
    """
    session: Session = context.obj
    if out is None and not dry_run:
        raise typer.BadParameter("--out is needed: where the benchmark goes, such as schools.jsonl.")
    charged = options.price(price_in, price_out)
    limits = options.budget(max_calls, max_tokens, max_cost, charged)
    if out is not None and options.writable(out).suffix.lower() not in {".jsonl", ".ndjson", ".csv"}:
        raise InvalidInput(f"--out is {out}; a benchmark is a .jsonl or .csv file.")
    kept = ledger or (None if out is None else out.with_suffix(".sqlite"))
    chat = chat_model(model, parse_arguments(model_arg or []), planning=dry_run)

    from mpf_chains.builder import BenchmarkBuilder, read_corpus

    with options.opened(kept, dry_run=dry_run) as answers:
        builder = BenchmarkBuilder(
            chat,
            entity,
            fictional=fictional or None,
            topic=topic,
            keywords=keyword or choose,
            most_keywords=most_keywords,
            per_keyword=per_keyword,
            questions=questions,
            tries=tries,
            named=named,
            baseline=baseline,
            roles=_standings(roles),
            role=role,
            validation=validation,
            articles=articles,
            structured=structured,
            method=method,
            name=name,
            ledger=answers,
            max_concurrency=max_concurrency,
            budget=limits,
            seed=seed,
            progress=at_a_terminal(),
        )
        plan = builder.plan(corpus)
        if dry_run or out is None or kept is None:
            _show_plan(plan, plan.estimate(chat), charged, as_json=as_json)
            return
        pins = {"model": builder.model_id, "texts": [source.digest for source in read_corpus(corpus)]}
        session.begin(kept, {**pins, "roles": {entity: one.digest for entity, one in builder.roles.items()}})
        say(f"{plan.least} to {plan.remaining} calls to make; {plan.done} are answered in {kept}.")
        built = builder.build(corpus)
    built.benchmark.write(out)
    session.to_resume = ""
    _show_built(built, out, kept, as_json=as_json)


@commands.command()
def show(
    benchmark: Annotated[
        str,
        typer.Argument(help="A file, or one that ships.", autocompletion=completion.benchmarks),
    ],
    as_json: options.AsJson = False,
) -> None:
    """Count what a benchmark holds: rows per entity and split, and where their targets come from."""
    found = options.benchmark(benchmark, None)
    splits = {
        entity: dict(Counter(row.split for row in found.rows if row.entity == entity)) for entity in found.entities
    }
    targets = Counter(
        "text" if row.target_text is not None else "score" if row.target_score else "role-played" for row in found.rows
    )
    scores = sorted({name for row in found.rows for name in row.target_score})
    result = {
        "name": found.name, "rows": len(found.rows), "entities": splits, "targets": dict(targets),
        "target_scores": scores, "digest": found.digest,
    }  # fmt: skip
    width = max(map(len, splits))
    lines = [f"{found.name}: {len(found.rows)} rows, digest {found.digest[:12]}"]
    for entity, counts in splits.items():
        lines.append(f"  {entity:<{width}}  " + ", ".join(f"{count} {split}" for split, count in counts.items()))
    of = f" ({', '.join(scores)})" if scores else ""
    lines.append("targets: " + ", ".join(f"{count} by {kind}" for kind, count in targets.items()) + of)
    show_result(result, "\n".join(lines), as_json=as_json)


def _standings(path: Path | None) -> dict[str, str] | None:
    if path is None:
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} is no JSON file: {error}.") from error
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise InvalidInput(f'{path} must hold {{"ENTITY": "a sentence on its standing", ...}}.')
    return found


def _show_plan(plan: BuildPlan, estimate: Estimate, price: Price | None, *, as_json: bool) -> None:
    counts = {"sentences": plan.sentences, "least": plan.least, "remaining": plan.remaining, "done": plan.done}
    spread = f"{plan.least:,} to {plan.remaining:,}"
    text = f"calls           {spread}, for {plan.sentences:,} sentences; {plan.done:,} are in the ledger"
    data, lines = options.estimated(estimate, price)
    show_result({"dry_run": True, **counts, **data}, "\n".join([text, *lines]), as_json=as_json)


def _show_built(built: Built, out: Path, ledger: Path, *, as_json: bool) -> None:
    rows = built.benchmark.rows
    result: dict[str, Any] = {
        "benchmark": str(out), "ledger": str(ledger), "rows": len(rows), "entities": list(built.benchmark.entities),
        "keywords": list(built.keywords), "dropped": [vars(one) for one in built.dropped],
        "left_out": dict(built.left_out), "notes": list(built.notes), "usage": dict(built.usage),
        "digest": built.benchmark.digest,
    }  # fmt: skip
    text = (
        f"{len(rows)} rows about {', '.join(built.benchmark.entities)}\nkeywords     {', '.join(built.keywords)}\n"
        f"dropped      {len(built.dropped)} questions\nbenchmark    {out}\nledger       {ledger}"
    )
    show_result(result, text, as_json=as_json)
