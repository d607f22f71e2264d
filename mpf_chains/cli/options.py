"""Options that several commands share, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mpf_chains.cli import completion
from mpf_chains.cli.experts import expert_pairs
from mpf_chains.cli.models import FORMS
from mpf_chains.errors import InvalidInput

if TYPE_CHECKING:
    from mpf_chains.benchmarks import Benchmark
    from mpf_chains.runtime import Budget, Ledger, Price
    from mpf_chains.runtime.tokens import Estimate

Mode = Literal["sampled", "aggregated"]

Model = Annotated[
    str, typer.Option("--model", "-m", metavar="SPEC", help=f"{FORMS}.", autocompletion=completion.models)
]
LocalModel = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="SPEC", help="transformers:FOLDER-OR-HUB-ID, or transformers:smollm2.",
        autocompletion=completion.local_models,
    ),
]  # fmt: skip
ModelArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--model-arg", metavar="NAME=VALUE", help="Argument of the model, such as temperature=0.7; repeatable. No keys."
    ),
]
Experts = Annotated[
    list[str] | None,
    typer.Option(
        "--expert", metavar="NAME=FOLDER[@ALPHA]", autocompletion=completion.experts,
        help="Correct a local model by this pair, as `mpf train experts` makes it, with this strength (default 1); "
        "repeatable.",
    ),
]  # fmt: skip
ExpertBase = Annotated[
    str | None,
    typer.Option(help="The small model that the adapters of --expert belong to, if their folders do not say it."),
]
Filter = Annotated[
    Literal["last", "base_first"],
    typer.Option("--filter", help="Whether top_p is applied after the experts, or to the model before them."),
]
Steering = Annotated[
    Path | None,
    typer.Option(exists=True, file_okay=False, help="Steer a local model by this, as `mpf train steering` makes it."),
]
Attribute = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="What the columns of a target table are classes of; default gender, race or sentiment."
    ),
]
Draw = Annotated[
    Literal["model", "target", "quota"] | None,
    typer.Option(help="How the class of each answer is drawn: by the model's own shares (default), or the targets'."),
]
Features = Annotated[
    list[str] | None,
    typer.Option("--feature", metavar="NAME", help="What is scored; repeatable.", autocompletion=completion.features),
]
Entities = Annotated[
    list[str] | None, typer.Option("--entity", metavar="NAME", help="Only this entity; repeatable. Default all.")
]
LedgerPath = Annotated[
    Path | None, typer.Option("--ledger", dir_okay=False, help="Keeps every answer, so that a run can be resumed.")
]
Concurrency = Annotated[int, typer.Option("--max-concurrency", min=1, help="Most calls in flight.")]
MaxCalls = Annotated[int | None, typer.Option("--max-calls", min=0, help="Most requests that this command sends.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=0, help="Most tokens, read and written together.")]
MaxCost = Annotated[float | None, typer.Option("--max-cost", min=0, help="Most money; needs the two prices.")]
PriceIn = Annotated[float | None, typer.Option("--price-in", min=0, help="Price of a million input tokens.")]
PriceOut = Annotated[float | None, typer.Option("--price-out", min=0, help="Price of a million output tokens.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Count calls, tokens and cost; make no call.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write the result as JSON.")]
StoreText = Annotated[bool, typer.Option("--store-text/--no-store-text", help="Keep the answers' texts in the ledger.")]


def experts(given: list[str] | None, base: str | None, filter_: str) -> dict[str, Any]:
    """What a local model is to be told about experts; nothing where none are given.

    Raises:
        BadParameter: If there are settings for experts and no experts.
        InvalidInput: If a pair cannot be used.
    """
    if given:
        return {"experts": expert_pairs(given, base), **({} if filter_ == "last" else {"filter": filter_})}
    if base or filter_ != "last":
        raise typer.BadParameter("--expert-base and --filter belong to --expert.")
    return {}


def steered(given: Path | None, draw: str | None) -> dict[str, Any]:
    """What a local model is to be told about steering; nothing where it is not steered.

    Raises:
        BadParameter: If there is a way to draw and nothing to steer by.
    """
    if given is not None:
        return {"steering": given, **({} if draw is None else {"draw": draw})}
    if draw is not None:
        raise typer.BadParameter("--draw belongs to --steering.")
    return {}


def lines(path: Path) -> list[str]:
    """The texts of a file, one on each line; blank lines are left out.

    Raises:
        InvalidInput: If it is not UTF-8, or has no text.
    """
    try:
        found = [line.strip() for line in path.read_text("utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8: {error}.") from error
    if not found:
        raise InvalidInput(f"{path} has no text.", hint="Write one on each line.")
    return found


def price(price_in: float | None, price_out: float | None) -> Price | None:
    """The price that was given.

    Raises:
        BadParameter: If only one of the two was.
    """
    from mpf_chains.runtime import Price

    if price_in is None and price_out is None:
        return None
    if price_in is None or price_out is None:
        raise typer.BadParameter("--price-in and --price-out are given together.")
    return Price(price_in, price_out)


def budget(calls: int | None, tokens: int | None, cost: float | None, price: Price | None) -> Budget | None:
    """The limits that were given, or None.

    Raises:
        BadParameter: If a cost is limited without a price.
    """
    from mpf_chains.runtime import Budget

    if cost is not None and price is None:
        raise typer.BadParameter("--max-cost needs --price-in and --price-out, per million tokens.")
    limited = any(limit is not None for limit in (calls, tokens, cost))
    return Budget(calls, tokens, cost, price) if limited else None


def benchmark(name: str, entities: list[str] | None, per_entity: int | None = None) -> Benchmark:
    """A benchmark by the name of one that ships, or by its file."""
    from mpf_chains.benchmarks import Benchmark

    if name in completion.BUILTIN_BENCHMARKS and not Path(name).exists():
        return Benchmark.builtin(name, entities=entities or None).select(per_entity=per_entity)
    if not Path(name).exists():
        shipped = ", ".join(completion.BUILTIN_BENCHMARKS)
        raise InvalidInput(f"There is no file {name}, and no benchmark of that name ships; those are {shipped}.")
    return Benchmark.read(name).select(entities or None, per_entity=per_entity)


def beside(out: Path) -> Path:
    """Where the ledger of a result is by default: NAME.sqlite for NAME.mpf.json or NAME.json."""
    return out.with_name(f"{out.name.removesuffix('.json').removesuffix('.mpf')}.sqlite")


def opened(path: Path | None, store_text: bool = True, *, dry_run: bool) -> Ledger:
    """The ledger of a run; in memory without a path, and for a dry run where there is no file yet."""
    from mpf_chains.runtime import Ledger

    return Ledger(None if path is None or (dry_run and not path.exists()) else path, store_text)


def writable(path: Path) -> Path:
    """Refuse, before anything is paid for, a result that could not be written in the end.

    Raises:
        InvalidInput: If its folder is missing, or the path is a folder or a link.
    """
    if not path.absolute().parent.is_dir():
        raise InvalidInput(f"The folder {path.absolute().parent} does not exist.", hint="Make it, or choose another.")
    if path.is_dir() or path.is_symlink():
        raise InvalidInput(f"{path} is a {'folder' if path.is_dir() else 'symbolic link'}; it must be a file.")
    return path


def report_file(path: Path) -> Path:
    """As `writable`, for a report, whose suffix decides its format.

    Raises:
        InvalidInput: If it could not be written.
    """
    if path.suffix.lower() not in {".html", ".htm", ".md", ".markdown"}:
        raise InvalidInput(f"The report {path} must end in .html or .md.")
    return writable(path)


def estimated(estimate: Estimate, price: Price | None) -> tuple[dict[str, Any], list[str]]:
    """What a plan takes, as data and as lines for people."""
    cost = None if price is None else estimate.cost(price)
    data = {
        "input_tokens": estimate.input_tokens,
        "input_tokens_counted": estimate.counted,
        "output_tokens": estimate.output_tokens,
        "cost": cost,
    }
    how = "counted by the model's tokenizer" if estimate.counted else "estimated from the texts"
    unlimited = "not limited; set --model-arg max_tokens=N"
    lines = [
        f"input tokens    {_at_most(estimate.input_tokens, unlimited)} ({how})",
        f"output tokens   {_at_most(estimate.output_tokens, unlimited)}",
    ]
    if price is None:
        lines.append("cost            give --price-in and --price-out, per million tokens")
    else:
        lines.append(
            f"cost            {'unknown, since the output is not limited' if cost is None else f'{cost:.4f} at most'}"
        )
    return data, lines


def _at_most(tokens: int | None, unlimited: str) -> str:
    return unlimited if tokens is None else f"{tokens:,} at most"
