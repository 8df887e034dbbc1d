"""The linker: says of each request which conversation, thread and branch it belongs to, and what it follows.

Owns the order in which evidence counts. Never does I/O of its own (a ``History`` may) and reads no clock: times come
with the requests. Invariants: the same requests and answers give the same final links in whatever order parallel ones
arrive; memory is bounded; nothing here raises because of what a body holds.

Order of evidence (seed-003 2.10, client facts 3 and 4): conversation by session id (header, then metadata), without one
by the answer that is continued, the longest known beginning, a summary's words, or the prompt of an agent's call;
thread by agent id, else as in ``speakers``; place by longest common beginning as in ``branches``; who started an agent
as in ``ledger``.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Protocol

from dbproxy.model import shapes
from dbproxy.model.agents import match as match_file
from dbproxy.model.identity import LinkHashes
from dbproxy.model.kinds import AGENT_ID, AGENT_TYPE, CLASS, classify
from dbproxy.model.link import Edge, Link, RequestKind
from dbproxy.model.linking import branches, chains, compaction, ledger, speakers
from dbproxy.model.linking.branches import Place, Seen
from dbproxy.model.linking.links import link
from dbproxy.model.linking.memory import Memory
from dbproxy.model.linking.speakers import Asked
from dbproxy.model.linking.state import FAILED, MAIN, OK, Conversation, Node, Spawn, Thread, family
from dbproxy.model.messages import header

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dbproxy.exchange import Fields
    from dbproxy.model.agents import AgentFiles
    from dbproxy.model.linking.history import History
    from dbproxy.model.messages import MessagesRequest

_MAX_ID: Final = 128  # characters of a session id that is taken as it is
_MAX_OPEN: Final = 4096
_MAX_SPAWNS: Final = 4096  # of one conversation


class Hashes(Protocol):
    """Link hashes of messages, as ``identity.LinkHashes`` gives them."""

    def of(self, spans: Iterable[bytes]) -> list[bytes | None]:
        """A hash for each message; None for those that take no part."""


@dataclass(frozen=True, slots=True)
class _Answered:
    """Where the answer stands that a request continues."""

    conversation: Conversation
    thread: Thread
    node: Node


class Linker:
    """Links requests. One instance per process, used by one thread."""

    def __init__(
        self,
        history: History | None = None,
        *,
        agents: AgentFiles | None = None,
        hashes: Hashes | None = None,
        limit: int = 1000,
    ) -> None:
        """``limit`` is how many conversations stay in memory; others are asked of ``history`` when they return."""
        self._history = history
        self._agents = agents
        self._hashes: Hashes = hashes or LinkHashes()
        self._memory = Memory(history, limit)
        self._memo = chains.ChainMemo()
        self._open: OrderedDict[str, tuple[str, str]] = OrderedDict()

    def __len__(self) -> int:
        """How many conversations are in memory."""
        return len(self._memory)

    def request(
        self,
        id: str,
        at: float,
        view: MessagesRequest,
        fields: Fields,
        *,
        path: str = "/v1/messages",
        scope: str = "",
        account: str = "",
        project: str = "",
    ) -> tuple[Link, ...]:
        """Link a request whose body is complete. The first link is its own; others correct earlier ones.

        ``at`` in Unix seconds, ``account`` the credential's fingerprint, ``project`` the launch's working directory;
        ``scope`` stands in for the account where there is none.
        """
        kind, compacts, why = classify(view, fields, path)
        asked = Asked(id, at, view, fields, kind, compacts, account or scope, project)
        session = self._session(asked)
        if not kind.speaks:
            asked.evidence.append(why)
            return (Link(id, session, "", 0, kind, edge=Edge.ASIDE, evidence=tuple(asked.evidence)),)
        answered = self._continued(asked, session)
        seen = self._seen(asked, session, answered)
        conversation = self._conversation(asked, session, seen, answered)
        file = self._file(asked, conversation)
        if not conversation.recalled and not header(fields, AGENT_ID) and not header(fields, CLASS):
            self._recall(conversation)  # it may be an agent's, and only its prompt says so
        thread = speakers.thread_of(conversation, asked, seen, file)
        asked.evidence.append(why)
        self._memory.touch(conversation, at)
        place = self._aside if kind is RequestKind.COMPACTION else self._turn
        node = place(conversation, thread, asked, seen)
        self._open[id] = (conversation.id, thread.key)
        while len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)
        changed = self._resolve(conversation, thread)
        own = link(conversation, thread, node)
        return (own, *self._corrections(conversation, changed, but=id))

    def answer(self, id: str, message: Mapping[str, Any] | None, *, ok: bool, request_id: str = "") -> tuple[Link, ...]:
        """An exchange is over: ``message`` is the final message as far as it came, ``ok`` whether it came to its end,
        ``request_id`` the upstream's id of it. Returns the links that became better known."""
        place = self._open.pop(id, None)
        conversation = self._memory.get(place[0]) if place else None
        thread = conversation.threads.get(place[1]) if place and conversation else None
        node = next((node for node in _latest(thread) if node.id == id), None) if thread else None
        if conversation is None or thread is None or node is None:
            return ()
        node.state = OK if ok else FAILED
        node.request_id = request_id
        if not message:
            return ()
        node.message_id = shapes.text(message.get("id"))
        node.answer = self._answer_hash(message)
        if node.kind is RequestKind.COMPACTION:
            node.summary = compaction.summary_words(message) if ok else ""
            if node.summary:
                self._memory.index_summary(node.summary, conversation)
            return ()
        started = ledger.answer_calls(message) if ok else []
        for call in started:
            self._spawned(conversation, thread, call, id)
        return self._corrections(conversation, self._resolve(conversation, None)) if started else ()

    def is_new_agent(self, view: MessagesRequest, fields: Fields) -> bool:
        """Does a request name an agent that has not spoken before, or may it be the first of one without a name?"""
        agent = header(fields, AGENT_ID)[:128]
        if not agent and (header(fields, CLASS) or not speakers.begins(view)):
            return False
        conversation = self._memory.get(view.session(fields))
        return conversation is not None and agent not in conversation.threads

    def started(self, id: str, content: Sequence[object]) -> None:
        """An answer is still under way, and these blocks of it are complete: the client may have started agents by
        them already (2.1.329 does so at a block's end, seconds before the answer's)."""
        place = self._open.get(id)
        conversation = self._memory.get(place[0]) if place else None
        thread = conversation.threads.get(place[1]) if place and conversation else None
        if conversation is not None and thread is not None:
            for call in ledger.calls(content):
                self._spawned(conversation, thread, call, id)

    def forget(self, prefix: str = "") -> int:
        """Drop conversations whose id begins with ``prefix`` from memory; how many."""
        return self._memory.forget(prefix)

    def expire(self, now: float) -> int:
        """Make small what has been idle for long; how many conversations."""
        return self._memory.expire(now)

    # -- which conversation

    def _session(self, asked: Asked) -> str:
        session = asked.view.session(asked.fields)
        if not session:
            return ""
        source = "x-claude-code-session-id" if header(asked.fields, b"x-claude-code-session-id") else "metadata.user_id"
        if len(session) > _MAX_ID or not session.isprintable():
            session = _made_up(session)
        asked.say("session", session, source)
        return session

    def _conversation(self, asked: Asked, session: str, seen: Seen, answered: _Answered | None) -> Conversation:
        if session:
            found = self._memory.get(session)
            return found or self._new(asked, session)
        if answered:
            asked.say("session", answered.conversation.id, "previous_message_id")
            return answered.conversation
        known = self._by_content(asked, seen)
        if known:
            return known
        made = self._new(asked, _made_up(f"{asked.account}\n{asked.id}"))
        asked.say("session", made.id, "no known beginning")
        return made

    def _new(self, asked: Asked, id: str) -> Conversation:
        client = family(header(asked.fields, b"user-agent"))
        made = Conversation(id, asked.account, client, asked.at, {}, [])
        self._memory.put(made)
        return made

    def _by_content(self, asked: Asked, seen: Seen) -> Conversation | None:
        """A conversation for a client that names none: of the same account and program, with the longest beginning."""
        client = family(header(asked.fields, b"user-agent"))

        def same(candidates: Iterable[Conversation]) -> list[Conversation]:
            return [one for one in candidates if one.account == asked.account and one.family == client]

        best = _deepest(same(self._memory.rooted(seen.chain)), seen)
        if best is None:
            best = _deepest(same(self._memory.stored(seen.chain, asked.account)), seen)
        if best:
            asked.say("session", best.id, "longest prefix", f"{seen.depth} messages")
            return best
        text = compaction.continuation(asked.view)
        found = same(self._memory.summarised(compaction.summaries(text))) if text else []
        if found:
            asked.say("session", found[0].id, "summary")
            return found[0]
        prompts = ledger.prompts(asked.view) if speakers.begins(asked.view) else ()
        found = [one for one in same(self._memory.started(prompts)) if speakers.waiting(one, prompts)]
        if found:
            asked.say("session", found[0].id, "prompt of an agent's call")
            return found[0]
        return None

    # -- the history it shows

    def _continued(self, asked: Asked, session: str) -> _Answered | None:
        """The answer that the request continues, if it names one and that is known (API facts 2.6)."""
        message_id = asked.view.continues
        if not message_id:
            return None
        conversation = self._memory.get(session) if session else None
        found = _with_message(conversation, message_id)
        if found is None and self._history:
            stored = self._history.answered(message_id)
            conversation = self._memory.get(stored[0]) if stored else None
            found = _with_message(conversation, message_id)
        if found is None:
            asked.say("history", "not stored", "previous_message_id", message_id)
            return None
        asked.continued_thread = found.thread.key
        asked.say("history", found.node.id, "previous_message_id", message_id)
        self._know_answer(found.node)
        return found

    def _know_answer(self, node: Node) -> None:
        """After a restart: what answered an exchange."""
        if not node.answer and node.state == OK and self._history:
            node.answer = self._answer_hash(shapes.parse(self._history.message(node.id) or b""))

    def _answered(self, placed: Place, seen: Seen) -> bool:
        """Does the request bring back the answer that its parent got?"""
        if placed.parent:
            self._know_answer(placed.parent)
        return branches.answered(placed.parent, placed, seen)

    def _seen(self, asked: Asked, session: str, answered: _Answered | None) -> Seen:
        view = asked.view
        hashes = self._hashes.of(view.spans)
        if asked.kind is RequestKind.COMPACTION:
            index, rest = compaction.without_instruction(view)
            if index < len(hashes):
                hashes[index] = self._hashes.of([rest])[0] if rest else None
        asked.places = [index for index, one in enumerate(hashes) if one is not None]
        taken = [one for one in hashes if one is not None]
        key = f"{session}/{header(asked.fields, AGENT_ID)}"
        lead = before = b""
        if answered:
            branch = answered.thread.branch(answered.node.branch)
            lead = branches.whole(answered.thread, branch, answered.node.tip) if branch else b""
            before = bytes(len(lead))
            if answered.node.answer:
                lead += chains.extend(lead[-chains.WIDTH :], [answered.node.answer])
                before += answered.node.answer
        elif view.continues is not None:
            # Its beginning is not known: the answer's name stands for it, so that what follows is linked to this.
            lead = chains.extend(b"", [blake2b((view.continues or asked.id).encode(), digest_size=16).digest()])
            before = bytes(len(lead))
        chain = lead + self._memo.chain(key, lead[-chains.WIDTH :], taken)
        billing = view.billing
        return Seen(
            chain,
            before + b"".join(taken),
            view.follows or view.continues or "",
            billing.get("cc_prev_req", ""),
            header(asked.fields, b"x-claude-code-prompt-id"),
        )

    def _answer_hash(self, message: object) -> bytes:
        content = shapes.mapping(message).get("content")
        if not content:
            return b""
        return self._hashes.of([shapes.written({"role": "assistant", "content": content})])[0] or b""

    # -- where it stands

    def _aside(self, conversation: Conversation, thread: Thread, asked: Asked, seen: Seen) -> Node:
        """A compaction request: hangs beside its parent and moves nothing."""
        parent, number, depth = branches.nearest(thread, seen.chain)
        earlier = [node for node in thread.asides if node.last == seen.chain[-chains.WIDTH :]]
        node = Node(
            asked.id,
            asked.at,
            number,
            0,
            0,
            asked.kind,
            Edge.ASIDE,
            parent.id if parent else "",
            asked.compaction,
            len(earlier) + 1,
            last=seen.chain[-chains.WIDTH :],
        )
        asked.say("parent", node.parent, "longest prefix", f"depth {depth} of {seen.depth}")
        node.evidence = tuple(asked.evidence)
        thread.asides.append(node)
        return node

    def _turn(self, conversation: Conversation, thread: Thread, asked: Asked, seen: Seen) -> Node:
        """A turn of the main line or of an agent."""
        placed = _replayed(thread, seen, asked) or branches.place(thread, seen)
        summary = None
        if placed.rewritten or placed.edge in (Edge.ROOT, Edge.REWIND):
            summary = _compacted(thread, asked, placed)
            if summary and placed.rewritten:  # what looked rewritten are the messages kept behind the summary
                placed = branches.place(thread, seen, rewritten=False)
        kind, compacts, parent, edge = asked.kind, asked.compaction, placed.parent, placed.edge
        source, detail = placed.source, f"depth {placed.depth} of {seen.depth}"
        if kind in (RequestKind.MAIN, RequestKind.AFTER_COMPACTION) and thread.key != MAIN:
            kind = RequestKind.SUBAGENT if kind is RequestKind.MAIN else kind
        if edge is Edge.RETRY and parent:
            kind, compacts = parent.kind, parent.compaction
        elif summary and edge in (Edge.ROOT, Edge.REWIND):
            how, compacted = summary
            parent, edge, source, detail = compacted, Edge.COMPACTED, how, ""
            kind, compacts = RequestKind.AFTER_COMPACTION, asked.compaction or compacted.compaction
        elif edge is Edge.ROOT and not thread.branches:
            parent, edge, source, detail = self._beginning(conversation, thread, asked, seen, detail)
        spawner = self._scan(conversation, thread, asked, placed)
        node = self._grow(thread, asked, seen, placed, edge)
        node.kind, node.compaction, node.parent = kind, compacts, parent.id if parent else ""
        if edge is Edge.RETRY and parent:
            node.attempt = parent.attempt + 1
        for call, exchange in spawner:
            self._spawned(conversation, thread, call, exchange)
        asked.say("parent", node.parent, source, detail)
        asked.say("branch", str(node.branch), str(edge))
        # Only an agent's place may become better known later.
        node.evidence = tuple(asked.evidence)
        self._memory.index(conversation, thread)
        return node

    def _beginning(
        self, conversation: Conversation, thread: Thread, asked: Asked, seen: Seen, detail: str
    ) -> tuple[Node | None, Edge, str, str]:
        """A thread's first request: an agent's start, another session's history gone on with, or the very beginning."""
        if thread.key != MAIN:
            return None, Edge.SPAWN, "agent", ""
        if seen.depth >= 2 and asked.view.continues is None:
            for origin in (*self._memory.rooted(seen.chain), *self._memory.stored(seen.chain, asked.account)):
                main = origin.threads.get(MAIN)
                if origin is conversation or main is None:
                    continue
                there = branches.place(main, seen)
                if there.parent and (there.depth >= 2 or self._answered(there, seen)):
                    return there.parent, Edge.FORK, "longest prefix", f"depth {there.depth} of {origin.id}"
        return None, Edge.ROOT, "no common message", detail

    def _grow(self, thread: Thread, asked: Asked, seen: Seen, placed: Place, edge: Edge) -> Node:
        """Put the request on its branch."""
        base = placed.depth
        if edge is Edge.RETRY:
            branch = thread.branches[placed.branch - 1]
            base = seen.depth
            if placed.rewritten:
                base = placed.depth
                branches.rewrite(thread, branch, placed.depth, seen.chain)
        elif edge is Edge.NEXT:
            branch = thread.branches[placed.branch - 1]
            if placed.rewritten:
                branches.rewrite(thread, branch, placed.depth, seen.chain)
            else:
                branches.grow(branch, seen.chain)
        else:
            branch = branches.begin(thread, placed.branch if placed.depth else 0, placed.depth, seen.chain)
        node = Node(
            asked.id,
            asked.at,
            branch.number,
            seen.depth,
            base,
            asked.kind,
            edge,
            last=seen.last,
            prompt_id=seen.prompt_id,
            partial=asked.view.continues is not None,
        )
        branch.nodes.append(node)
        if edge is Edge.RETRY:
            branches.thin(branch, node.tip)
        return node

    # -- agents

    def _file(self, asked: Asked, conversation: Conversation) -> str:
        """The name of the agent file that opens the system prompt; asked for once per agent."""
        thread = conversation.threads.get(header(asked.fields, AGENT_ID) or MAIN)
        if self._agents is None or (thread and thread.branches and header(asked.fields, AGENT_ID)):
            return ""
        if header(asked.fields, AGENT_TYPE) not in ("", "custom"):
            return ""
        found = match_file(asked.view.system, self._agents.known(asked.project))
        return found.name if found else ""

    def _scan(
        self, conversation: Conversation, thread: Thread, asked: Asked, placed: Place
    ) -> list[tuple[ledger.Call, str]]:
        """Read the messages that were not known: which agents they start, and which ids their agents have."""
        first = 0
        if placed.depth and asked.view.continues is None and not placed.rewritten:
            first = (
                asked.places[placed.depth - 1] + 1 if placed.depth <= len(asked.places) else asked.view.message_count
            )
        found = ledger.read(asked.view, first)
        for tool, agent in found.joins:
            self._joined(conversation, tool, agent)
        calls = []
        for index, call in found.calls:
            before = sum(1 for place in asked.places if place < index)
            branch = thread.branch(placed.branch)
            node = branches.follow(thread, [branch], before)[0] if branch else None
            if asked.view.continues is not None:
                node = placed.parent
            calls.append((call, node.id if node and node.tip <= before else ""))
        return calls

    def _joined(self, conversation: Conversation, tool: str, agent: str) -> None:
        for spawn in conversation.spawns:
            if spawn.id == tool:
                spawn.agent = agent
                return
        if len(conversation.joins) < _MAX_SPAWNS:
            conversation.joins[tool] = agent

    def _spawned(self, conversation: Conversation, thread: Thread, call: ledger.Call, exchange: str) -> None:
        """An agent's call became known, by an answer or in the transcript."""
        if not conversation.recalled:
            self._recall(conversation)
        for spawn in conversation.spawns:
            if spawn.id == call.id:
                spawn.exchange = spawn.exchange or exchange
                spawn.type = spawn.type or call.type
                spawn.prompt = spawn.prompt or call.prompt
                return
        if len(conversation.spawns) >= _MAX_SPAWNS:
            return
        number = 1 + max((spawn.number for spawn in conversation.spawns if spawn.thread == thread.key), default=0)
        agent = conversation.joins.pop(call.id, "")
        conversation.spawns.append(Spawn(call.id, thread.key, exchange, number, call.type, call.prompt, agent))
        if not any(one.hinted for one in conversation.threads.values()):
            self._memory.index_prompt(call.prompt, conversation)

    def _recall(self, conversation: Conversation) -> None:
        """After a restart: read the stored answers again for the calls whose agents had not spoken yet."""
        conversation.recalled = True
        if self._history is None:
            return
        known = {spawn.id: spawn for spawn in conversation.spawns}
        for thread in list(conversation.threads.values()):
            place = 0
            for node in sorted(thread.nodes(), key=lambda node: node.id):
                if node.state != OK or node.kind is RequestKind.COMPACTION:
                    continue
                message = self._history.message(node.id) or b""
                if b'"tool_use"' not in message:
                    continue
                for call in ledger.answer_calls(shapes.parse(message)):
                    place += 1
                    spawn = known.get(call.id)
                    if spawn:
                        spawn.exchange, spawn.prompt = spawn.exchange or node.id, call.prompt
                        place = max(place, spawn.number)
                        continue
                    used = {one.number for one in conversation.spawns if one.thread == thread.key}
                    number = place if place not in used else max(used) + 1
                    spawn = Spawn(call.id, thread.key, node.id, number, call.type, call.prompt)
                    conversation.spawns.append(spawn)
            thread.agent_tool = thread.agent_tool or place > 0

    def _resolve(self, conversation: Conversation, speaker: Thread | None) -> list[Thread]:
        """Match agents with their calls anew; the threads whose match changed."""
        agents = [thread for thread in conversation.threads.values() if thread.key != MAIN]
        if not agents:
            return []
        if not conversation.recalled and any(not thread.spawn for thread in agents):
            self._recall(conversation)
        found = ledger.match(agents, conversation.spawns)
        changed = []
        for thread in agents:
            matched = found.get(thread.key)
            spawn, proof = (matched.spawn.id, matched.proof) if matched else ("", "")
            if (thread.spawn, thread.proof) != (spawn, proof):
                thread.spawn, thread.proof = spawn, proof
                changed.append(thread)
        return changed

    # -- what comes out

    def _corrections(self, conversation: Conversation, threads: list[Thread], but: str = "") -> tuple[Link, ...]:
        return tuple(
            link(conversation, thread, node)
            for thread in threads
            for node in sorted(thread.nodes(), key=lambda node: node.id)
            if node.id != but
        )


def _made_up(text: str) -> str:
    return "c-" + blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _latest(thread: Thread) -> Iterable[Node]:
    for branch in reversed(thread.branches):
        yield from reversed(branch.nodes)
    yield from reversed(thread.asides)


def _with_message(conversation: Conversation | None, message_id: str) -> _Answered | None:
    if conversation is None:
        return None
    for thread in conversation.threads.values():
        for node in _latest(thread):
            if node.message_id == message_id and node.kind is not RequestKind.COMPACTION:
                return _Answered(conversation, thread, node)
    return None


def _deepest(candidates: list[Conversation], seen: Seen) -> Conversation | None:
    """The conversation that goes on with this history, if one of them surely does."""
    best: tuple[tuple[int, bool, float], Conversation] | None = None
    for one in candidates:
        thread = speakers.nearest_thread(one, seen)
        if thread is None:
            continue
        placed = branches.place(thread, seen)
        parent = placed.parent
        if seen.depth == 1 and not (parent and placed.edge is Edge.RETRY and parent.state == FAILED):
            continue  # the same first words are said in many conversations
        if placed.depth < 2 and (parent is None or parent.tip > placed.depth):
            continue
        rank = (placed.depth, branches.answered(parent, placed, seen), one.last)
        if best is None or rank > best[0]:
            best = (rank, one)
    return best[1] if best else None


def _compacted(thread: Thread, asked: Asked, placed: Place) -> tuple[str, Node] | None:
    """How and which summary this request starts from, None if it starts from none that is known."""
    told = asked.kind is RequestKind.AFTER_COMPACTION
    if not thread.asides or (placed.depth and not told):
        return None
    text = compaction.continuation(asked.view)
    if not told and not text:
        return None
    summaries = compaction.summaries(text) if text else ()
    newest = sorted(thread.asides, key=lambda node: (node.state == OK, node.id), reverse=True)
    for node in newest:
        if node.summary and any(one.startswith(node.summary) for one in summaries):
            return "summary", node
    return ("context-compacted" if told else "continuation"), newest[0]


def _replayed(thread: Thread, seen: Seen, asked: Asked) -> Place | None:
    """A continuation that the server refused comes again with its whole history (API facts 2.6): a retry."""
    if asked.view.continues is not None or not thread.branches:
        return None
    for branch in reversed(thread.branches):
        tip = branch.tip
        if tip and tip.partial and tip.state != OK and tip.last and tip.last == seen.last:
            found = branches.shared(thread, branch, seen.chain)
            return Place(Edge.RETRY, branch.number, found, tip, "refused continuation", rewritten=found < branch.depth)
    return None
