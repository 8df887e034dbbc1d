"""Our own codecs pass the kit that those of others must pass, against servers written apart from them."""

from __future__ import annotations

from dataclasses import replace

import oddstreams
import pytest

from dbproxy.model.codecs.chat import CHAT
from dbproxy.model.codecs.gemini import GEMINI
from dbproxy.model.codecs.native import NATIVE
from dbproxy.model.codecs.responses import RESPONSES
from dbproxy.testing.codecs import Bench, cases, left_out
from dbproxy.testing.providers import ChatDialect, GeminiDialect, MessagesDialect, ResponsesDialect

OURS = [(CHAT, ChatDialect()), (RESPONSES, ResponsesDialect()), (GEMINI, GeminiDialect()), (NATIVE, MessagesDialect())]
CASES = [(dialect.name, case) for codec, dialect in OURS for case in cases(codec, dialect)]


@pytest.mark.parametrize("case", [case for _, case in CASES], ids=[f"{name}-{case}" for name, case in CASES])
def test_ours_pass(case):
    case.run()


@pytest.mark.parametrize("odd", oddstreams.ALL, ids=[f"{odd.dialect} {odd.name}" for odd in oddstreams.ALL])
def test_what_servers_were_seen_to_send_means_what_it_should(odd):
    bench = next(Bench(codec, dialect) for codec, dialect in OURS if dialect.name == odd.dialect)
    can = replace(bench.dialect.capabilities, **odd.can)
    for size in (0, 1):
        heard = bench.hear(odd.data, size=size, translation=bench.translation(capabilities=can))
        if odd.content is None:
            assert heard.error is not None
        else:
            assert (heard.content, heard.whole["stop_reason"]) == (odd.content, odd.stop)


def test_what_does_not_apply_to_ours_is_known():
    told = {dialect.name: set(left_out(dialect).values()) for _, dialect in OURS}
    assert told == {
        "chat": set(),
        "responses": {"responses has no late names", "responses has no no ids"},
        "gemini": {"gemini has no interleaved", "gemini has no late names", "gemini has no pieces"},
        "messages": {
            "messages has no late names",
            "messages has no no ids",
            "servers of the Messages API know the marks (API facts 5.5)",
        },
    }
