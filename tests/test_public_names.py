"""The public names, and what is left of them where the extras are not installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mpf_chains

ROOT = Path(__file__).parents[1]
PUBLIC = {
    "Benchmark",
    "BenchmarkBuilder",
    "Calibration",
    "ChatMPF",
    "ChatTransformers",
    "Evaluation",
    "Fit",
    "ItemSet",
    "MPFCalibrator",
    "MPFError",
    "Objective",
    "Perspective",
    "PerspectiveFusion",
    "PerspectiveRouter",
    "PerspectiveSet",
    "Row",
    "Weights",
    "__version__",
    "evaluate",
    "fit_weights",
    "read_benchmark",
}


def test_the_public_names_are_these() -> None:
    assert set(mpf_chains.__all__) == PUBLIC
    assert len(mpf_chains.__all__) == len(PUBLIC)
    assert dir(mpf_chains) == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_name_resolves(name: str) -> None:
    value = getattr(mpf_chains, name)
    assert getattr(value, "__name__", name) == name
    assert getattr(mpf_chains, name) is value


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'mpf_chains' has no attribute 'MPFCalibrater'"):
        mpf_chains.MPFCalibrater  # noqa: B018


WITHOUT_EXTRAS = """
import sys


class Missing:
    names = set("torch transformers safetensors gguf matplotlib pandas opentelemetry langchain_openai typer".split())

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())

import mpf_chains
from mpf_chains import *
from mpf_chains.errors import MissingExtra
from mpf_chains.features import TransformersFeature, get_feature
from mpf_chains.reporting import plot_calibrations, validation_table
from mpf_chains.testing import BiasedChatModel

assert get_feature("sentiment")(["A wonderful place."])[0] > 0.7
assert get_feature("gender")(["She met him."])[0] == 0.5
benchmark = Benchmark.builtin("university", ["ETH Zurich"]).select(per_entity=20)
calibration = MPFCalibrator(model=BiasedChatModel(), validate=["normal"], progress=False).invoke(benchmark)
router = PerspectiveRouter(model=BiasedChatModel(), perspectives=calibration.perspectives, weights=calibration)
assert router.invoke("How is it?", {"configurable": {"mpf_entity": "ETH Zurich"}}).text
assert "normal" in validation_table({"run": calibration})

for use in (
    lambda: TransformersFeature("any")(["text"]),
    lambda: ChatTransformers(model="any").invoke("text"),
    lambda: plot_calibrations({"run": calibration}),
    lambda: evaluate(BiasedChatModel(), benchmark, progress=False).frame(),
):
    try:
        use()
    except MissingExtra as error:
        print(error)
    else:
        print("no error")
"""


def test_43_without_the_extras_the_package_works_and_names_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition("Install it with: ")[2] for line in lines] == [
        "pip install 'mpf-chains[local]'",
        "pip install 'mpf-chains[local]'",
        "pip install 'mpf-chains[plots]'",
        "pip install 'mpf-chains[frames]'",
    ], lines
    assert [line.partition(" is not installed")[0] for line in lines][2] == "'matplotlib'"
