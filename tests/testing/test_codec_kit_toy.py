"""The kit against a codec of somebody else's: it passes whole, and each fault that is put into it is found."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from parrot_dialect import ParrotDialect
from parrot_provider import CODEC

from dbproxy.api.codecs import Failure
from dbproxy.testing.codecs import WORDS, cases, failures, left_out
from dbproxy.testing.codecs.case import ALL

TOY = Path(__file__).parent / "toy_provider"
DIALECT = ParrotDialect()


@pytest.mark.parametrize("case", cases(CODEC, DIALECT), ids=str)
def test_the_toy_passes(case):
    case.run()


def test_what_is_left_out_is_named_with_its_reason():
    assert set(left_out(DIALECT).values()) == {
        "parrot has no images",
        "parrot has no images, results with images",
        "parrot has no files",
    }
    assert len(cases(CODEC, DIALECT)) + len(left_out(DIALECT)) == len(ALL)


def test_every_case_has_a_name_of_its_own_and_words_that_exist():
    assert len({str(case) for case in ALL}) == len(ALL)
    assert set().union(*(case.needs for case in ALL)) <= WORDS


@pytest.mark.parametrize("change", [{"can": WORDS | {"thoughts"}}, {"exempt": {"case_99_nothing": "no"}}])
def test_a_misspelt_word_or_case_is_an_error(change):
    dialect = type("Misspelt", (ParrotDialect,), change)()
    with pytest.raises(ValueError, match="does not exist"):
        cases(CODEC, dialect)


def test_an_exempt_case_is_not_run():
    name = next(str(case) for case in ALL if case.number == 17)
    dialect = type("Exempt", (ParrotDialect,), {"exempt": {name: "this server takes long names"}})()
    assert name not in {str(case) for case in cases(CODEC, dialect)}
    assert left_out(dialect)[name] == "this server takes long names"


#: A change of the codec's source, and the numbers of the cases that must notice it.
FAULTS = [
    # requests
    (
        '"rules"] = "\\n\\n".join(request.system)',
        '"rules"] = request.raw["system"] if isinstance(request.raw["system"], str) else str(request.raw["system"])',
        {1, 3},
    ),
    (
        "if isinstance(part, Text):\n                lines",
        'if isinstance(part, Text) and turn.role != "system":\n                lines',
        {4},
    ),
    ("for turn in request.turns for line", "for turn in reversed(request.turns) for line", {4, 5, 7}),
    ('"with": part.arguments}', '"with": {}}', {5}),
    ("if part.is_error else told", "if False else told", {8}),
    ('"say": "\\n\\n".join(texts)}', '"say": ""}', {5, 10, 11}),
    ('USES = {"auto": "may", "any": "must"', 'USES = {"auto": "may", "any": "may"', {13}),
    ('or {"tool": out(request.choice.name)}', 'or {"tool": request.choice.name}', {13}),
    ('or {"tool": out(request.choice.name)}', 'or "must"', {13}),
    ('"none": "never"', '"none": "may"', {14}),
    ('USES = {"auto": "may"', 'USES = {"auto": "must"', {13}),
    ("translation.single = request.choice.single", "pass", {15}),
    ("if request.tools:\n", "if True:\n", {16}),
    ('{"name": out(tool.name)', '{"name": tool.name', {17, 18}),
    ('{"name": out(tool.name)', '{"name": tool.name[:64]', {17, 18}),
    ("name = translation.names.out(part.name)", "name = part.name", {17}),
    ('"takes": tool.schema}', '"takes": {"type": "object"}}', {20, 21}),
    ('"takes": tool.schema}', '"takes": tool.schema, **request.raw["tools"][0]}', {19}),
    ('"live": request.stream}', '"live": request.stream, "user": request.raw.get("metadata")}', {28}),
    (
        '"live": request.stream}',
        '"live": request.stream, **{k: v for k, v in request.raw.items() if k not in ("messages", "model", "tools")}}',
        {29},
    ),
    (
        "if isinstance(part, Text):",
        'if type(part).__name__ == "Thinking":\n                lines.append({"by": turn.role, "say": part.text})\n'
        "            elif isinstance(part, Text):",
        {32},
    ),
    ('"ref": upstream_id(part.id), "with"', '"ref": part.id, "with"', {77}),
    ('"longest"] = request.max_tokens', '"longest"] = 5', {0}),
    ('"live": request.stream}', '"live": False}', {0}),
    ('"live": request.stream}', '"live": request.stream, "salt": os.urandom(8).hex()}', {0}),
    ("if isinstance(part, Text):", 'if isinstance(part, Text) and part.text[0] not in "[{found":', {0, 12}),
    ("return json.dumps(body).encode()", 'return json.dumps(body, ensure_ascii=False).encode("ascii")', {0, 5}),
    # answers
    ('writer.text(text(event.get("say")))', 'writer.text(text(event.get("say")) if writer.substance else "")', {44}),
    ('writer.thinking(text(event.get("muse")))', 'writer.text(text(event.get("muse")))', {45}),
    ('name=text(ask.get("name"))', 'name="x"', {46, 47}),
    ("writer.call(key, id=", 'writer.call(text(ask.get("name")) or writer, id=', {48}),
    ('arguments=text(ask.get("with"))', 'arguments=text(ask.get("with")) and "{}"', {52}),
    ("writer.stop(ENDS[bye])", 'writer.stop("end_turn")', {62, 63}),
    ('cache_read=counts.get("known")', "cache_read=None", {58}),
    ("if isinstance(count, int)}", "if False}", {58}),
    ("self.writer.finish()  # an", 'self.writer.stop("end_turn"), self.writer.finish()  # an', {66}),
    ("writer.error(", "str(", {67, 68}),
    ("        if (bye :=", '        event["say"][0]\n        if (bye :=', {71}),
    ("events if isinstance(events, list) else []", "events", {0}),
    ("    except (ValueError, RecursionError):\n        return {}", "    except ValueError:\n        return {}", {95}),
    ("self.take(parsed(data))", "self.take(parsed(data)) if data else self.end()", {72}),
    ("isinstance(key, int):", "True:", {95}),
]


#: Cases over every shape: run only for the faults that are meant for them.
LONG = {66, 72, 95}


@cache
def found_with(old, new, long):
    """The names of the cases that fail with this change."""
    source = (TOY / "parrot_provider.py").read_text()
    assert source.count(old) == 1, old
    module: dict[str, object] = {"__name__": "faulty"}
    exec(compile(source.replace(old, new), "faulty.py", "exec"), module)
    found = []
    for case in cases(module["CODEC"], DIALECT):
        if long or case.case.number not in LONG:
            try:
                case.run()
            except Exception:  # whatever it raises, it is found
                found.append(case.case)
    return found


@pytest.mark.parametrize(("old", "new", "numbers"), FAULTS, ids=[str(number) for number in range(len(FAULTS))])
def test_each_fault_is_found(old, new, numbers):
    found = {case.number for case in found_with(old, new, bool(numbers & LONG))}
    assert numbers <= found


def test_each_case_can_fail():
    found = {str(case) for old, new, numbers in FAULTS for case in found_with(old, new, bool(numbers & LONG))}
    assert {str(case) for case in cases(CODEC, DIALECT)} - found == set()


def test_the_plain_function_says_which_failed_and_why():
    class Silent:
        def __init__(self):
            self.name, self.write, self.stream = "silent", CODEC.write, CODEC.stream

        def document(self, body, translation, writer):
            writer.fail(Failure(502, "api_error", "not today"))

    told = failures(Silent(), DIALECT)
    assert any(line.startswith("case_42_a_text_and_nothing_else: the answer failed: ") for line in told), told
    assert all(line.startswith("case_") for line in told)
    assert failures(CODEC, DIALECT) == []
