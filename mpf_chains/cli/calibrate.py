"""`mpf calibrate`: from a benchmark and a model to a calibration file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from mpf_chains.cli import completion, options
from mpf_chains.cli.models import chat_model, parse_arguments
from mpf_chains.cli.session import Session, at_a_terminal, say, show
from mpf_chains.errors import InvalidInput

if TYPE_CHECKING:
    from mpf_chains.artifact import Calibration
    from mpf_chains.calibration import MPFCalibrator
    from mpf_chains.calibration.plan import Plan, System
    from mpf_chains.perspectives import PerspectiveSet
    from mpf_chains.runtime import Price


def calibrate(
    context: typer.Context,
    benchmark: Annotated[
        str,
        typer.Argument(
            help="A .jsonl or .csv file, or one that ships: university, university-hr.",
            autocompletion=completion.benchmarks,
        ),
    ],
    model: options.Model,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", dir_okay=False, help="Where the calibration goes (NAME.mpf.json).")
    ] = None,
    ledger: options.LedgerPath = None,
    model_arg: options.ModelArguments = None,
    expert: options.Experts = None,
    expert_base: options.ExpertBase = None,
    filter_: options.Filter = "last",
    steering: options.Steering = None,
    draw: options.Draw = None,
    perspectives: Annotated[
        str,
        typer.Option(
            help="A set that ships (mpf, gender, race, sentiment), or a JSON file: name to instruction, or a list of "
            "objects with name, instruction, arguments.",
            autocompletion=completion.perspectives,
        ),
    ] = "mpf",
    feature: options.Features = None,
    mode: Annotated[options.Mode, typer.Option(help="One perspective answers, or several are merged.")] = "sampled",
    kl: Annotated[float, typer.Option(min=0, help="Strength of the distance to the target distribution.")] = 0.2,
    calibration: Annotated[float, typer.Option(min=0, help="Strength of the mean error per question.")] = 0.8,
    alpha: Annotated[float, typer.Option(min=0, help="Pull of the weights to uniform.")] = 0.0,
    draws: Annotated[int, typer.Option(min=1, help="Answers per question and perspective.")] = 1,
    validate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SYSTEM",
            help="Judge this on held-out questions: normal, sampled or aggregated; repeatable. Default normal and the "
            "mode.",
            autocompletion=completion.systems,
        ),
    ] = None,
    skip_validation: Annotated[bool, typer.Option("--skip-validation", help="Judge nothing.")] = False,
    n: Annotated[int, typer.Option(min=1, help="Draws per merged answer.")] = 5,
    sampler: Annotated[Literal["iid", "quota"], typer.Option(help="How held-out perspectives are drawn.")] = "iid",
    seed: Annotated[int, typer.Option(help="Seeds draws and resampling.")] = 0,
    bind_seed: Annotated[bool, typer.Option("--bind-seed", help="Give the model a seed with each call.")] = False,
    entity: options.Entities = None,
    per_entity: Annotated[
        int | None, typer.Option(min=1, help="At most so many questions per entity and split; default all.")
    ] = None,
    max_concurrency: options.Concurrency = 8,
    max_calls: options.MaxCalls = None,
    max_tokens: options.MaxTokens = None,
    max_cost: options.MaxCost = None,
    price_in: options.PriceIn = None,
    price_out: options.PriceOut = None,
    max_missing: Annotated[float, typer.Option(min=0, max=0.999, help="Largest share without an answer.")] = 0.05,
    store_text: options.StoreText = True,
    report: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Also write a report: a .html or .md file.")
    ] = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Fit perspective weights to a benchmark, and judge them on its held-out questions.

    Every answer is kept in the ledger (by default beside --out, as NAME.sqlite) as it arrives. What is interrupted, or
    stopped by a budget, goes on with `mpf resume LEDGER`. Budgets count what this command itself sends.
    """
    session: Session = context.obj
    if out is None and not dry_run:
        raise typer.BadParameter("--out is needed: where the calibration goes, such as eth.mpf.json.")
    charged = options.price(price_in, price_out)
    limits = options.budget(max_calls, max_tokens, max_cost, charged)
    if out is not None:
        options.writable(out)
    if report is not None:
        options.report_file(report)
    kept = ledger or (None if out is None else options.beside(out))
    questions = options.benchmark(benchmark, entity, per_entity)
    members = perspective_set(perspectives)
    corrected = options.experts(expert, expert_base, filter_) | options.steered(steering, draw)
    chat = chat_model(model, parse_arguments(model_arg or []), corrected, planning=dry_run)

    from mpf_chains.calibration import MPFCalibrator
    from mpf_chains.core import Objective

    with options.opened(kept, store_text, dry_run=dry_run) as answers:
        calibrator = MPFCalibrator(
            model=chat,
            perspectives=members,
            feature=feature or "sentiment",
            mode=mode,
            objective=Objective(kl=kl, calibration=calibration, alpha=alpha),
            draws=draws,
            validate=() if skip_validation else cast("list[System] | None", validate or None),
            n=n,
            sampler=sampler,
            seed=seed,
            bind_seed=bind_seed,
            ledger=answers,
            max_concurrency=max_concurrency,
            budget=limits,
            max_missing=max_missing,
            progress=at_a_terminal(),
        )
        plan = calibrator.plan(questions)
        if dry_run or out is None or kept is None:
            _show_plan(plan, calibrator, charged, as_json=as_json)
            return
        session.begin(kept, _pins(calibrator, questions.digest))
        say(f"At most {plan.remaining} calls to make; {plan.done} are answered in {kept}.")
        fitted = calibrator.invoke(questions)
    fitted.save(out)
    session.to_resume = ""
    if report is not None:
        from mpf_chains.reporting import write_report

        write_report(report, calibrations=fitted, ledger=kept, benchmark=questions)
    _show_result(fitted, out, kept, report, as_json=as_json)


def perspective_set(spec: str) -> PerspectiveSet:
    """A set that ships, or one from a JSON file.

    Raises:
        InvalidInput: If it is neither.
    """
    from mpf_chains.perspectives import Perspective, PerspectiveSet

    path = Path(spec)
    if path.suffix != ".json":
        return PerspectiveSet.builtin(spec)
    try:
        found = json.loads(path.read_text("utf-8"))
        if isinstance(found, dict):
            found = [{"name": name, "instruction": instruction} for name, instruction in found.items()]
        return PerspectiveSet([Perspective(**entry) for entry in found])
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"{path} holds no perspectives: {error}.",
            hint='Write {"NAME": "INSTRUCTION", ...}, or [{"name": ..., "instruction": ..., "arguments": {...}}, ...].',
        ) from error


def _pins(calibrator: MPFCalibrator, benchmark: str) -> dict[str, Any]:
    return {
        "model": calibrator.executor.model_id,
        "benchmark": benchmark,
        "perspectives": calibrator.perspectives.digest,
        "features": {feature.name: feature.digest for feature in calibrator.features},
    }


def _show_plan(plan: Plan, calibrator: MPFCalibrator, price: Price | None, *, as_json: bool) -> None:
    data, lines = options.estimated(plan.estimate(calibrator.model), price)
    counts = {
        "calibration": plan.calibration, "done": plan.done, "validation": plan.validation, "calls": plan.remaining,
    }  # fmt: skip
    words = [
        f"calls           {plan.remaining:,} at most",
        f"  to calibrate  {plan.calibration:,}, of which {plan.done:,} are in the ledger",
        f"  to validate   {plan.validation:,} at most",
        *lines,
    ]
    show({"dry_run": True, **counts, **data}, "\n".join(words), as_json=as_json)


def _show_result(fitted: Calibration, out: Path, ledger: Path, report: Path | None, *, as_json: bool) -> None:
    from mpf_chains.reporting import validation_table

    written = {"calibration": str(out), "ledger": str(ledger), "report": None if report is None else str(report)}
    judged = {
        name: {
            entity: {
                "systems": {
                    system: {metric: value for metric, value in measured.items() if metric != "scores"}
                    for system, measured in record["systems"].items()
                },
                "floor": record.get("floor"),
                "target_mean": record.get("target_mean"),
            }
            for entity, record in by_entity.items()
        }
        for name, by_entity in fitted.validation.get("features", {}).items()
    }
    result = {
        **written,
        "version": fitted.version,
        "mode": fitted.mode,
        "features": list(fitted.features),
        "weights": fitted.weights,
        "pooled": fitted.pooled,
        "fits": {entity: {name: fit.get(name) for name in ("status", "gap")} for entity, fit in fitted.fits.items()},
        "validation": judged,
        "answers": fitted.provenance["answers"],
        "usage": fitted.provenance["usage"],
        "notes": fitted.diagnostics["notes"],
    }
    table = f"\n\n{validation_table({fitted.mode: fitted})}" if judged else ""
    places = "\n".join(f"{name:<12} {place}" for name, place in written.items() if place)
    show(result, f"{fitted.summary()}{table}\n\n{places}", as_json=as_json)
