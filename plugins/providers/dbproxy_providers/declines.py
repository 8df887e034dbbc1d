"""Why a request stays where it is: what another model could not do faithfully.

Pure. Source: seed-001 3.1 and 3.3 (what peers drop, turn into bogus functions or send as prose), API facts 5.3.
Invariant: each reason names the thing and who cannot do it; a size is none of them, the core compares that itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dbproxy.api.codecs import Capabilities, Request

_CLIENT_TOOL: Final = "client tool "
#: Features that belong to the account, or to the server's memory, of whoever the client talks to.
_KEPT_THERE: Final = {
    "thread": "it is part of a message thread, which one model alone continues",
    "files": "it names files that were uploaded to the client's own upstream",
    "container": "it continues in a container of the client's own upstream",
}


def lacking(request: Request, model: str, can: Capabilities) -> str:
    """What a model that is not Claude at its own API lacks for this request; "" if nothing."""
    for feature in sorted(request.features):
        if feature in _KEPT_THERE:
            return _KEPT_THERE[feature]
        if feature == "mcp servers":
            return "it names MCP servers for the API to connect to, which only Claude's own API does"
        if feature.startswith(_CLIENT_TOOL):
            return f"it uses the tool {feature.removeprefix(_CLIENT_TOOL)}, which only Claude knows how to call"
    for tool in request.server_tools:
        if not tool.type.startswith("web_search"):
            return f"it uses the server tool {tool.name}, which only Claude's own API runs"
        if not can.web_search:
            return f"it searches the web (server tool {tool.name}), and {model} cannot"
    if "images" in request.features and not can.images:
        return f"it holds pictures, and {model} takes none"
    if "documents" in request.features and not can.documents:
        return f"it holds documents (PDF), and {model} takes none"
    if request.tools and not can.tools:
        return f"it offers tools, and {model} calls none"
    return refused(request, model, can)


def lacking_as_client(request: Request, model: str, can: Capabilities) -> str:
    """What another model at the client's own upstream, with the client's own account, lacks for it."""
    return _KEPT_THERE["thread"] if "thread" in request.features else refused(request, model, can)


def lacking_at_home(request: Request, model: str, can: Capabilities) -> str:
    """What Claude's own API with another account lacks for it."""
    for feature in sorted(request.features):
        if feature in _KEPT_THERE:
            return _KEPT_THERE[feature]
    return refused(request, model, can)


def refused(request: Request, model: str, can: Capabilities) -> str:
    """A way of asking that this model refuses."""
    if request.choice is not None and request.choice.mode in ("any", "tool") and "forced_tool_choice" in can.refuses:
        return f"it demands the call of a tool, which {model} refuses"
    if "prefill" in request.features and "prefill" in can.refuses:
        return f"it begins the answer itself (prefill), which {model} refuses"
    return ""
