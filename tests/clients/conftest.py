"""A proxy and a fake API in a thread of their own, for clients that block: SDKs, curl, git."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio
from rig import open_rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rig import Rig


@dataclass
class Served:
    """What a blocking client needs to know. ``env`` is that of a launched child."""

    rig: Rig
    bundle: Path
    token: trio.lowlevel.TrioToken
    env: dict[str, str] = field(default_factory=dict)

    @property
    def port(self) -> int:
        """The proxy's."""
        return self.rig.running.port

    @property
    def requests(self) -> list[Any]:
        """What the fake API got so far."""
        return list(self.rig.origin.requests)

    def script(self, given: Any) -> None:
        """Another script for the fake API."""

        def change() -> None:
            self.rig.origin.script = given

        trio.from_thread.run_sync(change, trio_token=self.token)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """The proxy, with the environment that `dbproxy run` gives a child."""
    ready: list[Any] = []
    started = threading.Event()

    async def main() -> None:
        async with open_rig(tmp_path) as rig:
            bundle = tmp_path / "bundle.pem"
            bundle.write_bytes(rig.proxy.authority.bundle_pem)
            stop = trio.Event()
            token = trio.lowlevel.current_trio_token()
            ready.append((Served(rig, bundle, token), stop))
            started.set()
            await stop.wait()

    failed: list[BaseException] = []

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            failed.append(error)
            started.set()

    thread = threading.Thread(target=run, name="proxy")
    thread.start()
    assert started.wait(20)
    if failed:
        raise failed[0]
    served, stop = ready[0]
    proxy = f"http://127.0.0.1:{served.port}"
    served.env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "HTTPS_PROXY": proxy,
        "https_proxy": proxy,
        "NO_PROXY": "localhost,127.0.0.1,::1",
        "SSL_CERT_FILE": str(served.bundle),
        "CURL_CA_BUNDLE": str(served.bundle),
        "REQUESTS_CA_BUNDLE": str(served.bundle),
    }
    yield served
    trio.from_thread.run_sync(stop.set, trio_token=served.token)
    thread.join(20)
    assert not thread.is_alive()
    if failed:
        raise failed[0]
