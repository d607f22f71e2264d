"""What users install: the wheel and the source archive, built as a release would be."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mpf_chains

ROOT = Path(__file__).parents[2]

USE_WITHOUT_EXTRAS = """
import sys
sys.modules |= dict.fromkeys(["torch", "transformers", "matplotlib", "langchain_openai", "gguf"])  # as if not installed
import mpf_chains
from mpf_chains import Benchmark
benchmark = Benchmark.builtin("university")
assert benchmark.entities and benchmark.rows
print(mpf_chains.__file__)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(built.glob("*.whl")))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return message_from_bytes(wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA"))))


def test_wheel_has_the_package_with_its_data_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    shipped = {path for path in (ROOT / "mpf_chains").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    info = f"mpf_chains-{mpf_chains.__version__}.dist-info"
    assert names >= {str(path.relative_to(ROOT)) for path in shipped}
    assert "mpf_chains/py.typed" in names
    assert any(name.startswith("mpf_chains/benchmarks/data/") and name.endswith(".jsonl") for name in names)
    assert {name.split("/")[0] for name in names} == {"mpf_chains", info}


def test_wheel_works_without_any_extra(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", USE_WITHOUT_EXTRAS],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def test_source_archive_is_enough_to_run_the_tests(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"pyproject.toml", "constraints.txt", "Makefile", ".ci/run", "README.md", "LICENSE", "PKG-INFO"}
    assert names >= {"mpf_chains/py.typed", "tests/conftest.py", "tests/packaging/test_distribution.py"}
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".sqlite"))]


def test_constraints_pin_a_version_that_each_dependency_allows(metadata: Message) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    pinned = {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }
    assert pinned["torch"] == "2.13.0"  # a local part such as +cpu would tie it to one machine
    for text in metadata.get_all("Requires-Dist", []):
        wanted = Requirement(text)
        if wanted.name != "mpf-chains":
            assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), text
