"""Fixtures for the real client: an island for each generation of it."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import clients  # noqa: E402
import island as islands  # noqa: E402


@functools.cache
def _no_island() -> str:
    """Why there are no namespaces here, or nothing."""
    command = [sys.executable, str(HERE / "isolate.py"), "--", sys.executable, "-c", "pass"]
    for prefix in (sys.base_prefix, sys.prefix):
        command[2:2] = ["--keep", prefix]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return "" if result.returncode == 0 else result.stderr.strip() or f"exit {result.returncode}"


@pytest.fixture(params=clients.CLIENTS, ids=lambda client: client.version)
def client(request: pytest.FixtureRequest) -> clients.Client:
    """Each generation of the client in turn."""
    chosen: clients.Client = request.param
    if chosen.command() is None:
        pytest.skip(f"client {chosen.version} is not fetched: run `just clients`")
    if reason := _no_island():
        pytest.skip(reason)
    return chosen


@pytest.fixture
def island(client: clients.Client, tmp_path: Path) -> islands.Island:
    return islands.Island(tmp_path, client)
