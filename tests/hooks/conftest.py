"""Plugins and exchanges for the tests of the hook layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dbproxy.exchange import Exchange, Fields, RequestHead, ResponseHead, Via
from dbproxy.hooks.dispatch import Dispatcher
from dbproxy.hooks.manager import PluginManager
from dbproxy.hooks.specs import App, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Failures(list[tuple[str, str, str, bool]]):
    """What the dispatcher told about failures."""

    def __call__(self, plugin: str, hook: str, error: str, quarantined: bool) -> None:
        self.append((plugin, hook, error, quarantined))


@pytest.fixture
def manager() -> PluginManager:
    return PluginManager(strict=True)


@pytest.fixture
def failures() -> Failures:
    return Failures()


@pytest.fixture
def dispatch(manager: PluginManager, failures: Failures) -> Dispatcher:
    return Dispatcher(manager, on_failure=failures)


@pytest.fixture
def plug(manager: PluginManager) -> Callable[..., object]:
    """Register functions as a plugin: ``plug("name", health=function)``."""

    def register(name: str, **functions: Callable[..., Any]) -> object:
        plugin = type(name, (), {hook: staticmethod(hookimpl(function)) for hook, function in functions.items()})()
        manager.register(plugin, name)
        return plugin

    return register


@pytest.fixture
def app(tmp_path: Path) -> App:
    def emit(event: str, *, level: str = "info", **fields: object) -> None: ...

    return App(version="0", data_dir=tmp_path, emit=emit)


@pytest.fixture
def exchange() -> Exchange:
    return Exchange(
        id="x1",
        connection=1,
        via=Via.TUNNEL,
        scheme="https",
        host="api.anthropic.com",
        port=443,
        path="/v1/messages",
        request=RequestHead(b"POST", b"/v1/messages", b"HTTP/1.1", Fields.of([(b"Host", b"api.anthropic.com")])),
    )


@pytest.fixture
def response() -> Callable[..., ResponseHead]:
    def make(*fields: tuple[bytes, bytes], status: int = 200) -> ResponseHead:
        return ResponseHead(status, b"OK", b"HTTP/1.1", Fields.of(fields))

    return make


@pytest.fixture
def stream_head(response: Callable[..., ResponseHead]) -> ResponseHead:
    return response((b"Content-Type", b"text/event-stream; charset=utf-8"))
