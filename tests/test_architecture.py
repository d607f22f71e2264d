"""The rules of the house: what imports what, what an import loads, and what is never used."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mpf_chains"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "transformers", "matplotlib", "pandas", "opentelemetry"}
LAYERS = [
    {"cli", "agents"},
    {"reporting", "monitoring"},
    {"evaluation"},
    {"calibration", "builder"},
    {"fusion"},
    {"runtime"},
    {"features", "benchmarks", "artifact"},
    {"targets"},
    {"core"},
    {"perspectives"},
    {"errors"},
]
"""A part imports from those below it only; parts of one layer do not import each other."""
LEAVES = {"local": {"targets", "core", "perspectives", "errors"}, "testing": {"perspectives", "errors"}}
"""Parts beside the layers, with what they may import; only the command line imports them."""


def part_of(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(module: Path) -> Iterator[str]:
    """Dotted names of what a module imports, wherever in it; names taken from a package are added to it."""
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(module: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(module) if name.startswith("mpf_chains.")}


def allowed(part: str) -> set[str]:
    if part in LEAVES:
        return LEAVES[part] | {part}
    (height,) = (index for index, layer in enumerate(LAYERS) if part in layer)
    return {part}.union(*LAYERS[height + 1 :], {"local"} if part == "cli" else ())


@pytest.mark.parametrize("part", sorted({part_of(module) for module in MODULES} - {"__init__"}))
def test_imports_go_down_the_layers_only(part: str) -> None:
    for module in MODULES:
        if part_of(module) == part:
            assert parts_imported(module) <= allowed(part), module


def test_core_needs_numpy_and_scipy_only() -> None:
    for module in (PACKAGE / "core").rglob("*.py"):
        for name in imports(module):
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names | {"numpy", "scipy", "mpf_chains"}, (module, name)
            assert top != "mpf_chains" or name.split(".")[1] in {"core", "errors"}, (module, name)


def test_nothing_that_runs_stored_data_is_used() -> None:
    modules = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "diskcache"}
    names = {"langchain_core.load", "torch.load", "yaml.load", "numpy.load"}
    calls = {"eval", "exec", "__import__", "torch.load", "yaml.load", "yaml.unsafe_load", "np.load", "numpy.load"}
    for module in MODULES:
        for name in imports(module):
            assert name.split(".")[0] not in modules, (module, name)
            assert not any(f"{name}.".startswith(f"{bad}.") for bad in names), (module, name)
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in calls, (module, ast.unparse(node))
                for keyword in node.keywords:
                    if keyword.arg in {"trust_remote_code", "allow_pickle"}:
                        assert ast.unparse(keyword.value) == "False", (module, ast.unparse(node))


def test_modules_are_short() -> None:
    lengths = {module: len(module.read_text("utf-8").splitlines()) for module in MODULES}
    assert {module: length for module, length in lengths.items() if length > 500} == {}


def dotted(module: Path) -> str:
    return ".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


LIGHT = {
    "package": "import mpf_chains",
    "public names": "from mpf_chains import *; import mpf_chains.features as f; f.get_feature('sentiment')(['A'])",
    "all but local": "import " + ", ".join(dotted(module) for module in MODULES if part_of(module) != "local"),
}
REPORT = """
import json, sys, time
before = time.process_time()
{code}
took = time.process_time() - before
print(json.dumps([took, sorted({{name.split(".")[0] for name in sys.modules}})]))
"""


@cache
def loaded_by_langsmith() -> set[str]:
    code = REPORT.format(code="import langsmith, langsmith.client")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout)[1])


@pytest.mark.parametrize("what", LIGHT)
def test_importing_is_light(what: str, record_property: Callable[[str, object], None]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPORT.format(code=LIGHT[what])],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    seconds, loaded = json.loads(done.stdout)
    loaded = set(loaded) - loaded_by_langsmith()  # it takes opentelemetry where that is installed
    record_property("seconds of CPU time", seconds)
    assert not HEAVY & loaded
    assert seconds < (1 if what == "package" else 3)
