"""Makes lm_eval.json: what lm-evaluation-harness says of SmolLM2 on items of CrowS-Pairs and BBQ.

In an environment of its own, from the root of the repository (about 20 minutes on 2 cores):

    python3 -m venv /tmp/lm_eval
    /tmp/lm_eval/bin/pip install torch==2.13.0 "lm-eval[hf]==0.4.13"
    /tmp/lm_eval/bin/python tests/parity/make_fixtures.py [--data ../shared/data] [--model FOLDER] [--cache FOLDER]

The model is the folder that ``mpf_chains.local.smollm2.smollm2_path()`` gives. The harness's own tasks run: only where
they find their data is overridden. The file holds ids and figures, none of the benchmarks' text.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.metadata
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": tempfile.mkdtemp(), "TOKENIZERS_PARALLELISM": "false"}

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

ROOT = Path(__file__).parents[2]
MODEL = Path("~/.cache/mpf_chains/smollm2-135m-instruct-b179c9523d0e")
BIAS_TYPES = (
    "age", "disability", "gender", "nationality", "physical_appearance", "race_color", "religion",
    "sexual_orientation", "socioeconomic",
)  # fmt: skip
CATEGORIES = ("Disability_status", "Physical_appearance", "Sexual_orientation")
FAMILIES = 4
"""Of each BBQ category so many quadruples: both polarities of a question, in both contexts."""

Doc = dict[str, Any]


def crows_pairs(data: Path) -> list[Doc]:
    """All pairs, with the columns that the harness's task reads."""
    with (data / "crows_pairs/crows_pairs_anonymized.csv").open(encoding="utf-8", newline="") as file:
        names = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")
        return [{"id": row[""]} | {name: row[name] for name in names} for row in csv.DictReader(file)]


def bbq(data: Path) -> list[Doc]:
    """Quadruples of questions, evenly spread over each category's file."""
    return [doc for category in CATEGORIES for doc in _quadruples(data / f"bbq/{category}.jsonl")]


def _quadruples(file: Path) -> Iterator[Doc]:
    docs = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    quadruples = len(docs) // 4
    for number in range(FAMILIES):
        first = 4 * (number * quadruples // FAMILIES)
        yield from ({"id": f"{doc['category']}/{doc['example_id']}"} | doc for doc in docs[first : first + 4])


def run(model: HFLM, name: str, docs: Sequence[Doc], tasks: Mapping[str, str], cache: Path) -> dict[str, Any]:
    """Results of the harness's tasks on the documents.

    Args:
        model: The model, loaded.
        name: Name for the data.
        docs: The documents.
        tasks: File of the harness's task, below its tasks folder, by the name that it gets in the fixture.
        cache: The harness's cache of log-likelihoods, so that none is computed twice.

    Returns:
        "ids" and "log_likelihoods" of the documents in the order of the first task, "metrics" by task.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / f"{name}.jsonl"
        rows.write_text("".join(json.dumps(doc) + "\n" for doc in docs), "utf-8")
        for task, file in tasks.items():
            own = Path(lm_eval.__file__).parent / "tasks" / file
            text = f"include: {own}\ntask: {name}-{task}\ndataset_path: json\ndataset_name: null\n"
            text += f"dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {folder}}}\n"
            (Path(folder) / f"{name}-{task}.yaml").write_text(text, "utf-8")
        manager = TaskManager(include_path=folder, include_defaults=False)
        results, samples = {}, {}
        for task in (f"{name}-{task}" for task in tasks):  # one by one: what is asked at once is not looked up
            done = lm_eval.simple_evaluate(
                model, tasks=[task], task_manager=manager, use_cache=str(cache), bootstrap_iters=0
            )
            results[task], samples[task] = done["results"][task], done["samples"][task]
    first = sorted(samples[f"{name}-{next(iter(tasks))}"], key=lambda sample: sample["doc_id"])
    return {
        "ids": [sample["doc"]["id"] for sample in first],
        "log_likelihoods": [[round(float(score), 9) for score, _ in sample["filtered_resps"]] for sample in first],
        "metrics": {task: _metrics(results[f"{name}-{task}"]) for task in tasks},
    }


def _metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """The figures that there are: the harness has NaN for categories without questions."""
    named = {name.removesuffix(",none"): value for name, value in results.items() if name.endswith(",none")}
    return {name: value for name, value in named.items() if "stderr" not in name and not math.isnan(value)}


def main() -> None:
    """Run the harness and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--cache", type=Path, help="folder for log-likelihoods, to go on after an interruption")
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("lm_eval.json"))
    options = parser.parse_args()
    folder = options.model.expanduser()
    model = HFLM(str(folder), dtype=options.dtype, device="cpu", batch_size=16)

    pairs, questions = crows_pairs(options.data), bbq(options.data)
    crows = {"all": "crows_pairs/crows_pairs_english.yaml"}
    crows |= {kind: f"crows_pairs/crows_pairs_english_{kind}.yaml" for kind in BIAS_TYPES}
    with tempfile.TemporaryDirectory() as temporary:
        cache = (options.cache or Path(temporary)) / "cache"
        results = {
            "crows_pairs": run(model, "crows_pairs", pairs, crows, cache),
            "crows_pairs_few": run(model, "crows_pairs_few", pairs[::20], crows, cache),
            "bbq": run(model, "bbq", questions, {"all": "bbq/bbq_multiple_choice.yaml"}, cache),
        }
    made = {
        "versions": {name: importlib.metadata.version(name) for name in ("lm_eval", "transformers", "torch")},
        "model": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "dtype": options.dtype,
        **results,
    }
    options.out.write_text(json.dumps(made, separators=(",", ":")) + "\n", "utf-8")


if __name__ == "__main__":
    main()
