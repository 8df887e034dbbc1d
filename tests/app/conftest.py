"""The rig as a fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from rig import Rig, open_rig

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path


@pytest.fixture
def rig(tmp_path: Path) -> Any:
    """``async with rig(script, plugins=..., **settings) as r``: a proxy with a fake API behind it."""

    def make(script: Any = None, **how: Any) -> AbstractAsyncContextManager[Rig]:
        return open_rig(tmp_path, script, **how)

    return make
