"""Prove that it worked: measure the model, debias it, measure again, and write the report.

The questions were never seen by the fit, both systems answer the same ones, and the differences are paired. With a
folder of published benchmarks, a local model is scored on those as well.

    python examples/measure.py                                  # seconds, offline: the model is a fake with a bias
    python examples/measure.py --published ../shared/data       # minutes: SmolLM2 on StereoSet, CrowS-Pairs, ...
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mpf_chains import Benchmark, ChatMPF, MPFCalibrator
from mpf_chains.benchmarks import read_benchmark
from mpf_chains.evaluation import evaluate
from mpf_chains.local import ChatTransformers
from mpf_chains.reporting import write_report
from mpf_chains.testing import ANSWERS, BiasedChatModel

ENTITIES = ["ETH Zurich", "EPFL"]
PLANTED = {**ANSWERS, "": ("It is excellent, and people love it.", "A great success.", "It has ten thousand members.")}
PUBLISHED = ("stereoset", "crows_pairs", "bbq", "winobias", "winogender", "redditbias", "wikitext2")


def prove(out: Path) -> None:
    """Before, after, and whether the difference could be chance."""
    model = BiasedChatModel(answers=PLANTED)
    benchmark = Benchmark.builtin("university", ENTITIES)
    before = evaluate(model, benchmark, label="before", progress=False)
    calibration = MPFCalibrator(model=model, progress=False).invoke(benchmark)
    chat = ChatMPF(model=model, weights=calibration)
    after = evaluate(chat, benchmark, label="after", progress=False)
    print(before.summary(), after.summary(), sep="\n")
    print("\nDistance from the ideal, after - before:")
    for key, found in before.compare(after).items():
        if found.on == "distance":
            print(f"  {key:<36} {found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]  p = {found.p:.3f}")
    report = write_report(
        out / "report.html", calibrations=calibration, evaluations=[before, after], benchmark=benchmark
    )
    print(f"\nReport: {report}")


def score(folder: Path, names: Sequence[str], limit: int | None, ledger: Path) -> None:
    """Likelihood benchmarks on a local model; interrupted runs go on where they were."""
    model = ChatTransformers(model="smollm2", dtype="float32")
    for name in names:
        evaluation = evaluate(model, read_benchmark(name, folder / name), limit=limit, ledger=ledger, label="SmolLM2")
        print(evaluation.summary(), flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, help="folder with a folder for each published benchmark")
    parser.add_argument("--benchmarks", nargs="+", choices=PUBLISHED, default=PUBLISHED, help="which of them")
    parser.add_argument("--limit", type=int, help="at most so many items of each")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the report and the ledger")
    arguments = parser.parse_args(words)
    arguments.out.mkdir(exist_ok=True)
    if arguments.published is None:
        prove(arguments.out)
    else:
        ledger = arguments.out / "published.sqlite"
        score(arguments.published, arguments.benchmarks, arguments.limit, ledger)


if __name__ == "__main__":
    main()
