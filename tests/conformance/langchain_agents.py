"""Do langchain's own agent tests pass with every model wrapped in ChatMPF? ``make conformance``.

Takes ``tests/unit_tests/agents`` from the source distribution of the langchain installed beside this interpreter
(wheels have no tests), runs it as it is and again with the plugin ``wrap_models``, and compares. Exits with 1 if a
test that passes with the bare models does not pass with the wrapped ones, or if no model run went through ChatMPF.

The first run needs a package index: it fetches the tests and installs what they import into an environment of its own,
on top of the packages of this interpreter. Later runs are offline.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpf_chains" / "conformance"
SUITE = "tests/unit_tests/agents"


@dataclass
class Outcome:
    """Tests by what became of them, with the first line of the reason; and what the plugin saw in all of them."""

    passed: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)

    def add(self, case: ET.Element) -> None:
        test = f"{case.get('classname')}::{case.get('name')}"
        marks = {part.tag: (part.get("message") or "").partition("\n")[0][:150] for part in case}
        bad = marks.get("failure", marks.get("error"))
        if bad is not None:
            self.failed[test] = bad
        elif "skipped" in marks:
            self.skipped[test] = marks["skipped"]
        else:
            self.passed[test] = ""
        seen = {part.get("name", ""): int(part.get("value", 0)) for part in case.iter("property")}
        self.seen.update(seen)
        self.seen["tests"] += "ran ChatMPF" in seen


def environment(cache: Path) -> Path:
    """The Python of an environment with what the tests import, on top of the packages of this interpreter."""
    requirements = HERE / "requirements.txt"
    below = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    key = hashlib.sha256(repr((sys.version, below, requirements.read_bytes())).encode()).hexdigest()[:12]
    folder = cache / f"env-{key}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        sys.stderr.write(f"Installing what the tests import into {folder}\n")
        venv.create(folder, with_pip=True, clear=True)
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        own = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
        lines = [f"import site; site.addsitedir({path!r})\n" for path in below]  # reads the .pth files there too
        Path(own, "below.pth").write_text("".join(lines), "utf-8")
        pip(python, "install", "-r", str(requirements))
        (folder / "complete").touch()
    return python


def pip(python: Path, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", "--disable-pip-version-check", *arguments, "-q"], check=True)


def tests_of(version: str, cache: Path, python: Path) -> Path:
    """The folder with the tests of that version of langchain, without its code: they are for the installed one."""
    folder = cache / f"langchain-{version}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            pip(python, "download", f"langchain=={version}", "--no-deps", "--no-binary", ":all:", "-d", scratch)
            (archive,) = Path(scratch).glob("*.tar.gz")
            with tarfile.open(archive) as packed:
                wanted = (f"{folder.name}/tests/", f"{folder.name}/pyproject.toml")
                packed.extractall(scratch, [part for part in packed if part.name.startswith(wanted)], filter="data")
            Path(scratch, folder.name).replace(folder)
    return folder


def run_suite(python: Path, folder: Path, label: str, options: list[str]) -> Outcome:
    report, log = folder / f"{label}.xml", folder / f"{label}.log"
    report.unlink(missing_ok=True)
    command = [
        str(python), "-m", "pytest", SUITE, "-q", "-p", "no:cacheprovider", "--benchmark-disable", "--disable-socket",
        "--allow-unix-socket", f"--junitxml={report}", *options,
    ]  # fmt: skip
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    env = {**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": "", "LANGSMITH_TRACING": "false"}
    with log.open("wb") as output:
        ended = subprocess.run(command, cwd=folder, env=env, stdout=output, stderr=output, timeout=1200, check=False)
    if ended.returncode not in {0, 1} or not report.exists():
        sys.exit(f"{log.read_text('utf-8')[-3000:]}\npytest exited with {ended.returncode}; its output is in {log}")
    outcome = Outcome()
    for case in ET.parse(report).iter("testcase"):
        outcome.add(case)
    counts = len(outcome.passed), len(outcome.failed), len(outcome.skipped)
    print(f"{label:8} %5d passed %5d failed %5d skipped" % counts)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="EXPRESSION", help="only the tests that pytest's -k selects")
    parser.add_argument("--only-wrapped", action="store_true", help="no run with bare models: any failure counts")
    parser.add_argument("--cache-dir", type=Path, default=CACHE, help="tests and environment go here (%(default)s)")
    asked = parser.parse_args()
    cache = asked.cache_dir.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    version = importlib.metadata.version("langchain")
    python = environment(cache)
    folder = tests_of(version, cache, python)
    options = ["-k", asked.k] if asked.k else []

    print(f"{SUITE} of langchain {version}, models bare and wrapped in ChatMPF:")
    bare = Outcome() if asked.only_wrapped else run_suite(python, folder, "bare", options)
    wrapped = run_suite(python, folder, "wrapped", ["-p", "wrap_models", *options])
    runs, tests = wrapped.seen.pop("ran ChatMPF", 0), wrapped.seen.pop("tests", 0)
    print(f"{runs} model runs through ChatMPF, in {tests} tests; past it:", dict(wrapped.seen))
    broken = (bare.passed.keys() - wrapped.passed.keys()) | (wrapped.failed.keys() - bare.failed.keys())
    both = bare.failed.keys() & wrapped.failed.keys()
    for title, names in {"Fail in both": both, "Fail only when wrapped": broken}.items():
        print(f"{title}: {len(names)}")
        for test in sorted(names):
            print(f"  {test}: {wrapped.failed.get(test, 'skipped or not run')}")
    return int(bool(broken) or not runs)


if __name__ == "__main__":
    sys.exit(main())
