"""What the double buffer did in a demo: the swap as the proxy's log tells it, with its numbers.

Reads the log alone, as a person could; imports no plugin.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dbproxy.testing.compare import Comparison

#: Seconds for the log to say that a swap was confirmed, and between two looks.
CONFIRM_SECONDS = 5.0
_LOOK_EVERY = 0.1


@dataclass(frozen=True, slots=True)
class Swap:
    """A swap that the agent took: the log's ``swap_executed``, and the ``checkpoint_completed`` behind it."""

    executed: Mapping[str, Any]
    checkpoint: Mapping[str, Any]


async def confirmed_swap(log: Path) -> Swap | str:
    """The first swap that was confirmed; else why there is none."""
    events: list[dict[str, Any]] = []
    with trio.move_on_after(CONFIRM_SECONDS):
        while True:
            events = await _events(log)
            found = _confirmed(events)
            if found is not None:
                return found
            if not any(event.get("event") == "swap_executed" for event in events):
                break  # nothing that could be confirmed
            await trio.sleep(_LOOK_EVERY)
    return _why_none(events)


async def _events(log: Path) -> list[dict[str, Any]]:
    try:
        lines = (await trio.Path(log).read_text("utf-8", "replace")).splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the last line is still being written
        if isinstance(event, dict):
            found.append(event)
    return found


def _confirmed(events: list[dict[str, Any]]) -> Swap | None:
    def first(name: str, checkpoint: object = None) -> dict[str, Any] | None:
        fits = (e for e in events if e.get("event") == name and checkpoint in (None, e.get("checkpoint")))
        return next(fits, None)

    confirmed = first("swap_confirmed")
    executed = first("swap_executed", confirmed["checkpoint"]) if confirmed else None
    checkpoint = first("checkpoint_completed", executed["checkpoint"]) if executed else None
    return Swap(executed, checkpoint) if executed and checkpoint else None


def _why_none(events: list[dict[str, Any]]) -> str:
    said = {str(event.get("event")): event for event in events}
    if "swap_rejected" in said:
        return f"the agent did not take it: {said['swap_rejected'].get('reason')}"
    if "swap_executed" in said:
        return "the agent's next request did not confirm it"
    if "checkpoint_failed" in said:
        return f"the checkpoint failed: {said['checkpoint_failed'].get('reason')}"
    if "compact_native" in said:
        return f"the agent's request went to the model: {said['compact_native'].get('reason')}"
    return "nothing was prepared; `dbproxy doctor` says whether the plugin double-buffer is there"


def tell(say: Callable[[str], None], swap: Swap, comparison: Comparison, attempts: list[dict[str, Any]]) -> None:
    """The swap in a few lines."""
    made, done = swap.checkpoint, swap.executed
    asked = next((a for a, line in zip(attempts, comparison.lines, strict=True) if line.swapped), None)
    waited = asked["seconds"] if asked and asked["seconds"] is not None else done["waited_ms"] / 1000
    began = next((c for c in comparison.checkpoints), None)
    before, after = f"{done['tokens_before']:,}", f"{done['tokens_after']:,}"
    saved = max(0.0, made["seconds"] - waited)
    told = ["checkpoint", f"at {made['tokens']:,} tokens, in the background; ready after {made['seconds']:.2f} s"]
    if began is not None:
        told += ["", f"request {began.base} once more, and {began.more:,} bytes that ask for a summary;"]
        told += ["", f"{made['cache_share']:.1%} of its prompt came out of the prompt cache"]
    told += ["compaction", f"asked for at {before} tokens, answered in {waited * 1000:.0f} ms without the model;"]
    told += ["", f"{saved:.2f} s of waiting saved (with a real model: half a minute to many minutes)"]
    kept = f"{done['kept']} pieces, {done['log_tokens']:,} tokens"
    cut = f"{done['shortened']} more shortened" if done["shortened"] else "every one word for word"
    told += ["log", f"{done['log_messages']} messages since the checkpoint: {kept}, {cut}"]
    told += ["afterwards", f"{after} tokens, and the agent's next request begins with them: confirmed"]
    say("\nThe double buffer, as the log tells it (`dbproxy logs`):\n")
    for name, words in zip(told[::2], told[1::2], strict=True):
        say(f"  {name:12}  {words}")
