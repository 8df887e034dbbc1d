"""An exchange's place and price as sentences: what it is, why it is taken for that, what it follows, what it cost.

Owns the words. Pure: rows in, text out. Invariant: says only what was recorded, and where that came from.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dbproxy.store.rows import EvidenceRow, ExchangeDetail, ExchangeRow, RouteRow

_KINDS = {
    "main": "a turn of the main conversation",
    "subagent": "a turn of a subagent",
    "nested": "a turn of an agent that another agent started",
    "compaction": "a compaction: it asks for a summary of the conversation",
    "after-compaction": "the first turn after a compaction",
    "title": "a side request that names the session",
    "quota": "the client's probe of the account's limits",
    "warmup": "a warm-up request",
    "topic": "a side request that looks for a new topic",
    "count-tokens": "a request that only counts tokens",
    "web": "a side request of the client's web tools",
    "auxiliary": "a side request",
}
_EDGES = {
    "next": "It follows {parent}: the same history, its answer, and more.",
    "retry": "It sends the request of {parent} once more (attempt {attempt}), so it begins no branch.",
    "rewind": "It leaves the history of {parent} at an earlier point, so it begins branch {branch}.",
    "fork": "It goes on with the history of {parent} under another session: a fork.",
    "compacted": "It starts from the summary that {parent} asked for.",
    "spawn": "It is an agent's first request; the answer of {parent} started the agent.",
    "aside": "It stands beside the conversation, at the point of {parent}, and does not move it.",
}
_ROOTS = {
    "root": "Nothing before it is known: it begins its thread.",
    "aside": "It stands beside the conversations and moves none.",
}
_OUTCOMES = {
    "ok": "was answered in full",
    "error": "was answered with an error",
    "aborted": "was aborted by the client",
    "cut": "was cut off by the upstream in the middle of its answer",
    "failed": "got no answer",
    "local": "was answered by dbproxy itself",
    "upgraded": "became a two-way stream",
}
_ROUTES = {
    "routed": "It was answered by {where}{rule}{why}.",
    "declined": "It stayed where the client sent it{rule}{why}.",
    "fell back": "It was to go elsewhere{rule}{why}, and the upstream that the client chose answered instead.",
    "failed": "It was to go elsewhere{rule}{why}, and failed there.",
}
_BODIES = {
    "none": "No body was kept: it is no Messages request, or capture was off or for facts only.",
    "shed": "Its texts were dropped, because more came than could be written.",
    "pruned": "Its texts were removed by `log prune`; the facts were kept.",
}


def sentences(detail: ExchangeDetail) -> list[str]:
    """What is known about an exchange and why, one sentence each, the most important first."""
    row = detail.exchange
    said = [_what(detail), _edge(row)]
    said += [_because(item) for item in detail.evidence]
    said += _route(detail.route)
    said.append(_outcome(row))
    said += _tokens(row)
    if row.body_kind in _BODIES:
        said.append(_BODIES[row.body_kind])
    if row.body_inexact:
        said.append("Its texts were changed by a redaction before they were written, so they are not the exact bytes.")
    return [text for text in said if text]


def _what(detail: ExchangeDetail) -> str:
    row = detail.exchange
    if not row.kind:
        return f"{row.id} is {row.method} {row.host}{row.path}; it was not linked to any conversation."
    what = _KINDS.get(row.kind, row.kind)
    if row.compaction:
        what += f" ({row.compaction})"
    where = f" in conversation {row.conversation}" if row.conversation else ""
    if row.thread and row.thread != "main":
        agent = detail.agent.label if detail.agent is not None else row.thread
        where += f", agent {agent}"
        if detail.agent is not None and detail.agent.name and detail.agent.type:
            where += f" of type {detail.agent.type}"
    if row.branch > 1:
        where += f", branch {row.branch}"
    return f"{row.id} is {what}{where}."


def _edge(row: ExchangeRow) -> str:
    if not row.parent:
        return _ROOTS.get(row.edge, "")
    return _EDGES.get(row.edge, "Its parent is {parent} ({edge}).").format(
        parent=row.parent, attempt=row.attempt, branch=row.branch, edge=row.edge
    )


def _because(item: EvidenceRow) -> str:
    question = item.question[:1].upper() + item.question[1:]
    detail = f" ({item.detail})" if item.detail and item.detail != item.answer else ""
    return f"{question}: {item.answer or 'not known'}, as the {item.source} says{detail}."


def _outcome(row: ExchangeRow) -> str:
    began = datetime.fromtimestamp(row.started, UTC).strftime("%Y-%m-%d %H:%M:%S")
    if row.state == "open":
        return f"It began at {began} UTC and is under way."
    if row.state == "lost":
        return f"It began at {began} UTC; how it ended is not known, because its proxy was killed."
    status = f" (status {row.status})" if row.status else ""
    text = f"It began at {began} UTC and {_OUTCOMES.get(row.outcome, f'ended as {row.outcome}')}{status}"
    if row.duration_ms is not None and row.duration_ms >= 0:
        text += f" after {row.duration_ms / 1e3:.2f} s"
        if row.first_byte_ms is not None and row.first_byte_ms >= 0:
            text += f", the first byte after {row.first_byte_ms / 1e3:.2f} s"
    return f"{text}{f': {row.error}' if row.error else ''}."


def _route(route: RouteRow | None) -> list[str]:
    """Where it went instead, why, and what was tried."""
    if route is None:
        return []
    rule = f" by the rule {route.rule}" if route.rule else ""
    why = f", because {route.reason}" if route.reason else ""
    where = f"{route.model} at {route.provider}" if route.provider else "the upstream that the client chose"
    said = [_ROUTES.get(route.outcome, "It was routed to {where}{rule}{why}.").format(where=where, rule=rule, why=why)]
    for one in route.attempts:
        if one.error:
            status = f" (status {one.status}, {one.ms:.0f} ms)" if one.status else ""
            target = f"{one.provider}:{one.model}: " if one.provider else ""
            said.append(f"Tried {target}{one.error}{status}." if target else f"{one.error[:1].upper()}{one.error[1:]}.")
    said += [f"Translated: {note}." for note in route.notes]
    if route.provider and route.scale != 1.0:
        said.append(f"The client was told the token counts times {route.scale:.3g}, in the measure of its own window.")
    return said


def _tokens(row: ExchangeRow) -> list[str]:
    said = []
    if row.model or row.model_asked:
        asked = f", asked for as {row.model_asked}" if row.model and row.model_asked not in ("", row.model) else ""
        said.append(f"The model is {row.model or row.model_asked}{asked}.")
    written = row.cache_write_5m + row.cache_write_1h
    if row.input_tokens or row.output_tokens or row.cache_read or written:
        said.append(
            f"Tokens: {row.input_tokens:,} input, {row.cache_read:,} read from the cache, {written:,} written to it, "
            f"{row.output_tokens:,} output."
        )
        if row.cost_usd is None:
            said.append(f"No price is known for {row.model or row.model_asked or 'this model'}.")
        else:
            said.append(f"It cost ${row.cost_usd:.6f}{f' by the price of {row.priced_by}' if row.priced_by else ''}.")
    return said
