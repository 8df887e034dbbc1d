"""Conversations that drive a client: what the model would say, turn by turn, decided from the request alone.

They use the tools that the client itself offers, so any client version can be driven. Each names its source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbproxy.testing.origin.events import thinking, tool_use
from dbproxy.testing.origin.script import Answer, fail, say
from dbproxy.testing.origin.summaries import summary_answer, summary_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbproxy.testing.origin.received import Received

State = dict[str, Any]
Options = "Mapping[str, Any]"

SUMMARY = (
    "<analysis>\nThe user asked for a listing.\n</analysis>\n\n"
    "<summary>\n1. Primary Request and Intent:\n   ORIGIN-SUMMARY: a listing was asked for and done.\n</summary>"
)
SMALL: Mapping[str, int] = {"input_tokens": 3000}
BIG = 990_000  # above the wall of a 1M model (client facts 4.2)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A named conversation; ``answer`` always answers a Messages request."""

    name: str
    source: str
    says: str
    answer: Callable[[Received, State, Mapping[str, Any]], Answer]
    cache: float = 0.0  # bytes per token of a prompt cache that it needs, unless the script has one


def _plain(request: Received, state: State, options: Mapping[str, Any]) -> Answer:
    if request.role == "compaction":
        return say(SUMMARY)
    if "output_config" in request.json and not request.tools:
        schema = str(request.json["output_config"])
        if "title" in schema:
            return say('{"title": "A short talk"}')
    return say(str(options.get("text", "OK from the fake API.")))


def _bash(request: Received, number: int) -> Answer:
    call = tool_use("Bash", {"command": f"echo step {number}", "description": "One step"})
    return say(f"Step {number}.", call)


def _tools(request: Received, state: State, options: Mapping[str, Any]) -> Answer:
    if request.role == "compaction":
        return say(SUMMARY)
    if request.role == "auxiliary" and not request.tools:
        return _plain(request, state, options)
    steps = int(options.get("steps", 2))
    done = request.tool_results
    if done >= steps:
        return say(str(options.get("text", "All done.")))
    name = "Bash" if "Bash" in request.tools or not request.tools else request.tools[0]
    if name == "Bash":
        return _bash(request, done)
    return say(tool_use(name, {}))


def _thinking(request: Received, state: State, options: Mapping[str, Any]) -> Answer:
    answer = _tools(request, state, options)
    blocks = answer.blocks or ()
    return answer.but(blocks=(thinking("Let me think: ä, 漢, 🙂."), *blocks))


def _agent(request: Received, state: State, options: Mapping[str, Any]) -> Answer:
    if request.role == "compaction":
        return say(SUMMARY)
    if request.role == "subagent" or "SUBPROMPT" in request.first_text:
        if request.tool_results or "Read" not in request.tools:
            return say("Review: no findings.")
        return say(tool_use("Read", {"file_path": str(options.get("file", "README.md"))}))
    if request.role == "main" and request.agent_tool in request.tools and not request.tool_results:
        call = {
            "description": "Review a file",
            "prompt": "Please review the file SUBPROMPT",
            "subagent_type": str(options.get("agent", "code-reviewer")),
        }
        calls = [tool_use(request.agent_tool, call) for _ in range(int(options.get("agents", 1)))]
        return say("I will delegate.", *calls)
    return say("Main is done.")


def _compaction(request: Received, state: State, options: Mapping[str, Any]) -> Answer:
    """The answer to a compaction request; ``summary`` picks one of the odd ones of client facts 4.4."""
    state["compactions"] = int(state.get("compactions", 0)) + 1
    small = {"input_tokens": 1000}
    variants: dict[str, Answer] = {
        "good": say(SUMMARY, usage=small),
        "summary_only": say("<summary>ORIGIN-SUMMARY only</summary>", usage=small),
        "no_tags": say("ORIGIN-SUMMARY without any tags.", usage=small),
        "thinking": say(thinking("hm"), SUMMARY, usage=small),
        "empty": say("", usage=small),
        "no_block": Answer(blocks=(), usage=small),
        "tool": say(tool_use("Bash", {"command": "echo no", "description": "wrong"}), usage=small),
        "max_tokens": say("<analysis>x</analysis><summary>cut here", stop_reason="max_tokens", usage=small),
        "cut": say(SUMMARY, cut_after=3) if state["compactions"] == 1 else say(SUMMARY, usage=small),
        "cut_always": say(SUMMARY, cut_after=3),
        "error_500": fail(500, "Internal server error") if state["compactions"] <= 2 else say(SUMMARY, usage=small),
        "error_400": fail(400, "bad request"),
    }
    return variants[str(options.get("summary", "good"))]


def _compact(request: Received, state: State, options: Mapping[str, Any]) -> Answer:
    if request.role == "compaction":
        return _compaction(request, state, options)
    return _tools(request, state, options)


def _autocompact(request: Received, state: State, options: Mapping[str, Any]) -> Answer:
    if request.role == "compaction":
        return _compaction(request, state, options)
    if request.role == "auxiliary":
        return _plain(request, state, options)
    if state.get("compactions"):
        return say("After the compaction. All done.", usage=SMALL)
    # The client looks at input + cache_read + cache_creation + output of the last reply (client facts 4.2).
    big = {"input_tokens": 10, "cache_read_input_tokens": int(options.get("big", BIG)), "output_tokens": 50}
    done = request.tool_results
    if done >= int(options.get("steps", 4)):
        return say("All done.", usage=big)
    step = _bash(request, done)
    at = int(options.get("big_from", 0))
    return step.but(usage=big if done >= at else {"input_tokens": 3000})


def _too_long(request: Received, state: State, options: Mapping[str, Any]) -> Answer:
    if request.role == "compaction":
        return _compaction(request, state, options)
    if request.role == "auxiliary":
        return _plain(request, state, options)
    if state.get("compactions"):
        return say("After the compaction. All done.", usage=SMALL)
    if request.tool_results >= 2:
        return fail(400, "prompt is too long: 208310 tokens > 200000 maximum")
    return _bash(request, request.tool_results)


def _foreign(request: Received, state: State, options: Mapping[str, Any]) -> Answer:
    sparse = {"input_tokens": 0, "output_tokens": 7}
    how: dict[str, Any] = {"model": "gpt-4o-mini", "message_id": "chatcmpl-abc", "usage": sparse}
    if request.role == "main" and not request.tool_results:
        call = tool_use("Bash", {"command": "echo foreign", "description": "x"}, call_id="call_AbC123")
        return say("Using a tool.", call, **how)
    return say(thinking("no signature", signature=""), "Foreign done.", **how)


def _filling(request: Received, state: State, options: Mapping[str, Any]) -> Answer:
    """A context that grows by `grow` tokens with every tool result, from `start` after each compaction, until `turns`
    tool calls were made; then a text. `summaries` names what each request for a summary gets, the last one repeating;
    `seconds`, `text`, `retry_after` are theirs. Counts are left to the prompt cache where the script has one."""
    if request.role == "compaction":
        kinds = options.get("summaries") or ["good"]
        number = state["summaries"] = int(state.get("summaries", 0)) + 1
        return summary_answer(str(kinds[min(number, len(kinds)) - 1]), number, options)
    if request.role not in ("main", "subagent"):
        return _plain(request, state, options)
    filled = int(options.get("start", 100_000)) + int(options.get("grow", 200_000)) * request.tool_results
    usage = {"input_tokens": 10, "cache_read_input_tokens": filled - 60, "output_tokens": 50}
    if options.get("cached"):
        usage = {}
    done = state[request.role] = int(state.get(request.role, 0)) + 1
    if done > int(options.get("turns", 6)):
        return say(str(options.get("last", "All done.")), usage=usage)
    call = {"command": f"echo {options.get('result', 'step')} {done}", "description": "One step"}
    return say(f"Step {done}.", tool_use("Bash", call), usage=usage)


#: Bytes that the demo's tools read, turn by turn from the third on: most of the window, then up to its wall.
DEMO_READS = (80_000, 80_000, 80_000, 10_000)
_AFTER = "continued from a previous conversation"


def _demo(request: Received, state: State, options: Mapping[str, Any]) -> Answer:
    """Worth watching: thinking, tools, two agents at once, coded streams, a filling context, a compaction.

    The context is what was really sent, by the prompt cache's count: a window of 100,000 tokens is filled.
    """
    if request.role == "compaction":
        delay = float(options.get("summary_seconds", 0.6))
        made = _compaction(request, state, options)
        if options.get("summary", "good") == "good":
            made = say(summary_text(int(state["compactions"]), says="the files were read, one by one, and reviewed."))
        return made.but(first_byte_delay=delay, ping_every=delay / 2)
    if request.role == "subagent":
        return _agent(request, state, {"file": "README.md"})
    if request.role != "main":
        return _plain(request, state, options)
    if _AFTER in request.first_text:
        closing = "Done. The history was summed up on the way, and nothing was lost: ä, 漢, 🙂. "
        return say(closing, repeat=8, delta_chars=16, rate=100.0)
    step = state["turns"] = int(state.get("turns", 0)) + 1
    if step == 1:
        call = tool_use("Bash", {"command": "echo one file: README.md", "description": "List the files"})
        return say(thinking("First the files: ä, 漢, 🙂."), "Let me look.", call, chunk_size=7)
    if step == 2:
        review = {"description": "Review", "prompt": "SUBPROMPT: review README.md", "subagent_type": "code-reviewer"}
        calls = [tool_use(request.agent_tool, review) for _ in range(2)]
        return say("Two reviewers, at the same time.", *calls)
    size = DEMO_READS[min(step - 3, len(DEMO_READS) - 1)]
    call = tool_use("Bash", {"command": f"head -c {size} part-{step - 2}.txt", "description": "Read on"})
    return say(f"Part {step - 2}.", call, coding=("gzip", "br", "zstd")[step % 3])


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("plain", "client facts 3.2", "one text; a summary for a compaction", _plain),
        Scenario("tools", "client facts 3.2", "`steps` Bash calls, then a text", _tools),
        Scenario("thinking", "client facts 3.4; anthropic-api 1.6", "as tools, each with a thinking block", _thinking),
        Scenario("agent", "client facts 3.2, 3.4", "delegates to `agents` subagents, which read a file", _agent),
        Scenario(
            "compact", "client facts 4.1, 4.3, 4.4", "as tools; `summary` picks the compaction's answer", _compact
        ),
        Scenario("autocompact", "client facts 4.2, 4.3", "reports a full context until compacted", _autocompact),
        Scenario("too_long", "client facts 4.2; anthropic-api 1.7", "400 at the third turn until compacted", _too_long),
        Scenario("filling", "client facts 4.2, 4.4, 5", "a growing context, and summaries good and bad", _filling),
        Scenario("demo", "client facts 3.2, 4.2, 4.3", "what `dbproxy demo` plays", _demo, 4.0),
        Scenario("foreign", "client facts 3.4", "as a translated model answers: other ids, sparse usage", _foreign),
    )
}
