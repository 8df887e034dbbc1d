"""Conversations of another provider's model: those of the fake Messages API that fit, and one that drives an agent.

Decided from the request alone, as there. Source: client facts 3.2 and 3.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dbproxy.testing.origin.events import thinking, tool_use
from dbproxy.testing.origin.scenarios import SCENARIOS as ORIGINS
from dbproxy.testing.origin.scenarios import SUMMARY, Scenario
from dbproxy.testing.origin.script import Answer, say
from dbproxy.testing.providers.asked import Asked
from dbproxy.testing.providers.spelling import joined_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbproxy.model.codecs.request import Tool
    from dbproxy.testing.origin.received import Received

MARKER: Final = "PROVIDER-REPORT"
#: Tools of the client that are called rather than others, and with what.
_LIKED: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("Read", {"file_path": "{file}"}),
    ("Bash", {"command": "echo from another provider", "description": "Say something"}),
    ("Grep", {"pattern": "a", "path": "{folder}"}),
    ("Glob", {"pattern": "*"}),
)
_SHOWN: Final = 300  # characters of each result in the report


def _agent(request: Received, state: dict[str, Any], options: Mapping[str, Any]) -> Answer:
    """Calls some of the offered tools, and reports what came back.

    Options: ``marker`` begins the report; ``calls`` tools in each of ``rounds`` rounds (2 and 1); ``file`` and
    ``folder`` are what Read and Grep look at; ``think`` is thought first; ``tool`` names the only one to call.
    """
    assert isinstance(request, Asked)
    if request.role == "compaction":
        return say(SUMMARY)
    thought = [thinking(str(options["think"]))] if options.get("think") else []
    offered = [tool for tool in request.offered if not options.get("tool") or tool.name == options["tool"]]
    if not offered or request.rounds >= int(options.get("rounds", 1)):
        return say(*thought, _report(request, str(options.get("marker", MARKER))))
    chosen = sorted(offered, key=lambda tool: _rank(tool.name))
    calls = [
        tool_use(tool.name, _arguments(tool, number, options))
        for number in range(int(options.get("calls", 2)))
        for tool in [chosen[number % min(2, len(chosen))]]
    ]
    return say(*thought, "I will look into it.", *calls)


def _rank(name: str) -> int:
    return next((number for number, (liked, _) in enumerate(_LIKED) if liked == name), len(_LIKED))


def _arguments(tool: Tool, number: int, options: Mapping[str, Any]) -> dict[str, Any]:
    places = {"{file}": str(options.get("file", "README.md")), "{folder}": str(options.get("folder", "."))}
    for name, arguments in _LIKED:
        if name == tool.name:
            return {key: places.get(value, value) for key, value in arguments.items()}
    properties = tool.schema.get("properties", {})
    return {key: _sample(properties.get(key, {}), number) for key in tool.schema.get("required", [])}


def _sample(schema: dict[str, Any], number: int) -> Any:
    """Some value that suits a schema."""
    if schema.get("enum"):
        return schema["enum"][0]
    samples = {"integer": number, "number": number, "boolean": False, "array": [], "object": {}, "null": None}
    return samples.get(schema.get("type", ""), f"sample {number}")


def _report(request: Asked, marker: str) -> str:
    lines = [f"{marker}: {len(request.results)} results."]
    for result in request.results:
        text = " ".join(joined_text(result.parts).split())
        lines.append(f"- {'failed: ' if result.is_error else ''}{text[:_SHOWN]}")
    return "\n".join(lines)


#: By name.
SCENARIOS: Final = {
    **{name: ORIGINS[name] for name in ("plain", "tools", "thinking")},
    "agent": Scenario("agent", "client facts 3.2, 3.4", "calls offered tools, then reports with a marker", _agent),
}
