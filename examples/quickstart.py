"""Calibrate and debias a real chat model, end to end, on this machine.

SmolLM2-135M-Instruct is asked about universities. It speaks of them in a tone of its own; we want the tone of a sober
encyclopaedia (the shipped benchmark). Perspective weights are fitted on one set of questions and judged on others.

    python examples/quickstart.py                      # about ten minutes on 2 CPU cores; interrupt and rerun at will
    python examples/quickstart.py --full               # all questions, four universities
    python examples/quickstart.py --model openai:gpt-4.1-mini
"""

import argparse
import os
from pathlib import Path

from langchain_core.language_models import BaseChatModel

from mpf_chains import Benchmark, MPFCalibrator, Objective, PerspectiveRouter, PerspectiveSet
from mpf_chains.core import Mode
from mpf_chains.reporting import plot_calibrations, validation_table
from mpf_chains.runtime import Ledger

# The paper's λ (0.2, 0.8) with its own (α, β) beside ours (0, 0). Its β > 0 is not convex and needs its solver.
SETTINGS: dict[str, dict[Mode, Objective]] = {
    "ours": {"sampled": Objective(), "aggregated": Objective()},
    "paper": {"sampled": Objective(alpha=0, beta=1), "aggregated": Objective(alpha=0.5, beta=0.5)},
}


def chat_model(name: str) -> BaseChatModel:
    """A chat model from `smollm2`, `transformers:<hub id or folder>` or `openai:<model>`."""
    if name.startswith("openai:"):
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(model=name.removeprefix("openai:"), temperature=0.8, max_completion_tokens=120)
    from mpf_chains.local import ChatTransformers

    return ChatTransformers(
        model=name.removeprefix("transformers:"), dtype="bfloat16", temperature=0.8, top_k=50, max_tokens=60
    )


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="smollm2 | transformers:<id or folder> | openai:<model>")
    parser.add_argument("--baseline", choices=["university", "university-hr"], default="university")
    parser.add_argument("--settings", choices=[*SETTINGS, "both"], default="ours")
    parser.add_argument("--entities", nargs="+", default=["ETH Zurich", "University of Nairobi"])
    parser.add_argument("--questions", type=int, default=40, help="per university and split, spread over the topics")
    parser.add_argument("--full", action="store_true", help="100 + 40 questions about four universities")
    parser.add_argument("--n", type=int, default=3, help="draws per fused answer")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("out"))
    return parser.parse_args()


def main() -> None:
    """Calibrate for both modes, show what happened, and answer one question with the fitted router."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    benchmark = (
        Benchmark.builtin(args.baseline)
        if args.full
        else Benchmark.builtin(args.baseline, entities=args.entities).select(per_entity=args.questions)
    )
    model = chat_model(args.model)
    name = args.model.replace(":", "-").replace("/", "-")
    stem = f"{name}-{args.baseline}"
    ledger = Ledger(args.out / f"{name}.sqlite")  # every answer is kept: a rerun asks only what is missing
    chosen = list(SETTINGS) if args.settings == "both" else [args.settings]
    calibrations = {}
    for setting in chosen:
        for mode, objective in SETTINGS[setting].items():
            calibrator = MPFCalibrator(
                model=model,
                perspectives=PerspectiveSet.builtin("mpf"),
                feature="sentiment",
                mode=mode,
                objective=objective,
                solver="slsqp" if objective.beta else "convex",
                validate=("normal", mode),
                n=args.n,
                sampler="quota",
                bind_seed=True,
                ledger=ledger,
                max_concurrency=args.concurrency,
            )
            plan = calibrator.plan(benchmark)
            label = mode if len(chosen) == 1 else f"{setting}, {mode}"
            print(f"\n{label}: at most {plan.remaining} calls to make, {plan.done} in the ledger already")
            calibrations[label] = calibration = calibrator.invoke(benchmark)
            calibration.save(args.out / f"{stem}-{setting}-{mode}.mpf.json")
            print(calibration.summary())

    print(f"\nHeld-out questions, {', '.join(benchmark.entities)} together:\n{validation_table(calibrations)}")
    figure = args.out / f"{stem}.png"
    plot_calibrations(calibrations, figure, title=f"{args.model} on {benchmark.name}")
    print(f"\nFigure: {figure}    Calibrations: {args.out / stem}-*.mpf.json")

    router = PerspectiveRouter(model=model, weights=next(iter(calibrations.values())), entity=benchmark.entities[0])
    answer = router.invoke(f"What is it like to study at {benchmark.entities[0]}?")
    print(f"\nThe router, as {answer.response_metadata['mpf']['perspective']}: {answer.text}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads must not spin while other things run
    main()
