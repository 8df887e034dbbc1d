"""The double buffer's world as a fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from buffertalk import World, open_world

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> Any:
    """``async with world(**settings) as w``: proxy, plugin, fake API, agents."""

    def make(**how: Any) -> AbstractAsyncContextManager[World]:
        return open_world(tmp_path, **how)

    return make


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries of checkpoints follow at once."""
    monkeypatch.setattr("dbproxy_double_buffer.guards.RETRY_PAUSE", 0.01)
