"""The cases about answers: whatever the server says, and however it breaks it up, the client gets a Messages answer.

Every check here comes on top of those of `Bench`: grammar, one end, one error at most. Numbers are those of seed-001
section 7. Must never import a codec.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Final

from dbproxy.model.codecs.request import Call, Text, Thinking
from dbproxy.testing.codecs.bench import ASKED, USUAL, bits, call, done, expect, require, say, think, whole
from dbproxy.testing.codecs.case import case
from dbproxy.testing.codecs.dialect import Counts
from dbproxy.testing.codecs.mutate import mutated, mutated_document
from dbproxy.testing.codecs.shapes import broken_of, shapes_of

if TYPE_CHECKING:
    from dbproxy.testing.codecs.bench import Bench, Heard

_ALL: Final = (Text("Look."), Call("call_1", "Read", {"a": {"b": [1]}}), Call("call_2", "Bash", {}))
_FUZZ: Final = 150  # mutations in the kit's own run; the project's tests have more


@case(42, "a text and nothing else")
def _(bench: Bench) -> None:
    for heard in bench.both(Text("Hello.")):
        expect(heard.content, [("text", "Hello.")], "the answer")
        expect(heard.whole["stop_reason"], "end_turn", "the stop reason")
        expect(heard.whole["model"], ASKED, "the model, which is the one that was asked for (case 84)")
        require(not heard.whole["id"].startswith("msg_"), "an id on which the client would anchor a thread")


@case(44, "the first piece of text is not lost")
def _(bench: Bench) -> None:
    for pieces in (("A",), ("A", "B", "C"), ("\n\n", "A "), ("ä漢🙂", "e\u0301")):
        heard = bench.hear(bench.spell(*map(say, pieces)))
        expect(heard.content, [("text", "".join(pieces))], "the answer")


@case(45, "thinking, then text", "thinking")
def _(bench: Bench) -> None:
    heard = bench.hear(bench.spell(think("Hm"), think(", well."), say("Yes"), say(".")))
    expect(heard.content, [("thinking", "Hm, well."), ("text", "Yes.")], "the answer")
    for heard in bench.both(Thinking("Hm."), Text("Yes.")):
        expect(heard.content, [("thinking", "Hm."), ("text", "Yes.")], "the answer")


@case(46, "text, a call, text again")
def _(bench: Bench) -> None:
    heard = bench.hear(bench.spell(say("I "), say("look."), whole(0, "Read", {"a": 1}), say("Done."), stop="tool_use"))
    expect(heard.content, [("text", "I look."), ("call", "Read", {"a": 1}), ("text", "Done.")], "the answer")


@case(47, "a call before any text")
def _(bench: Bench) -> None:
    for heard in bench.both(Call("call_1", "Read", {"a": 1}), stop="tool_use"):
        expect(heard.content, [("call", "Read", {"a": 1})], "the answer")
        expect(heard.whole["stop_reason"], "tool_use", "the stop reason")


@case(48, "parallel calls, one after the other")
def _(bench: Bench) -> None:
    names = ("Read", "Bash", "Grep")
    for heard in bench.both(*(Call(f"call_{i}", name, {"n": i}) for i, name in enumerate(names)), stop="tool_use"):
        expect(heard.content, [("call", name, {"n": i}) for i, name in enumerate(names)], "the answer")
        expect(len(set(heard.ids)), 3, "how many different ids there are")


@case(48, "parallel calls in turn", "interleaved")
def _(bench: Bench) -> None:
    lanes = [bits(key, name, {"key": key, "text": 'ä"\\' * 3}) for key, name in enumerate(("Read", "Bash", "Grep"))]
    steps = [lane[at] for at in range(max(map(len, lanes))) for lane in lanes if at < len(lane)]
    heard = bench.hear(bench.spell(say("Three:"), *steps, stop="tool_use"))
    wanted = [("call", name, {"key": key, "text": 'ä"\\' * 3}) for key, name in enumerate(("Read", "Bash", "Grep"))]
    expect(heard.content, [("text", "Three:"), *wanted], "the answer")
    expect(len(set(heard.ids)), 3, "how many different ids there are")


@case(49, "the same tool twice")
def _(bench: Bench) -> None:
    for heard in bench.both(Call("call_1", "Read", {"n": 1}), Call("call_2", "Read", {"n": 2}), stop="tool_use"):
        expect(heard.content, [("call", "Read", {"n": 1}), ("call", "Read", {"n": 2})], "the answer")
        expect(len(set(heard.ids)), 2, "how many different ids there are")


@case(50, "calls without ids get some, and keep them", "no ids")
def _(bench: Bench) -> None:
    speech = bench.dialect.speak()
    data = speech.begin()
    for key in range(2):
        data += speech.call(key, name="Read", arguments=json.dumps({"n": key})) + speech.done(key)
    heard = bench.hear(data + speech.end("tool_use", USUAL))
    expect(heard.content, [("call", "Read", {"n": 0}), ("call", "Read", {"n": 1})], "the answer")
    require(len(set(heard.ids)) == 2 and all(heard.ids), f"ids are missing or equal: {heard.ids}")


@case(51, "a name in pieces, and one that comes late", "late names")
def _(bench: Bench) -> None:
    pieces = [call(0, id="call_0", name="Re"), call(0, name="ad"), call(0, arguments='{"a": 1}'), done(0)]
    expect(bench.hear(bench.spell(pieces)).content, [("call", "Read", {"a": 1})], "a name in pieces")
    late = [call(0, id="call_0"), call(0, name="Read"), call(0, arguments='{"a": 1}'), done(0)]
    expect(bench.hear(bench.spell(late)).content, [("call", "Read", {"a": 1})], "a late name")


@case(52, "a whole call at once", "pieces")
def _(bench: Bench) -> None:
    heard = bench.hear(bench.spell(whole(0, "Read", {"a": [1, {"b": "c"}]}), stop="tool_use"))
    expect(heard.content, [("call", "Read", {"a": [1, {"b": "c"}]})], "the answer")


@case(52, "a call in pieces of any size", "pieces")
def _(bench: Bench) -> None:
    given = {"path": 'ä漢🙂\n"', "n": [1, 2, 3]}
    for size in (1, 2, 7, 1000):
        heard = bench.hear(bench.spell(say("x"), bits(0, "Read", given, size=size), stop="tool_use"))
        expect(heard.content, [("text", "x"), ("call", "Read", given)], f"in pieces of {size}")


@case(53, "a call without arguments")
def _(bench: Bench) -> None:
    for spelled in ("", "{}"):
        if not spelled and "pieces" not in bench.dialect.can:
            continue
        steps = [call(0, id="call_0", name="Now", arguments=spelled), done(0)]
        heard = bench.hear(bench.spell(steps, stop="tool_use"))
        expect(heard.content, [("call", "Now", {})], f"with {spelled!r}")


@case(56, "an ordinary end behind calls means tool_use")
def _(bench: Bench) -> None:
    for heard in bench.both(Text("Look:"), Call("call_1", "Read", {}), stop="end_turn"):
        expect(heard.whole["stop_reason"], "tool_use", "the stop reason")


@case(57, "an end for calls that never came means end_turn")
def _(bench: Bench) -> None:
    for heard in bench.both(Text("Nothing to do."), stop="tool_use"):
        expect(heard.whole["stop_reason"], "end_turn", "the stop reason")


def _usage(heard: Heard) -> dict[str, int]:
    usage = heard.whole["usage"]
    return {name: usage[name] for name in ("input_tokens", "output_tokens", "cache_read_input_tokens")}


@case(58, "the counts are those of the server, what a cache read apart", "cached")
def _(bench: Bench) -> None:
    for heard in bench.both(Text("Hi."), tokens=Counts(input=100, output=20, cache_read=900)):
        wanted = {"input_tokens": 100, "output_tokens": 20, "cache_read_input_tokens": 900}
        expect(_usage(heard), wanted, "the usage")


@case(60, "an answer without counts has estimates", "no usage")
def _(bench: Bench) -> None:
    for heard in bench.both(Text("Hello there, how are you? " * 20), tokens=None):
        usage = _usage(heard)
        require(usage["input_tokens"] > 1 and usage["output_tokens"] > 1, f"no estimate: {usage}")


@case(61, "the first event counts the prompt")
def _(bench: Bench) -> None:
    heard = bench.hear(bench.spell(say("Hi.")))
    start = json.loads(heard.raw.split(b"data: ", 1)[1].split(b"\n", 1)[0])
    require(start["message"]["usage"]["input_tokens"] > 0, "message_start counts nothing")


@case(62, "a refusal keeps what was said before it", "refusal")
def _(bench: Bench) -> None:
    for heard in bench.both(Text("I would rather"), stop="refusal"):
        expect(heard.whole["stop_reason"], "refusal", "the stop reason")
        require(("text", "I would rather") in heard.content, f"the text is missing: {heard.content}")


@case(63, "an answer that reached its limit says so")
def _(bench: Bench) -> None:
    for heard in bench.both(Text("And then"), stop="max_tokens"):
        expect((heard.content, heard.whole["stop_reason"]), ([("text", "And then")], "max_tokens"), "the answer")


@case(63, "a call that the limit cut says so", "pieces")
def _(bench: Bench) -> None:
    heard = bench.hear(bench.spell(call(0, id="call_0", name="Write", arguments='{"text": "and th'), stop="max_tokens"))
    expect(heard.whole["stop_reason"], "max_tokens", "the stop reason")


@case(65, "an empty answer is whole")
def _(bench: Bench) -> None:
    heard = bench.hear(bench.spell())
    expect((heard.content, heard.whole["stop_reason"]), ([], "end_turn"), "the answer")


@case(66, "an answer that breaks off is an error")
def _(bench: Bench) -> None:
    steps = [say("Half a sen"), say("tence")]
    heard = bench.hear(bench.spell(*steps, stop=None))
    require(heard.error is not None, f"a broken answer looks whole: {heard.message}")
    require(b"Half a sen" in heard.raw, "what had come was thrown away")
    cut = bench.hear(bench.spell(whole(0, "Read", {"a": 1}), stop=None))
    require(cut.error is not None, f"a broken answer looks whole: {cut.message}")


@case(66, "an answer cut anywhere is an error, or lacks nothing")
def _(bench: Bench) -> None:
    for shape in shapes_of(bench.dialect):
        data = bench.spell(*shape.steps, stop=shape.stop, tokens=shape.tokens)
        wanted = bench.hear(data).content
        for end in [at for at in range(len(data)) if data[at - 1 : at] == b"\n"]:
            heard = bench.hear(data[:end])
            if heard.message is not None:
                expect(heard.content, wanted, f"{shape.name}, cut at byte {end} of {len(data)}")


@case(66, "an answer without anything is a failure that may be tried elsewhere")
def _(bench: Bench) -> None:
    for data in (b"", bench.spell(stop=None), b": comment\n\n"):
        heard = bench.hear(data)
        require(heard.failure is not None and heard.failure.transient, f"{data!r} gave {heard.message}")


@case(67, "an error behind the first piece is an error event", "errors")
def _(bench: Bench) -> None:
    speech = bench.dialect.speak()
    data = speech.begin() + speech.text("Well") + speech.error("overloaded_error", "too busy")
    heard = bench.hear(data)
    require(heard.error is not None and "too busy" in heard.error["message"], f"the error is lost: {heard.error}")
    again = bench.hear(data + bench.spell(say("More.")))
    require(again.error is not None, "an answer went on behind its error")


@case(68, "an error before anything was said is a failure with a status", "errors")
def _(bench: Bench) -> None:
    for begun in (True, False):
        speech = bench.dialect.speak()
        start = speech.begin() if begun else b""
        heard = bench.hear(start + speech.error("overloaded_error", "too busy"))
        require(heard.failure is not None and heard.failure.status >= 400, "no failure")
        require(not heard.failure or "too busy" in heard.failure.message, f"the error is lost: {heard.failure}")
        require(b"content_block" not in heard.raw, "something was said")


@case(69, "pings may stand anywhere")
def _(bench: Bench) -> None:
    data = bench.spell(say("Wait"), whole(0, "Read", {"a": 1}), say("ed."), stop="tool_use")
    for size in (0, 1, 40):
        expect(bench.hear(data, pings=True, size=size).content, bench.hear(data).content, "the answer")


@case(71, "nothing behind the end counts")
def _(bench: Bench) -> None:
    data = bench.spell(say("Hi."))
    for behind in (b"data: [DONE]\n\n", b"data: {\n\n", b"junk", b"data: null\n\n", b"event: x\ndata: []\n\n"):
        expect(bench.hear(data + behind).content, [("text", "Hi.")], f"the answer with {behind!r} behind it")


@case(72, "the same answer in reads of any size, and with any line ends")
def _(bench: Bench) -> None:
    for shape in shapes_of(bench.dialect):
        data = bench.spell(*shape.steps, stop=shape.stop, tokens=shape.tokens)
        wanted = bench.hear(data).content
        for size in (1, 7, 64):
            expect(bench.hear(data, size=size).content, wanted, f"{shape.name} in reads of {size}")
        ends = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        expect(bench.hear(ends, size=5).content, wanted, f"{shape.name} with CRLF")
        expect(bench.hear(b"\xef\xbb\xbf" + data).content, wanted, f"{shape.name} behind a BOM")
        expect(bench.hear(data.replace(b"\n\n", b"\n\n: wait\n\n")).content, wanted, f"{shape.name} among comments")
    long = "x" * 1_000_000
    expect(bench.hear(bench.spell(say(long)), size=65536).content, [("text", long)], "a line of a megabyte")


@case(15, "where calls come one at a time, the first counts")
def _(bench: Bench) -> None:
    data = bench.spell(whole(0, "Read", {"n": 1}), whole(1, "Bash", {"n": 2}), stop="tool_use")
    heard = bench.hear(data, translation=bench.translation(single=True))
    expect(heard.content, [("call", "Read", {"n": 1})], "the answer")


@case(0, "a stop sequence that is watched for here")
def _(bench: Bench) -> None:
    data = bench.spell(say("one ST"), say("OP two"))
    heard = bench.hear(data, translation=bench.translation(stops=("STOP",)))
    expect(heard.content, [("text", "one ")], "the answer")
    ended = (heard.whole["stop_reason"], heard.whole["stop_sequence"])
    expect(ended, ("stop_sequence", "STOP"), "the end")


@case(0, "a document that is none is a failure", "documents")
def _(bench: Bench) -> None:
    good = bench.dialect.document([Text("Hi.")], "end_turn", USUAL)
    for body in (b"", b"null", b"[]", b"{}", b"<html>no</html>", b'"x"', good[: len(good) // 2]):
        require(bench.hear_document(body).failure is not None, f"{body[:30]!r} was taken for an answer")


@case(95, "whatever comes, the client gets a whole answer or one error")
def _(bench: Bench) -> None:
    source = random.Random(95)
    shapes = [*shapes_of(bench.dialect), *broken_of(bench.dialect)]
    others = [bench.spell(*shape.steps, stop=shape.stop, tokens=shape.tokens) for shape in shapes]
    for _number in range(_FUZZ):
        shape = source.choice(shapes)
        data = mutated(source, bench.spell(*shape.steps, stop=shape.stop, tokens=shape.tokens), others)
        bench.hear(data, size=source.choice([0, 1, 50]))
        if "documents" in bench.dialect.can:
            bench.hear_document(mutated_document(source, bench.dialect.document(_ALL, "tool_use", USUAL)))
