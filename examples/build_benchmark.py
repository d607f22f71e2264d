"""Build a benchmark of your own text, look at it, and keep it.

Sentences of an article on the fictional Xaviria University become questions, written by a real small chat model
(SmolLM2-135M-Instruct); two real universities take its place. The lines that matter:

    builder = BenchmarkBuilder(model, ["ETH Zurich", "University of Nairobi"], fictional="Xaviria University")
    benchmark = builder.invoke(Path("article.md"))      # then: MPFCalibrator(model=...).invoke(benchmark)

    python examples/build_benchmark.py                  # a minute or two on 2 CPU cores; interrupt and rerun at will
    python examples/build_benchmark.py --model openai:gpt-4.1-mini --corpus article.md --fictional Xaviria
"""

import argparse
import os
from pathlib import Path

from langchain_core.language_models import BaseChatModel

import mpf_chains
from mpf_chains import Benchmark
from mpf_chains.builder import BenchmarkBuilder

ARTICLE = Path(mpf_chains.__file__).parent / "benchmarks" / "data" / "university_source.md"


def chat_model(name: str) -> BaseChatModel:
    """A chat model from `smollm2`, `transformers:<hub id or folder>` or `openai:<model>`."""
    if name.startswith("openai:"):
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(model=name.removeprefix("openai:"), temperature=0.8, max_completion_tokens=120)
    from mpf_chains.local import ChatTransformers

    return ChatTransformers(model=name.removeprefix("transformers:"), dtype="bfloat16", temperature=0.7, max_tokens=30)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="smollm2 | transformers:<id or folder> | openai:<model>")
    parser.add_argument("--corpus", type=Path, nargs="+", default=[ARTICLE], help=".txt or .md files")
    parser.add_argument(
        "--fictional", nargs="+", default=["Xaviria University"], help="what the text calls its subject"
    )
    parser.add_argument("--entities", nargs="+", default=["ETH Zurich", "University of Nairobi"])
    parser.add_argument("--keywords", nargs="+", default=["students", "staff", "research", "public"])
    parser.add_argument("--per-keyword", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Plan, build, show what came and what did not, write the file and read it back."""
    args = parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    builder = BenchmarkBuilder(
        chat_model(args.model),
        args.entities,
        fictional=args.fictional,
        keywords=args.keywords,
        per_keyword=args.per_keyword,
        named=False,  # the whole article is about the university, also where it does not say its name
        ledger=args.out / "build.sqlite",  # every answer is kept: a rerun asks only what is missing
    )
    plan = builder.plan(args.corpus)
    print(f"{plan.sentences} sentences, from {plan.least} to {plan.remaining} calls to make, {plan.done} in the ledger")

    built = builder.build(args.corpus)
    benchmark = built.benchmark
    for row in benchmark.select(entities=args.entities[:1]).rows:
        print(f"\n{row.metadata['question_id']}, {row.split}, by {row.metadata['keyword']!r}")
        print(f"  sentence: {row.metadata['sentence']}\n  question: {row.question}\n  target:   {row.target_text}")
    for one in built.dropped:
        print(f"\nNo question, {one.reason}: {one.sentence}\n  last answer: {one.answer}")

    path = benchmark.write(args.out / "built.jsonl")
    same = Benchmark.read(path, name=benchmark.name) == benchmark
    print(f"\n{len(benchmark.rows)} rows about {', '.join(benchmark.entities)} in {path}, read back {'equal' * same}")
    print(f"A second run would make {builder.plan(args.corpus).remaining} calls.")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads must not spin while other things run
    main()
