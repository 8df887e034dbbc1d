"""Case 95: whatever an upstream sends, the client gets a grammatical stream or one error.

2,000 examples in the normal run, all codecs together; DBPROXY_TEST_FUZZ=100000 asks for more (`just fuzz`).
"""

from __future__ import annotations

import os
from dataclasses import replace

import oddstreams
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbproxy.model.codecs.chat import CHAT
from dbproxy.model.codecs.gemini import GEMINI
from dbproxy.model.codecs.native import NATIVE
from dbproxy.model.codecs.request import Call, Text, Thinking
from dbproxy.model.codecs.responses import RESPONSES
from dbproxy.testing.codecs import Bench, Counts, broken_of, mutated, mutated_document, shapes_of
from dbproxy.testing.providers.chat import ChatDialect
from dbproxy.testing.providers.gemini import GeminiDialect
from dbproxy.testing.providers.messages import MessagesDialect
from dbproxy.testing.providers.responses import ResponsesDialect

EXAMPLES = int(os.environ.get("DBPROXY_TEST_FUZZ", "2000"))
BENCHES = [
    Bench(CHAT, ChatDialect()),
    Bench(RESPONSES, ResponsesDialect()),
    Bench(GEMINI, GeminiDialect()),
    Bench(NATIVE, MessagesDialect()),
]
EACH = EXAMPLES // len(BENCHES)
#: Of the examples for a codec: random bytes, documents with faults; the rest are valid streams with faults.
RANDOM, DOCUMENTS = EACH // 10, EACH // 10
FAULTY = EACH - RANDOM - DOCUMENTS

for_every_codec = pytest.mark.parametrize("bench", BENCHES, ids=lambda bench: bench.dialect.name)
pytestmark = pytest.mark.timeout(60 + EXAMPLES // 20)


def told(bench):
    """Every stream that this server might send, and those that servers like it were seen to send."""
    shapes = [*shapes_of(bench.dialect), *broken_of(bench.dialect)]
    spelled = [bench.spell(*shape.steps, stop=shape.stop, tokens=shape.tokens) for shape in shapes]
    return spelled + [odd.data for odd in oddstreams.ALL if odd.dialect == bench.dialect.name]


STREAMS = {bench.dialect.name: told(bench) for bench in BENCHES}
quietly = settings(suppress_health_check=list(HealthCheck))


@for_every_codec
@settings(quietly, max_examples=RANDOM)
@given(data=st.binary(max_size=400), size=st.sampled_from([0, 1, 7]), framed=st.booleans())
def test_case_95_random_bytes(bench, data, size, framed):
    bench.hear(b"data: " + data + b"\n\n" if framed else data, size=size)


@for_every_codec
@settings(quietly, max_examples=FAULTY)
@given(
    source=st.randoms(use_true_random=False),
    size=st.sampled_from([0, 0, 1, 30]),
    pings=st.booleans(),
    single=st.booleans(),
    stops=st.sampled_from([(), ("wor", "\u6f22")]),
    odd=st.sampled_from([{}, {"reliable_json": False}, {"reasoning": "think"}, {"reasoning": "reasoning"}]),
)
def test_case_95_valid_streams_with_faults(bench, source, size, pings, single, stops, odd):
    streams = STREAMS[bench.dialect.name]
    data = mutated(source, source.choice(streams), streams)
    capabilities = replace(bench.dialect.capabilities, **odd)
    translation = bench.translation(capabilities=capabilities, single=single, stops=stops)
    bench.hear(data, size=size, pings=pings, translation=translation)


PARTS = (Thinking("Hm."), Text("Look."), Call("call_1", "Read", {"a": {"b": [1]}}), Call("call_2", "Bash", {}))


@for_every_codec
@settings(quietly, max_examples=DOCUMENTS)
@given(source=st.randoms(use_true_random=False), stop=st.sampled_from(["end_turn", "tool_use", "max_tokens"]))
def test_case_95_documents_with_faults(bench, source, stop):
    bench.hear_document(mutated_document(source, bench.dialect.document(PARTS, stop, Counts(100, 20, 900))))
