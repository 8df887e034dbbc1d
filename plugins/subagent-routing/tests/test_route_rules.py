"""Rules: how they may be written, which one fits whom, and in which order."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from dbproxy_subagent_routing.rules import KINDS, Asker, Match, Rule, RuleSet, Step, match, read_rules
from hypothesis import given
from hypothesis import strategies as st

REVIEWER = Asker("subagent", True, "code-reviewer", "custom", "claude-opus-5-5", "spawn ledger")
EXPLORER = Asker("subagent", True, "", "Explore", "claude-haiku-4-5")
FILE = Rule("route in code-reviewer.md", ("openai:from-file",), Step.FILE, "code-reviewer")


def key_of(found: Match | None) -> str:
    return found.rule.key if found is not None else ""


def fitting(asker: Asker, *keys: str, file: Rule | None = None) -> str:
    """The key of the rule that fits, of these in this order."""
    return key_of(match(read_rules(dict.fromkeys(keys, "openai:gpt-5.5")), asker, file))


# ---- how they are written


@pytest.mark.parametrize(
    ("value", "targets", "fallback"),
    [
        ("gpt-4o", ("gpt-4o",), True),
        (" openai:gpt-5.5 ", ("openai:gpt-5.5",), True),
        (["ollama:qwen3", "openai:gpt-5.5"], ("ollama:qwen3", "openai:gpt-5.5"), True),
        (("ollama:qwen3",), ("ollama:qwen3",), True),
        ({"to": "openai:gpt-5.5", "fallback": False}, ("openai:gpt-5.5",), False),
        ({"to": ["a:b", "c:d"], "reason": "cheap"}, ("a:b", "c:d"), True),
        ("claude", ("claude",), True),
        (["Claude", "a:b"], ("Claude",), True),
        ({"to": ["a:b", "claude", "c:d"], "fallback": False}, ("a:b",), True),  # the end of the chain is named
    ],
)
def test_a_value_is_a_target_a_chain_or_a_table(value, targets, fallback):
    (rule,) = read_rules({"code-reviewer": value})
    assert (rule.targets, rule.fallback, rule.problem) == (targets, fallback, "")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("a", "", "names no target"),
        ("a", [], "names no target"),
        ("a", ["x:y", 3], "names no target"),
        ("a", 7, "names no target"),
        ("a", {"to": None}, "names no target"),
        ("a", {"to": "x:y", "fallback": "no"}, "fallback must be true or false"),
        ("a", {"to": "x:y", "fall_back": True}, "unknown part 'fall_back'"),
        ("agent:", "x:y", "names nobody"),
        ("", "x:y", "names nobody"),
        ("kind:subagents", "x:y", "no such kind of request. Known: main, subagent, nested"),
    ],
)
def test_what_cannot_be_read_is_a_problem_that_says_what_to_write(key, value, said):
    (rule,) = read_rules({key: value})
    assert said in rule.problem


@pytest.mark.parametrize("value", [None, "openai:gpt-5", ["a"], 3])
def test_no_table_is_no_rules(value):
    assert read_rules(value) == ()
    assert not RuleSet(read_rules(value))


def test_rules_are_shown_as_they_were_written():
    shown = [str(rule) for rule in read_rules({"Code-Reviewer": "gpt-4o", "kind:web": ["a:b", "c:d"], "x": None})]
    assert shown == ["Code-Reviewer = gpt-4o", "kind:web = a:b, c:d", "x"]


@pytest.mark.parametrize(
    ("key", "step", "pattern", "bare"),
    [
        ("code-reviewer", Step.AGENT, "code-reviewer", True),
        ("Agent: Code-Reviewer", Step.AGENT, "code-reviewer", False),
        ("my-plugin:code-reviewer", Step.AGENT, "my-plugin:code-reviewer", True),
        ("agent:my-plugin:code-reviewer", Step.AGENT, "my-plugin:code-reviewer", False),
        ("type:Explore", Step.TYPE, "explore", False),
        ("kind:count_tokens", Step.KIND, "count-tokens", False),
        ("kind:warm-up", Step.KIND, "warmup", False),
        ("model:claude-haiku-*", Step.MODEL, "claude-haiku-*", False),
        ("model:claude-opus-5-5[1m]", Step.MODEL, "claude-opus-5-5", False),
        ("model:openai:gpt-5", Step.MODEL, "openai:gpt-5", False),
    ],
)
def test_a_key_says_what_it_goes_by(key, step, pattern, bare):
    (rule,) = read_rules({key: "x:y"})
    assert (rule.step, rule.pattern, rule.bare, rule.problem) == (step, pattern, bare, "")


def test_a_rule_may_say_that_an_agent_stays():
    assert [rule.stays for rule in read_rules({"a": "claude", "b": "openai:claude", "c": ["claude", "x:y"]})] == [
        True,
        False,
        True,
    ]


# ---- who fits


def test_an_agent_is_known_by_its_name_whatever_its_case():
    assert fitting(REVIEWER, "planner", "Code-Reviewer") == "Code-Reviewer"
    assert fitting(REVIEWER, "agent:code-reviewer") == "agent:code-reviewer"
    assert fitting(REVIEWER, "code-reviewer-2", "reviewer") == ""


def test_a_bare_key_names_one_of_the_clients_own_agents_too():
    assert fitting(EXPLORER, "Explore") == "Explore"
    assert fitting(EXPLORER, "explore") == "explore"
    assert fitting(EXPLORER, "agent:Explore") == ""
    assert fitting(EXPLORER, "*") == "*"
    assert fitting(REVIEWER, "Explore", "custom") == ""
    # Of an agent without a name nothing is known that a name could be compared with.
    assert fitting(Asker("subagent", True, "", "custom"), "custom") == ""
    assert fitting(Asker("subagent", True), "*") == ""


@pytest.mark.parametrize(
    ("asker", "key"),
    [
        (EXPLORER, "type:Explore"),
        (EXPLORER, "type:expl*"),
        (REVIEWER, "type:custom"),
        (REVIEWER, "kind:subagent"),
        (EXPLORER, "kind:subagent"),
        (Asker("nested", True), "kind:subagent"),
        (Asker("nested", True), "kind:nested"),
        (Asker("title"), "kind:title"),
        (Asker("web"), "kind:w*"),
        (Asker("main"), "kind:main"),
        (Asker("compaction"), "kind:compaction"),
        (Asker("count-tokens"), "kind:count_tokens"),
        (REVIEWER, "model:claude-opus-5-5"),
        (Asker("main", model="claude-opus-5-5[1m]"), "model:claude-opus-5-5"),
        (Asker("title", model="claude-haiku-4-5"), "model:*haiku*"),
    ],
)
def test_types_kinds_and_models(asker, key):
    assert fitting(asker, "nobody", "type:nobody", "model:nobody", key) == key


def test_a_nested_agent_is_nested_first():
    assert fitting(Asker("nested", True), "kind:subagent", "kind:nested") == "kind:nested"
    assert fitting(Asker("subagent", True), "kind:nested") == ""


@pytest.mark.parametrize("kind", ["main", "compaction", "count-tokens"])
def test_case_90_a_conversation_is_moved_by_the_very_word_and_by_no_pattern(kind):
    pattern = f"kind:{kind[:3]}*"
    assert fitting(Asker(kind), "*", "type:*", "kind:*", "kind:subagent", "kind:[a-z]*", pattern) == ""
    assert fitting(Asker(kind), "kind:*", f"kind:{kind}") == f"kind:{kind}"


def test_case_90_a_summary_is_not_moved_by_the_model_either():
    assert fitting(Asker("compaction", model="claude-opus-5-5"), "model:*") == ""
    assert fitting(Asker("title", model="claude-opus-5-5"), "model:*") == "model:*"


@given(
    kind=st.sampled_from([kind for kind in KINDS if kind not in ("subagent", "nested")]),
    keys=st.lists(st.sampled_from(["*", "code-reviewer", "agent:*", "type:*", "type:custom", "kind:subagent"])),
)
def test_case_90_no_rule_for_agents_fits_anything_else(kind, keys):
    # Even with everything about an agent filled in: it is not its turn.
    asker = Asker(kind, False, "code-reviewer", "custom", "claude-opus-5-5")
    assert fitting(asker, *keys, file=FILE) == ""


# ---- which one, of several


def test_the_nearer_to_the_one_agent_the_stronger():
    ladder = ["code-reviewer", "code-*", "(file)", "type:custom", "type:*", "kind:subagent", "kind:*"]
    ladder += ["model:claude-opus-5-5", "model:*"]
    for index, strongest in enumerate(ladder):
        left = [key for key in reversed(ladder[index:]) if key != "(file)"]
        file = FILE if "(file)" in ladder[index:] else None
        wanted = FILE.key if strongest == "(file)" else strongest
        assert fitting(REVIEWER, *left, file=file) == wanted


def test_of_patterns_of_one_step_the_first_wins():
    assert fitting(REVIEWER, "*reviewer", "code*") == "*reviewer"
    assert fitting(REVIEWER, "code*", "*reviewer") == "code*"


def test_a_rule_that_cannot_be_read_is_not_skipped_for_a_weaker_one():
    rules = read_rules({"code-reviewer": 7, "*": "openai:gpt-5.5"})
    found = match(rules, REVIEWER)
    assert found is not None
    assert found.rule.problem


def test_reasons_name_the_evidence():
    def why(asker: Asker, key: str) -> str:
        found = match(read_rules({key: "a:b"}), asker)
        return found.reason if found is not None else ""

    assert why(REVIEWER, "code-reviewer") == "the agent is named code-reviewer, as the spawn ledger says"
    assert why(EXPLORER, "Explore") == "the agent's type is Explore"
    assert why(EXPLORER, "type:Explore") == "the agent's type is Explore"
    assert why(EXPLORER, "kind:subagent") == "it is a request of the kind subagent"
    assert why(EXPLORER, "model:claude-haiku-4-5") == "it asks for the model claude-haiku-4-5"
    noted = match(read_rules({"Explore": {"to": "a:b", "reason": "cheap enough"}}), EXPLORER)
    assert noted is not None
    assert noted.reason == "the agent's type is Explore (cheap enough)"
    found = match((), REVIEWER, FILE)
    assert found is not None
    assert found.reason == "the file of the agent code-reviewer says so"


names = st.text("ab-*?", min_size=1, max_size=6)


@given(asked=st.text("ab-", min_size=1, max_size=6), keys=st.lists(names, max_size=6, unique=True))
def test_a_name_beats_patterns_and_the_first_pattern_others(asked, keys):
    words = [key for key in keys if key == asked]
    patterns = [key for key in keys if not {"*", "?"}.isdisjoint(key) and fnmatchcase(asked, key)]
    expected = [*words, *patterns, ""][0]
    assert fitting(Asker("subagent", True, asked, "custom"), *keys) == expected


ladders = st.permutations(["code-reviewer", "code-*", "type:custom", "kind:subagent", "model:*"])


@given(keys=ladders, file=st.booleans())
def test_the_order_of_the_file_never_beats_the_order_of_evidence(keys, file):
    assert fitting(REVIEWER, *keys, file=FILE if file else None) == "code-reviewer"
    rest = [key for key in keys if key not in ("code-reviewer", "code-*")]
    assert fitting(REVIEWER, *rest, file=FILE if file else None) == (FILE.key if file else "type:custom")


# ---- what a whole set can concern


@pytest.mark.parametrize(
    ("keys", "concerned"),
    [
        ((), set()),
        (("code-reviewer",), set()),
        (("type:Explore",), set()),
        (("kind:subagent",), set()),
        (("kind:main",), {"main"}),
        (("kind:*",), {"side"}),
        (("kind:title",), {"side"}),
        (("kind:compaction",), {"compaction"}),
        (("model:*haiku*",), {"models"}),
        (("kind:count-tokens",), {"side"}),
    ],
)
def test_what_a_set_of_rules_may_concern(keys, concerned):
    rules = RuleSet(read_rules(dict.fromkeys(keys, "a:b")))
    names = ("main", "side", "compaction", "models")
    assert {name for name in names if getattr(rules, name)} == concerned
    assert bool(rules) == bool(keys)


def test_aliases_are_whole_ids():
    keys = ["model:claude-on-gpt", "model:*haiku*", "code-reviewer", "model:opus-[12]"]
    rules = RuleSet(read_rules({**dict.fromkeys(keys, "a:b"), "model:broken": 3}))
    assert [rule.key for rule in rules.aliases] == ["model:claude-on-gpt"]
