"""Any sequence of turns, edits, rewinds, forks, retries and compactions gives back the branches that made it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from linktalk import INSTRUCTION, Talk, call, continuation, launched, result, said, user

from dbproxy.model.link import Edge, Link, RequestKind

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["turn", "turn", "turn", "tool", "rewind", "again", "retry", "compact", "fork", "title", "clear"]
        ),
        st.integers(0, 1000),
    ),
    max_size=40,
)


@dataclass
class Line:
    """What the model of a client knows of a branch: its messages, and the exchange at each length asked for."""

    number: int
    messages: list[dict[str, Any]]
    asked: dict[int, str] = field(default_factory=dict)


@dataclass
class Client:
    """A client that edits, rewinds, forks and compacts, and knows what its requests are."""

    talk: Talk
    session: str
    lines: list[Line] = field(default_factory=list)
    words: int = 0
    sessions: int = 1
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    line: Line = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def say(self) -> str:
        self.words += 1
        return f"sentence number {self.words}"

    def start(self) -> None:
        """A first message that shares nothing with what was said before."""
        self.line = Line(len(self.lines) + 1, [user(self.say())])
        self.lines.append(self.line)
        self.ask(Edge.ROOT, "")

    def ask(self, edge: Edge, parent: str, kind: RequestKind = RequestKind.MAIN, *, attempt: int = 1) -> None:
        line = self.line
        self.words += 1
        marked = [*line.messages[:-1], moved_mark(line.messages[-1], self.words)]
        link = self.talk.ask(marked, session=self.session)
        assert (link.conversation, link.thread, link.branch) == (self.session, "main", line.number)
        assert (link.edge, link.parent, link.kind, link.attempt) == (edge, parent, kind, attempt)
        line.asked[len(line.messages)] = link.exchange

    def answer(self, *blocks: Any) -> dict[str, Any]:
        """The answer to the line's last request, the same one if it was answered before."""
        exchange = self.line.asked[len(self.line.messages)]
        if exchange not in self.answers:
            self.answers[exchange] = self.talk.reply(exchange, *(blocks or (self.say(),)))
        return self.answers[exchange]

    def turn(self, pick: int) -> None:
        before = self.line.asked[len(self.line.messages)]
        answer = self.answer({"type": "thinking", "thinking": self.say(), "signature": "s"}, self.say())
        if pick % 3 == 0:  # thinking does not always come back
            answer = {**answer, "content": [one for one in answer["content"] if one["type"] != "thinking"]}
        self.line.messages.append(answer)
        self.line.messages.append(user("<system-reminder>now</system-reminder>", self.say()))
        if pick % 5 == 0:
            self.line.messages.append({"role": "system", "content": self.say()})
        self.ask(Edge.NEXT, before)

    def tool(self, pick: int) -> None:
        before = self.line.asked[len(self.line.messages)]
        self.words += 1
        id = f"toolu_{self.words}"
        answer = self.answer(
            {"type": "tool_use", "id": id, "name": "Bash", "input": {"command": self.say(), "pick": pick}}
        )
        used = answer["content"][-1].get("id")
        self.line.messages += [answer, user(result(used, self.say()) if used else self.say())]
        self.ask(Edge.NEXT, before)

    def rewind(self, pick: int) -> None:
        """Back to a message that was answered, with other words from there on."""
        places = [place for place in sorted(self.line.asked) if place < len(self.line.messages)]
        if not places:
            return
        place = places[pick % len(places)]
        old = self.line
        self.line = Line(len(self.lines) + 1, [*old.messages[: place + 1], user(self.say())])
        self.line.asked = {at: id for at, id in old.asked.items() if at <= place}
        self.lines.append(self.line)
        self.ask(Edge.REWIND, old.asked[place])

    def again(self, pick: int) -> None:
        """Go on with an older branch."""
        self.line = self.lines[pick % len(self.lines)]

    def retry(self, _: int) -> None:
        before = self.line.asked[len(self.line.messages)]
        if before in self.answers:
            return
        attempt = self.talk.links[before].attempt
        kind = self.talk.links[before].kind
        self.talk.reply(before, ok=False)
        self.ask(Edge.RETRY, before, kind, attempt=attempt + 1)

    def compact(self, pick: int) -> None:
        before = self.line.asked[len(self.line.messages)]
        summary = f"{self.say()} which {self.say()} after {self.say()}"
        answer = self.answer()
        after = [answer] if pick % 2 else []
        aside = self.talk.ask([*self.line.messages, answer, user(INSTRUCTION)], session=self.session)
        assert (aside.kind, aside.edge, aside.branch) == (RequestKind.COMPACTION, Edge.ASIDE, self.line.number)
        assert aside.parent == before
        assert not aside.points
        self.talk.reply(aside, f"<analysis>long</analysis>\n\n<summary>\n{summary}\n</summary>")
        self.line = Line(len(self.lines) + 1, [user(continuation(summary)), *after, user(self.say())])
        self.lines.append(self.line)
        self.ask(Edge.COMPACTED, aside.exchange, RequestKind.AFTER_COMPACTION)

    def fork(self, _: int) -> None:
        """The same history goes on under another session."""
        before = self.line.asked[len(self.line.messages)]
        history = [*self.line.messages, self.answer()]
        self.sessions += 1
        self.session = f"session-{self.sessions}"
        self.line = Line(1, [*history, user(self.say())])
        self.lines = [self.line]
        self.ask(Edge.FORK, before)

    def title(self, _: int) -> None:
        system = [{"type": "text", "text": "You are naming a coding session"}]
        link = self.talk.ask([user("<session>x</session>")], session=self.session, tools=[], system=system)
        assert (link.kind, link.thread, link.branch, link.parent) == (RequestKind.TITLE, "", 0, "")

    def clear(self, _: int) -> None:
        self.start()


def moved_mark(message: dict[str, Any], seed: int) -> dict[str, Any]:
    """The message as the client writes it when it is the last one: a block list with a cache mark."""
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    mark = {"cache_control": {"type": "ephemeral"}} if seed % 2 else {}
    return {**message, "content": [*content[:-1], {**content[-1], **mark}]}


def play(steps: list[tuple[str, int]], *, restarts: bool = False) -> Client:
    client = Client(Talk(), "session-1")
    for step, pick in steps:
        if restarts and pick % 4 == 0:
            client.talk = client.talk.restarted()
        getattr(client, step)(pick)
    return client


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_a_sequence_gives_back_its_branches(steps: list[tuple[str, int]]) -> None:
    play(steps)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_a_sequence_gives_back_its_branches_across_restarts(steps: list[tuple[str, int]]) -> None:
    play(steps, restarts=True)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_idle_conversations_are_small_and_wake_up_the_same(steps: list[tuple[str, int]]) -> None:
    client = Client(Talk(), "session-1")
    for step, pick in steps:
        if pick % 3 == 0:
            client.talk.linker.expire(client.talk.now + 100_000)
        getattr(client, step)(pick)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_points_are_whole(steps: list[tuple[str, int]]) -> None:
    """The points of a branch have no holes, and go down to where another branch holds the rest."""
    talk = play(steps).talk
    depths: dict[tuple[str, str, int], list[int]] = {}
    chains: dict[tuple[str, str, int, int], bytes] = {}
    for _, link in sorted(talk.links.items()):
        for point in link.points:
            depths.setdefault((link.conversation, link.thread, link.branch), []).append(point.depth)
            chains[link.conversation, link.thread, link.branch, point.depth] = point.chain
    for found in depths.values():
        assert found == list(range(found[0], found[-1] + 1))


def agents_in_parallel(order: list[int], *, named: bool) -> dict[str, Link]:
    """Main starts five agents at once, two with equal prompts; their requests arrive in the given order."""
    talk = Talk()
    first = talk.ask([user("do it")], id="e0")
    prompts = ["one", "two", "same", "same", "five"]
    calls = [call(f"toolu_{i}", prompt) for i, prompt in enumerate(prompts)]
    answer = talk.reply(first, *calls)
    if named:
        results = user(*(launched(f"toolu_{i}", f"agent{i}") for i in range(5)))
    else:
        results = user(*(result(f"toolu_{i}", "done") for i in range(5)))
    for i in order:
        if i == 5:
            link = talk.ask([user("do it"), answer, results], id="e9")
            assert link.parent == "e0"
            continue
        headers = {"x-claude-code-agent-id": f"agent{i}"} if named else {}
        asked = [user(prompts[i])]
        link = talk.ask(asked, id=f"e{i + 1}", headers=headers, tools=[{"name": "Read"}])
        asked += [talk.reply(link, {"type": "tool_use", "id": f"toolu_read{i}", "name": "Read", "input": {}})]
        asked += [user(result(f"toolu_read{i}", "text"))]
        second = talk.ask(asked, id=f"e{i + 1}b", headers=headers, tools=[{"name": "Read"}])
        assert second.parent == f"e{i + 1}"
    return talk.links


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(6)))
def test_parallel_agents_in_any_order(order: list[int]) -> None:
    links = agents_in_parallel(order, named=True)
    for i in range(5):
        for id in (f"e{i + 1}", f"e{i + 1}b"):
            agent = links[id].agent
            assert agent is not None
            assert (agent.thread, agent.number, agent.tool_use_id) == (f"agent{i}", i + 1, f"toolu_{i}")


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(5)))
def test_parallel_agents_without_ids_in_any_order(order: list[int]) -> None:
    """Old clients: known by their prompts. Of two equal ones the request with the earlier id is the first call's."""
    links = agents_in_parallel([*order, 5], named=False)
    for i in range(5):
        for id in (f"e{i + 1}", f"e{i + 1}b"):
            agent = links[id].agent
            assert agent is not None
            assert (agent.thread, agent.number) == (f"toolu_{i}", i + 1)


def test_a_regenerated_answer_is_told_from_the_first() -> None:
    """Back to a prompt and the same prompt again: two branches of equal messages; the answers tell which goes on."""
    talk = Talk()
    one = talk.ask([user("a")])
    first = talk.reply(one, "first answer")
    talk.reply(talk.ask([user("a"), first, user("b")]), "x")
    again = talk.ask([user("a")])
    assert (again.edge, again.branch) == (Edge.REWIND, 2)
    second = talk.reply(again, "second answer")
    new = talk.ask([user("a"), second, user("c")])
    assert (new.edge, new.branch, new.parent) == (Edge.NEXT, 2, again.exchange)
    old = talk.ask([user("a"), first, user("b"), said("x"), user("d")])
    assert (old.edge, old.branch) == (Edge.NEXT, 1)


def test_a_rewind_of_a_rewound_branch_follows_its_own_history() -> None:
    """The branch that it came from had gone further; that is not this history."""
    talk = Talk()
    one = talk.ask([user("a")])
    first = talk.reply(one, "b")
    talk.reply(talk.ask([user("a"), first, user("c")]), "d")
    left = talk.ask([user("a"), first, user("other")])
    answer = talk.reply(left, "e", ok=False)
    talk.reply(talk.ask([user("a"), first, user("other"), answer, user("f")]), "g")
    again = talk.ask([user("a"), first, user("other"), answer, user("h")])
    assert (again.edge, again.parent, again.branch) == (Edge.REWIND, left.exchange, 3)
