"""The suite's own promise: a test that reaches for the network fails."""

from __future__ import annotations

import os
import socket

import pytest


def test_only_loopback_can_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()[:2]):
        pass
    with pytest.raises((RuntimeError, UserWarning), match=r"192\.0\.2\.1"):  # TEST-NET-1: nobody's address
        socket.create_connection(("192.0.2.1", 443), timeout=0.01)


def test_no_hub_no_tracing_no_keys() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"
    assert os.environ["LANGSMITH_TRACING"] == "false"
    assert not [name for name in os.environ if name.endswith("_API_KEY")]
