"""The surface for plugins, pinned: a change here is a change of the interface and of API_VERSION."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dbproxy import api
from dbproxy.api import codecs, dialects, models

if TYPE_CHECKING:
    from types import ModuleType

SURFACE = """
API_VERSION Accumulator Agent AgentFile App CallAnswer ConfigError ConnectionFacts DbproxyError Declined Edge Emit
Evidence Exchange ExchangeClosed ExchangeLinked ExchangeOpened Fields HeldBody Link LinkHashes LocalResponse Outcome
PeerError PluginError Point ProtocolViolation Provider ProviderCall ProviderLimits RateLimit Record Redactor Refused
RequestBody RequestDraft RequestHead RequestKind ResponseHead Route RouteDecision RouteFacts Sample SendBytes Service
Services SseEvent SseSplitter Storage StreamFilter StreamPiece StreamTap Target Timings TunnelDecision UpstreamError
Usage Via append_line decode_body encode_event hookimpl json_array json_members rate_limits read_document stamp_of
write_document
"""


def test_surface_is_pinned() -> None:
    assert api.__all__ == SURFACE.split()
    public = {name for name, value in vars(api).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public - {"annotations"} == set(api.__all__)
    assert api.API_VERSION == (1, 2)


@pytest.mark.parametrize("module", [codecs, dialects, models])
def test_the_surface_for_codecs_is_what_it_says(module: ModuleType) -> None:
    public = {name for name in vars(module) if not name.startswith("_") and name != "annotations"}
    assert public == set(module.__all__)
    assert all(inspect.getdoc(getattr(module, name)) for name in module.__all__)


def test_a_start_does_not_load_what_translates() -> None:
    plugins = "dbproxy_double_buffer, dbproxy_providers, dbproxy_subagent_routing, dbproxy_token_meter"
    heavy = "{'dbproxy.model.codecs.chat', 'dbproxy.model.codecs.request', 'dbproxy.model.codecs.writer'}"
    code = f"import sys, dbproxy.app.run, {plugins}; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "set()"


def test_everything_is_documented() -> None:
    for name in api.__all__:
        value = getattr(api, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name


def test_import_brings_no_event_loop() -> None:
    """The launcher loads plugins for one hook, before there is a loop: that must stay cheap."""
    code = "import sys, dbproxy.api, dbproxy.hooks.calls; print({'trio', 'cryptography', 'h2'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "set()"


def test_first_party_plugins_use_nothing_else() -> None:
    root = Path(__file__).parents[2]
    sources = list(root.glob("plugins/*/dbproxy_*/**/*.py"))
    assert sources
    for file in sources:
        for line in file.read_text().splitlines():
            if line.strip().startswith(("import dbproxy", "from dbproxy")):
                own = file.relative_to(root / "plugins").parts[1]
                public = (
                    "from dbproxy.api import",
                    "from dbproxy.api.codecs import",
                    "from dbproxy.api.models import",
                    "from dbproxy.api.dialects import",
                )
                assert line.strip().startswith((*public, f"from {own}", f"import {own}")), (
                    file,
                    line,
                )
