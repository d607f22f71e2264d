"""`mpf` in this process and in its own, against a real server on loopback."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mpf_chains.cli.app import app
from mpf_chains.testing import BiasedChatModel
from tests.loopback import serving

ROOT = Path(__file__).parents[2]


@dataclass
class Server:
    """A server whose answers depend on the prompt only."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    before: Callable[[int], None] = lambda count: None
    status: int = 200
    says: Callable[[list[tuple[str, str]]], str] = lambda messages: BiasedChatModel().invoke(messages).text

    @property
    def spec(self) -> str:
        return f"{self.url}#tiny"

    def answer(self, asked: dict[str, Any], headers: Any) -> tuple[int, dict[str, Any]]:
        self.asked.append(asked)
        self.keys.add(headers["Authorization"])
        self.before(len(self.asked))
        if self.status != 200:
            return self.status, {"message": f"Incorrect API key provided: {headers['Authorization']}"}
        messages = [(message["role"], message["content"]) for message in asked["messages"]]
        return 200, {"content": self.says(messages)}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    with serving(made.answer) as made.url:
        yield made


@pytest.fixture
def mpf(tmp_path, monkeypatch):
    """Runs `mpf` with these words in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object, **options: Any) -> Any:
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="mpf", **options)

    return run


def started(*words: object, folder: Path, code: str = "", **environment: str) -> subprocess.Popen[str]:
    """`mpf`, or other code, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *(["-c", code] if code else ["-m", "mpf_chains.cli"]), *map(str, words)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
