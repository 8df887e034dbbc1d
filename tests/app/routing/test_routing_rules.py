"""What the routing plugin decides in a running proxy: which agent goes where, for how long, and what stays."""

from __future__ import annotations

import gzip
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from blackbox import Watcher, read_response, request
from buffertalk import until
from dbproxy_subagent_routing import SubagentRouting
from dbproxy_subagent_routing.targets import NO_KEY
from foreignpeer import SAYS_HI, Capabilities, Provider, peer
from rig import open_rig

from dbproxy.api import App, Declined, Route, Target, hookimpl
from dbproxy.app import reload
from dbproxy.app.explaining import sentences
from dbproxy.config.tables import frozen
from dbproxy.exchange import Outcome
from dbproxy.model.route import DECLINED, ROUTED
from dbproxy.paths import user_config_file
from dbproxy.scope import Scope, new_id, new_secret
from dbproxy.store.reader import Reader
from dbproxy.testing.origin import Answer, Script, say, tool_use

SESSION = "01234567-89ab-cdef-0123-456789abcdef"
OTHER = "fedcba98-7654-3210-fedc-ba9876543210"
NEWER = "User-Agent: claude-cli/2.1.329 (external, cli)\r\n"
OLDER = "User-Agent: claude-cli/2.1.112 (external, cli)\r\n"
CLAUDE = "from Claude"
TOOLS = [{"name": name, "input_schema": {"type": "object", "properties": {}}} for name in ("Agent", "Bash", "Read")]
BILLING = "x-anthropic-billing-header: cc_version=2.1.329.abc;"
IDENTITY = "You are a Claude agent, built on Anthropic's Claude Agent SDK."
REVIEWER = {"code-reviewer": "elsewhere:big"}


class Bringer:
    """A plugin that brings providers and decides nothing."""

    def __init__(self, *named: Provider) -> None:
        self.named = list(named)

    @hookimpl
    def providers(self) -> Any:
        return self.named


class World:
    """A rig with rules, a provider's server, and a launch whose working directory is ``project``."""

    def __init__(self, rig: Any, server: Any, bringer: Bringer, plugin: SubagentRouting, scope: Scope) -> None:
        self.rig, self.server, self.bringer, self.plugin, self.scope = rig, server, bringer, plugin, scope
        self.watcher = Watcher()
        self.asked = 0

    def set_routes(self, routes: Any) -> None:
        """What the user's file says, without the wait for somebody to look at it."""
        self.rig.proxy.files.user = {"routes": frozen(routes)}
        self.rig.proxy.renew_settings()

    async def change_providers(self, *named: Provider) -> None:
        self.bringer.named[:] = named
        await self.rig.proxy.routing.collect(None)

    async def send(self, body: dict[str, Any], fields: dict[str, str], *, client: str = NEWER, path: str = "", **how):
        extra = client + "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
        userinfo = how.pop("userinfo", self.scope.userinfo)
        stream = await self.rig.tls(userinfo=userinfo)
        target, sent = path or "/v1/messages?beta=true", json.dumps(body).encode()
        if how.pop("coding", ""):
            sent, extra = gzip.compress(sent), f"{extra}Content-Encoding: gzip\r\n"
        await stream.send_all(request(target, body=sent, extra=extra, **how))
        with trio.fail_after(20):
            answer = await read_response(stream)
        await stream.aclose()
        self.asked += 1
        await self.watcher.outcomes(self.asked)
        return answer

    async def main(self, *calls: tuple[str, str], session: str = SESSION, said: str = "main", **more: Any):
        """A turn of the main line, whose answer starts these agents (type, prompt)."""
        self.starts = [
            tool_use("Agent", {"description": "d", "prompt": prompt, "subagent_type": kind}) for kind, prompt in calls
        ]
        body = {**_body([_user(said)], "Be of use."), "tools": TOOLS, **more}
        fields = {"x-claude-code-session-id": session, "x-claude-code-request-class": "main"}
        return await self.send(body, fields)

    async def agent(
        self,
        id: str = "a1",
        prompt: str = "do it",
        *,
        type: str = "custom",
        history: tuple[Any, ...] = (),
        session: str = SESSION,
        system: str = "You are somebody.",
        fields: dict[str, str] | None = None,
        send: dict[str, Any] | None = None,
        **more: Any,
    ):
        """A turn of an agent."""
        body = {**_body([_user(prompt), *history], system), "tools": TOOLS[1:], **more}
        named = {
            "x-claude-code-session-id": session,
            "x-claude-code-request-class": "subagent",
            "x-claude-code-agent-id": id,
            "x-claude-code-agent-type": type,
            **(fields or {}),
        }
        return await self.send(body, named, **(send or {}))

    async def reviewer(self, id: str = "a1", prompt: str = "review it", **how: Any):
        """The first turn of a code-reviewer that the main line started."""
        await self.main(("code-reviewer", prompt))
        return await self.agent(id, prompt, **how)

    def answer(self, received: Any) -> Any:
        return say(CLAUDE, *self.starts) if self.starts and received.role == "main" else say(CLAUDE)

    starts: list[Any] = []  # noqa: RUF012 - each turn sets its own
    on_models: Any = None

    @property
    def decision(self) -> Any:
        """What was decided about the latest request."""
        return self.watcher.finished[-1].attributes.get("route")

    @property
    def held(self) -> bool:
        """Was the latest request's body read whole for a policy?"""
        return self.watcher.finished[-1].body is not None

    def events(self, name: str) -> list[dict[str, Any]]:
        log = self.rig.data_dir / "logs" / "dbproxy.jsonl"
        lines = log.read_text("utf-8").splitlines() if log.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == name]

    async def told(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        await until(lambda: len(self.events(name)) >= count, lambda: f"{len(self.events(name))} {name}")
        return self.events(name)

    async def explained(self) -> str:
        await self.rig.proxy.archive.flush(5.0)
        with Reader.open(self.rig.proxy.paths.database) as reader:
            return " ".join(sentences(reader.exchange("last")))


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def _said(text: str = "well") -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _body(messages: list[Any], system: str, session: str = SESSION) -> dict[str, Any]:
    return {
        "model": "claude-opus-5-5",
        "max_tokens": 1000,
        "stream": True,
        "system": [{"type": "text", "text": text} for text in (BILLING, IDENTITY, system)],
        "messages": messages,
        "metadata": {"user_id": json.dumps({"device_id": "d", "account_uuid": "", "session_id": session})},
    }


def routed(answer: Any) -> str:
    """The target that answered, "" for Claude."""
    assert answer.status == 200, answer.body
    return answer.fields.get("x-dbproxy-routed-model", "")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """``async with world(routes, providers=...) as w``. Its file of settings is not followed unless a test says so."""
    monkeypatch.setattr(reload, "_SOON", 3600.0)

    @asynccontextmanager
    async def make(routes=REVIEWER, *, providers=None, plugin=None, plugins=(), **settings):
        async with peer(SAYS_HI) as server:
            named = providers(server.port) if providers else [Provider(server.port)]
            bringer, plugin = Bringer(*named), plugin or SubagentRouting()
            project = tmp_path / "project"
            (project / ".git").mkdir(parents=True, exist_ok=True)
            scope = Scope(new_id(), new_secret(), str(project), 1)
            made = World(None, server, bringer, plugin, scope)
            given = (("bringer", bringer), ("routing", plugin), ("watcher", made.watcher), *plugins)
            off = "subagent-routing,double-buffer,providers"
            script = Script(decide=lambda received: made.answer(received) if received.is_messages else made.on_models)
            async with open_rig(tmp_path, script, plugins=given, plugins_disabled=off, **settings) as rig:
                made.rig = rig
                scope.save(rig.proxy.paths.scopes)
                made.set_routes(routes)
                yield made

    return make


# ---- who goes where


async def test_an_agent_goes_where_its_name_says_and_the_main_line_stays(world):
    async with world() as w:
        assert routed(await w.main(("code-reviewer", "review it"))) == ""
        assert not w.held
        assert routed(await w.agent("a1", "review it")) == "elsewhere:big"
        assert w.decision.outcome == ROUTED
        assert w.decision.rule == "code-reviewer = elsewhere:big"
        assert w.decision.reason == "the agent is named code-reviewer, as the spawn ledger says"
        assert [received.role for received in w.rig.origin.requests] == ["main"]
        assert "review it" in w.server.bodies[0].decode()
        said = await w.explained()
        assert "by the rule code-reviewer = elsewhere:big, because the agent is named code-reviewer" in said


async def test_one_of_the_clients_own_agents_goes_by_its_type(world):
    async with world({"Explore": "elsewhere:small", "type:Plan": "elsewhere:plan"}) as w:
        assert routed(await w.agent("a1", type="Explore")) == "elsewhere:small"
        assert routed(await w.agent("a2", type="Plan")) == "elsewhere:plan"
        assert routed(await w.agent("a3", type="general-purpose")) == ""
        assert w.decision is None


async def test_an_older_client_says_nothing_and_is_understood_all_the_same(world):
    fields = {"x-claude-code-session-id": SESSION}
    first = {**_body([_user("main")], "Be of use."), "tools": TOOLS}
    async with world({"code-reviewer": "elsewhere:big", "Explore": "elsewhere:small"}) as w:
        w.starts = [
            tool_use("Task", {"prompt": "review it", "subagent_type": "code-reviewer"}),
            tool_use("Task", {"prompt": "look around", "subagent_type": "Explore"}),
        ]
        assert routed(await w.send(first, fields, client=OLDER)) == ""
        for prompt, target in (("review it", "elsewhere:big"), ("look around", "elsewhere:small")):
            body = {**_body([_user(prompt)], "You are somebody."), "tools": TOOLS[1:]}
            assert routed(await w.send(body, fields, client=OLDER)) == target
            body["messages"] += [_said("Hello"), _user("go on")]
            assert routed(await w.send(body, fields, client=OLDER)) == target
        assert routed(await w.send({**first, "messages": [_user("main"), _said(CLAUDE), _user("x")]}, fields)) == ""
        assert {pin.reason for pin in w.plugin.pins} == {
            "the agent is named code-reviewer, as the spawn ledger says",
            "the agent's type is Explore, as the spawn ledger says",
        }


async def test_an_agent_is_known_while_the_answer_that_started_it_goes_on(world):
    async with world() as w:
        call = tool_use("Agent", {"prompt": "review it", "subagent_type": "code-reviewer"})
        paused = Answer(blocks=(call, *say("and more, later").blocks), stall_after=5, stall=30.0)
        w.answer = lambda received: paused if received.role == "main" else say(CLAUDE)
        main = await w.rig.tls(userinfo=w.scope.userinfo)
        fields = f"{NEWER}x-claude-code-session-id: {SESSION}\r\nx-claude-code-request-class: main\r\n"
        await main.send_all(request(body=json.dumps(_body([_user("main")], "x")).encode(), extra=fields))
        got = b""
        with trio.fail_after(10):
            while b"content_block_stop" not in got:
                got += await main.receive_some()
        assert routed(await w.agent("a1", "review it")) == "elsewhere:big"


async def test_an_agent_that_nobody_knows_goes_by_what_is_known(world):
    async with world({"code-reviewer": "elsewhere:big", "kind:subagent": "elsewhere:any"}) as w:
        assert routed(await w.agent("a1", "nobody started it")) == "elsewhere:any"
        w.set_routes(REVIEWER)
        assert routed(await w.agent("a2", "nobody started it")) == ""


async def test_an_agents_agent_is_an_agent(world):
    async with world({"kind:nested": "elsewhere:deep"}) as w:
        await w.main(("code-reviewer", "review it"))
        assert routed(await w.agent("a1", "review it")) == ""
        nested = {"x-claude-code-parent-agent-id": "a1"}
        assert routed(await w.agent("b1", "count them", type="Explore", fields=nested)) == "elsewhere:deep"


# ---- agent files


def agent_file(w: World, name: str, head: str, body: str, *, file: str = "") -> Any:
    folder = w.rig.data_dir.parent / "project" / ".claude" / "agents"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (file or f"{name}.md")
    path.write_bytes(f"---\r\nname: {name}\r\n{head}---\r\n{body}".encode())
    return path


ODD_BODY = "You review code.\r\n\r\n---\r\n\r\nBe strict."


async def test_case_85_an_agent_is_known_by_its_files_body(world):
    async with world() as w:
        agent_file(w, "code-reviewer", "description: reviews\r\n", ODD_BODY)
        system = ODD_BODY.replace("\r\n", "\n") + "\n\nHere is the environment: <env>\nWorking directory: /x\n</env>"
        assert routed(await w.agent("a1", "nobody saw it start", system=system)) == "elsewhere:big"
        assert w.decision.reason == "the agent is named code-reviewer, as the agent file says"


async def test_case_86_a_file_that_is_edited_speaks_for_the_next_agent(world):
    async with world({}) as w:
        path = agent_file(w, "scout", "# route: elsewhere:first\r\n", "You scout.")
        await w.main(("scout", "look"), ("scout", "look more"), ("scout", "and more"))
        assert routed(await w.agent("a1", "look")) == "elsewhere:first"
        assert w.decision.rule == "route in scout.md = elsewhere:first"
        path.write_text("---\nname: scout\nroute: elsewhere:second\n---\nYou scout.")
        await trio.sleep(1.01)
        assert routed(await w.agent("a2", "look more")) == "elsewhere:second"
        assert routed(await w.agent("a1", "look", history=(_said(), _user("x")))) == "elsewhere:first"
        path.write_text("---\nname: scout\nmodel: haiku\n---\nYou scout.")
        await trio.sleep(1.01)
        assert routed(await w.agent("a3", "and more")) == ""


async def test_case_87_of_two_agents_with_one_body_each_has_its_own_model(world):
    async with world({}) as w:
        agent_file(w, "cheap", "model: elsewhere:small\r\n", "You work.")
        agent_file(w, "dear", "model: elsewhere:big\r\n", "You work.")
        await w.main(("dear", "think"), ("cheap", "do"))
        system = "You work.\n\nThe environment."
        assert routed(await w.agent("a1", "do", system=system)) == "elsewhere:small"
        assert routed(await w.agent("a2", "think", system=system)) == "elsewhere:big"
        assert w.decision.rule == "model in dear.md = elsewhere:big"


async def test_the_users_own_rule_is_stronger_than_a_file_that_came_with_a_clone(world):
    async with world({"scout": "elsewhere:mine", "type:custom": "elsewhere:any"}) as w:
        agent_file(w, "scout", "route: elsewhere:theirs\r\n", "You scout.")
        agent_file(w, "other", "route: elsewhere:theirs\r\n", "You are another.")
        await w.main(("scout", "look"), ("other", "do"))
        assert routed(await w.agent("a1", "look")) == "elsewhere:mine"
        assert routed(await w.agent("a2", "do")) == "elsewhere:theirs"


# ---- for life


async def test_case_88_an_agent_stays_where_it_began_and_the_next_one_follows_the_new_rules(world):
    async with world() as w:
        assert routed(await w.reviewer("a1", "one")) == "elsewhere:big"
        w.set_routes({"code-reviewer": "elsewhere:new"})
        later = (_said("Hello"), _user("go on"))
        assert routed(await w.agent("a1", "one", history=later)) == "elsewhere:big"
        assert w.decision.rule == "code-reviewer = elsewhere:big"
        assert routed(await w.reviewer("a2", "two")) == "elsewhere:new"
        w.set_routes({})
        assert routed(await w.agent("a1", "one", history=(*later, _said("Hello"), _user("x")))) == "elsewhere:big"
        assert routed(await w.agent("a1", "one", session=OTHER, history=later)) == ""


async def test_case_88_the_same_when_the_file_is_edited(world, monkeypatch, tmp_path):
    monkeypatch.setattr(reload, "_SOON", 0.05)
    monkeypatch.setattr(reload, "LOOK_EVERY", 0.05)
    file = user_config_file({"HOME": str(tmp_path)})
    file.parent.mkdir(parents=True)

    def write(text):
        file.with_suffix(".new").write_text(text)
        file.with_suffix(".new").replace(file)

    write('routes.code-reviewer = "elsewhere:big"')
    async with world({}) as w:
        await w.told("settings_reloaded")
        assert routed(await w.reviewer("a1", "one")) == "elsewhere:big"
        write('[routes]\ncode-reviewer = { to = ["gone:x", "elsewhere:new"], reason = "cheaper" }\n"kind:none" = "a:b"')
        await w.told("settings_reloaded", 2)
        assert routed(await w.agent("a1", "one", history=(_said("Hello"), _user("x")))) == "elsewhere:big"
        assert routed(await w.reviewer("a2", "two")) == "elsewhere:new"
        assert w.decision.reason == "the agent is named code-reviewer, as the spawn ledger says (cheaper)"
        (event,) = await w.told("route_refused")
        assert event["reason"].startswith("there is no such kind of request")


async def test_case_88_an_agent_that_was_at_work_before_a_rule_held_is_not_moved(world):
    async with world({"Explore": "elsewhere:small"}) as w:
        assert routed(await w.reviewer("a1", "one")) == ""
        assert w.held
        w.set_routes(REVIEWER)
        assert routed(await w.agent("a1", "one", history=(_said(CLAUDE), _user("x")))) == ""
        assert (w.decision, w.held) == (None, False)  # it was passed by, and is not looked at again
        w.plugin.pins._passed.clear()  # another worker knows nothing of that
        assert routed(await w.agent("a1", "one", history=(_said(CLAUDE), _user("x")))) == ""
        assert w.decision.reason == "the agent was at work before this rule held"
        assert len(w.plugin.pins) == 1


async def test_case_88_pins_outlive_the_worker(world):
    async with world(tls=False) as w:
        assert routed(await w.reviewer("a1", "one")) == "elsewhere:big"
    async with world({"code-reviewer": "elsewhere:new"}, tls=False) as w:
        assert routed(await w.agent("a1", "one", history=(_said("Hello"), _user("x")))) == "elsewhere:big"
        assert routed(await w.reviewer("a2", "two")) == "elsewhere:new"
    # Even without any rule, and with nobody to answer: its history has to be cleaned.
    async with world({}, tls=False, providers=lambda port: [Provider(port, not_ready="no key")]) as w:
        assert routed(await w.agent("a1", "one", history=(_said("Hello"), _user("x")))) == ""
        assert w.decision.reason == "its provider cannot be used any more: no key"


async def test_case_88_pins_are_kept_at_once_and_by_nobody_else(world, monkeypatch):
    monkeypatch.setattr("dbproxy_subagent_routing._CHORES_EVERY", 3600.0)
    async with world() as w:
        await w.reviewer()
        file = w.rig.data_dir / "plugin-data" / "subagent-routing" / "pins.json"
        await until(file.exists)
        assert file.stat().st_mode & 0o077 == 0
        kept = json.loads(file.read_text())["pins"]
        assert [(pin["thread"], pin["targets"]) for pin in kept] == [("a1", [["elsewhere", "big"]])]


async def test_what_another_worker_pinned_meanwhile_holds_here_too(world):
    """While a worker is being replaced both run, and both write."""
    async with world() as w:
        await w.reviewer("a1", "one")
        await until((w.rig.data_dir / "plugin-data" / "subagent-routing" / "pins.json").exists)
        other = SubagentRouting()
        await other.startup(App("1", w.rig.data_dir, lambda *_, **__: None, w.plugin.decider.services))
        await w.reviewer("a2", "two")
        assert other.pins.peek((SESSION, "a2")) is None
        await w.plugin.keeper.save()
        pin = await other.keeper.find((SESSION, "a2"))
        assert pin.targets[0].model == "big"
        other.keeper.put(replace(pin, thread="a3"))
        await other.keeper.save()
        assert routed(await w.agent("a3", "three", history=(_said("Hello"), _user("x")))) == "elsewhere:big"
        await w.reviewer("a4", "four")
        await w.plugin.keeper.save()
        await other.keeper.load()
        assert {pin.thread for pin in other.pins} == {"a1", "a2", "a3", "a4"}


async def test_a_pin_whose_provider_is_gone_stays_and_loses_what_the_other_thought(world):
    async with world() as w:
        assert routed(await w.reviewer("a1", "one")) == "elsewhere:big"
        await w.change_providers()
        thought = {"type": "thinking", "thinking": "hm", "signature": "elsewhere#sealed"}
        history = ({"role": "assistant", "content": [thought, {"type": "text", "text": "Hello"}]}, _user("x"))
        assert routed(await w.agent("a1", "one", history=history)) == ""
        assert w.decision.outcome == DECLINED
        assert w.decision.reason == "its provider cannot be used any more: there is no provider elsewhere"
        assert "sealed" not in w.rig.origin.requests[-1].body.decode()
        await w.change_providers(Provider(w.server.port))
        assert routed(await w.agent("a1", "one", history=history)) == "elsewhere:big"


# ---- what stays, and why


async def test_case_39_a_rule_whose_provider_has_no_key_is_refused_and_says_so(world):
    async with world(providers=lambda port: [Provider(port, not_ready="ELSEWHERE_KEY is not set")]) as w:
        (event,) = await w.told("route_refused")
        assert (event["rule"], event["reason"]) == ("code-reviewer = elsewhere:big", "ELSEWHERE_KEY is not set")
        assert routed(await w.reviewer()) == ""
        assert (w.decision.outcome, w.decision.reason) == (DECLINED, "ELSEWHERE_KEY is not set")
        assert "because ELSEWHERE_KEY is not set" in await w.explained()
        assert w.plugin.health()["refused"] == {"code-reviewer = elsewhere:big": "ELSEWHERE_KEY is not set"}
        assert w.server.bodies == []
        await trio.sleep(1.2)
        assert len(w.events("route_refused")) == 1


async def test_case_39_a_launchs_own_rule_is_refused_aloud_too(world):
    async with world({}) as w:
        w.scope = replace(w.scope, id=new_id(), settings={"routes": {"Explore": "nobody:x"}})
        w.scope.save(w.rig.proxy.paths.scopes)
        assert routed(await w.agent("a1", type="Explore")) == ""
        (event,) = await w.told("route_refused")
        assert (event["rule"], event["reason"][:25]) == ("Explore = nobody:x", "'nobody:x': no provider '")
        assert w.decision.reason == event["reason"]


async def test_case_39_without_proof_no_key_of_ours_is_used(world):
    async with world() as w:
        await w.main(("code-reviewer", "review it"))
        assert routed(await w.agent("a1", "review it", send={"userinfo": ""})) == ""
        assert (w.decision.outcome, w.decision.reason) == (DECLINED, NO_KEY)
        # What was decided for an agent holds, and proof that comes later is for the next one.
        assert routed(await w.agent("a1", "review it", history=(_said(CLAUDE), _user("x")))) == ""
        assert routed(await w.reviewer("a2", "two")) == "elsewhere:big"
        assert routed(await w.agent("a2", "two", history=(_said("Hello"), _user("x")), send={"userinfo": ""})) == ""


async def test_a_provider_without_a_key_serves_anybody(world):
    def keyless(port):
        made = Provider(port)
        made.keyless = True
        return [made]

    async with world(providers=keyless) as w:
        await w.main(("code-reviewer", "review it"))
        assert routed(await w.agent("a1", "review it", send={"userinfo": ""})) == "elsewhere:big"


async def test_of_a_chain_those_are_asked_that_can(world):
    def several(port):
        return [
            Provider(port, name="closed", not_ready="no key"),
            Provider(port, name="blind", declines="the model takes no images"),
            Provider(port, name="small", can=Capabilities(context=10)),
            Provider(port),
        ]

    chain = ["closed:a", "blind:b", "nobody:c", "small:d", "elsewhere:e"]
    async with world({"code-reviewer": chain}, providers=several) as w:
        assert w.events("route_refused") == []
        assert routed(await w.reviewer("a1", "one")) == "elsewhere:e"
        w.set_routes({"code-reviewer": chain[:-1]})
        assert routed(await w.reviewer("a2", "two")) == ""
        reason = w.decision.reason
        assert reason.startswith("no key; the model takes no images; 'nobody:c': no provider 'nobody' is known")
        assert reason.endswith("of 10")


async def test_a_context_that_is_too_large_stays_for_good(world):
    async with world(providers=lambda port: [Provider(port, can=Capabilities(context=2000))]) as w:
        assert routed(await w.reviewer("a1", "long " * 2000)) == ""
        assert w.decision.reason.startswith("the context is too large for elsewhere:big: about ")
        assert routed(await w.agent("a1", "short", history=(_said(CLAUDE), _user("x")))) == ""
        assert routed(await w.reviewer("a2", "short")) == "elsewhere:big"


GUARDS = [{"type": "dangerous_tool_use", "classifier_context": {}}]


async def test_an_agent_in_auto_mode_stays_if_it_has_a_tool_that_needs_the_verdict(world):
    async with world() as w:
        assert routed(await w.reviewer("a1", "one", safeguards=GUARDS)) == ""
        assert "auto mode, where Claude's server judges each use of Bash" in w.decision.reason
        assert b"safeguards" in w.rig.origin.requests[-1].body
        assert routed(await w.agent("a1", "one", history=(_said(CLAUDE), _user("x")))) == ""
        assert routed(await w.reviewer("a2", "two", safeguards=GUARDS, tools=TOOLS[2:])) == "elsewhere:big"


async def test_auto_mode_that_is_switched_on_later_brings_the_agent_back_while_it_lasts(world):
    async with world() as w:
        assert routed(await w.reviewer("a1", "one")) == "elsewhere:big"
        thought = {"type": "thinking", "thinking": "hm", "signature": "elsewhere#sealed"}
        later = ({"role": "assistant", "content": [thought, {"type": "text", "text": "Hello"}]}, _user("x"))
        assert routed(await w.agent("a1", "one", history=later, safeguards=GUARDS)) == ""
        assert "auto mode" in w.decision.reason
        assert "sealed" not in w.rig.origin.requests[-1].body.decode()
        assert routed(await w.agent("a1", "one", history=later)) == "elsewhere:big"


async def test_a_rule_may_say_that_an_agent_stays(world):
    async with world({"*": "elsewhere:any", "code-reviewer": "claude"}) as w:
        assert routed(await w.reviewer("a1", "one")) == ""
        assert (w.decision.rule, w.decision.reason) == ("code-reviewer = claude", "the rule says so")
        assert routed(await w.agent("a2", type="Explore")) == "elsewhere:any"


async def test_passthrough_and_other_servers_are_left_alone(world):
    async with world({"*": "elsewhere:any", "model:*": "elsewhere:any"}, passthrough="true") as w:
        assert routed(await w.agent("a1", type="Explore")) == ""
        assert not w.held


# ---- case 90: nothing by accident

EVERY_AGENT = {"*": "elsewhere:any", "kind:subagent": "elsewhere:any", "type:*": "elsewhere:any"}
SUMMARY = "Your task is to create a detailed summary of the conversation so far. <analysis> <summary>"
TITLE = {"output_config": {"format": {"type": "json_schema", "schema": {"properties": {"title": {}}}}}}


async def test_case_90_the_main_line_its_summary_and_side_requests_hit_no_rule_for_agents(world):
    async with world(EVERY_AGENT) as w:
        main = {"x-claude-code-session-id": SESSION, "x-claude-code-request-class": "main"}
        side = {**main, "x-claude-code-request-class": "auxiliary"}
        summary = {**main, "x-claude-code-request-class": "compaction", "x-claude-code-compaction": "auto"}
        for fields, body in (
            (main, _body([_user("hi")], "x")),
            (side, _body([_user("Please name this")], "You are naming a coding session") | TITLE),
            (side, _body([_user("quota")], "x") | {"max_tokens": 1}),
            (side, _body([_user("fetch")], "x") | {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
            ({**side, "x-claude-code-agent-id": "a1"}, _body([_user("fetched")], "x")),
            (summary, _body([_user("hi"), _said(), _user(SUMMARY)], "x")),
        ):
            assert routed(await w.send(body, fields)) == ""
            assert (w.decision, w.held) == (None, False)


async def test_case_90_an_agents_summary_is_made_where_its_history_lives(world):
    async with world() as w:
        await w.reviewer("a1", "one")
        summary = {"x-claude-code-request-class": "compaction", "x-claude-code-compaction": "auto"}
        history = (_said("Hello"), _user(SUMMARY))
        assert routed(await w.agent("a1", "one", fields=summary, history=history)) == "elsewhere:big"
        assert w.decision.rule == "code-reviewer = elsewhere:big"
        assert routed(await w.agent("a2", "two", fields=summary, history=history)) == ""
        assert (w.decision, w.held) == (None, False)
        after = {"x-claude-code-context-compacted": "auto"}
        assert routed(await w.agent("a1", "This session is being continued", fields=after)) == "elsewhere:big"


async def test_a_history_that_the_model_cannot_hold_is_summed_up_by_claude(world):
    summary = {"x-claude-code-request-class": "compaction", "x-claude-code-compaction": "auto"}
    async with world(providers=lambda port: [Provider(port, can=Capabilities(context=20_000))]) as w:
        await w.reviewer("a1", "one")
        thought = {"type": "thinking", "thinking": "hm", "signature": "elsewhere#sealed"}
        said = {"role": "assistant", "content": [thought, {"type": "text", "text": "long " * 14_000}]}
        assert routed(await w.agent("a1", "one", fields=summary, history=(said, _user(SUMMARY)))) == ""
        assert w.decision.reason.startswith("the context is too large for elsewhere:big")
        assert "sealed" not in w.rig.origin.requests[-1].body.decode()
        short = (_said("Hello"), _user(SUMMARY))
        assert routed(await w.agent("a1", "one", fields=summary, history=short)) == "elsewhere:big"
        reactive = {**summary, "x-claude-code-compaction": "reactive"}
        assert routed(await w.agent("a1", "one", fields=reactive, history=short)) == ""
        assert "the history is too long for elsewhere:big" in w.decision.reason


async def test_case_90_an_agents_side_request_does_not_go_where_the_agent_goes(world):
    async with world() as w:
        await w.reviewer("a1", "one")
        assert routed(await w.agent("a1", "fetch", fields={"x-claude-code-request-class": "auxiliary"})) == ""
        assert not w.held


async def test_a_kind_that_is_named_moves(world):
    routes = {"kind:main": "elsewhere:m", "kind:compaction": "elsewhere:c", "kind:title": "elsewhere:t"}
    async with world(routes) as w:
        session = {"x-claude-code-session-id": SESSION}
        title = _body([_user("Please name this")], "You are naming a coding session") | TITLE
        assert routed(await w.main()) == "elsewhere:m"
        fields = {**session, "x-claude-code-request-class": "compaction", "x-claude-code-compaction": "auto"}
        assert routed(await w.send(_body([_user("hi"), _said(), _user(SUMMARY)], "x"), fields)) == "elsewhere:c"
        assert routed(await w.send(title, {**session, "x-claude-code-request-class": "auxiliary"})) == "elsewhere:t"
        assert routed(
            await w.send({**title, "output_config": {}}, {**session, "x-claude-code-request-class": "x"})
        ) in (
            "elsewhere:t",  # the system prompt still says so
        )
        assert routed(await w.agent("a1", type="Explore")) == ""


# ---- models


async def test_a_model_of_the_clients_is_another_one_and_a_way_back_is_clean(world):
    async with world({"model:claude-on-gpt": "elsewhere:big"}) as w:
        assert routed(await w.main(model="claude-on-gpt")) == "elsewhere:big"
        assert w.decision.reason == "it asks for the model claude-on-gpt"
        thought = {"type": "thinking", "thinking": "hm", "signature": "elsewhere#sealed"}
        said = {"role": "assistant", "content": [thought, {"type": "text", "text": "Hello"}]}
        assert routed(await w.main(messages=[_user("main"), said, _user("x")])) == ""
        assert w.decision.reason == "no rule moves this conversation any more"
        assert "sealed" not in w.rig.origin.requests[-1].body.decode()
        w.set_routes({})
        assert routed(await w.main(messages=[_user("main"), said, _user("x")])) == ""
        assert "sealed" not in w.rig.origin.requests[-1].body.decode()
        assert routed(await w.main(session=OTHER)) == ""
        assert (w.decision, w.held) == (None, False)


def asked_of_claude(w: World) -> str:
    """The model that the latest request asked for where Claude lives."""
    return json.loads(w.rig.origin.requests[-1].body)["model"]


async def test_what_asks_for_anothers_model_and_goes_to_claude_asks_for_the_main_lines_there(world):
    """Claude's server knows no such model, and a 404 ends the agent."""
    later = (_said("Hello"), _user("x"))
    async with world({"model:claude-on-gpt": "elsewhere:big"}) as w:
        w.starts = []
        w.answer = lambda received: say(CLAUDE).but(model=received.json["model"])
        assert routed(await w.agent("a0", type="Explore", model="elsewhere:own", thread={})) == "elsewhere:own"
        assert routed(await w.main(model="claude-haiku-4-5")) == ""
        assert asked_of_claude(w) == "claude-haiku-4-5"
        assert routed(await w.agent("a1", type="Explore", model="elsewhere:own")) == "elsewhere:own"
        await w.change_providers()
        assert routed(await w.agent("a1", type="Explore", model="elsewhere:own", history=later)) == ""
        assert asked_of_claude(w) == "claude-haiku-4-5"
        assert routed(await w.main(model="claude-on-gpt")) == ""
        assert asked_of_claude(w) == "claude-haiku-4-5"
        assert routed(await w.main(model="claude-on-gpt", session=OTHER)) == ""
        assert asked_of_claude(w).startswith("claude-sonnet-")
        sent = w.rig.origin.requests[-1].body.decode()
        assert sent.replace(asked_of_claude(w), "claude-on-gpt") == json.dumps(
            {**_body([_user("main")], "Be of use."), "tools": TOOLS, "model": "claude-on-gpt"}
        )


async def test_an_agents_search_asks_claude_for_a_model_that_it_has(world):
    """The client names the agent's model in it, too, and it goes where no other side request goes."""
    side = {"x-claude-code-request-class": "auxiliary"}
    search = [{"type": "web_search_20250305", "name": "web_search"}]
    async with world({}) as w:
        await w.main(model="claude-haiku-4-5")
        assert routed(await w.agent("a1", type="Explore", model="elsewhere:own")) == "elsewhere:own"
        answer = await w.agent("a1", type="", model="elsewhere:own", fields=side, tools=search)
        assert (routed(answer), asked_of_claude(w)) == ("", "claude-haiku-4-5")
        assert routed(await w.agent("a1", type="", fields=side, tools=search)) == ""
        assert asked_of_claude(w) == "claude-opus-5-5"


async def test_a_provider_at_the_clients_own_upstream_is_asked_for_its_own_model(world):
    def own(port):
        return [Provider(port, as_client=True)]

    async with world({}, providers=own) as w:
        await w.main(model="claude-haiku-4-5")
        answer = await w.agent("a1", type="Explore", model="elsewhere:claude-opus-4-5")
        assert (answer.status, asked_of_claude(w)) == (200, "claude-opus-4-5")
        assert w.decision.outcome == ROUTED


async def test_a_body_with_a_coding_is_understood(world):
    async with world({}) as w:
        await w.main(model="claude-haiku-4-5")
        zipped = {"coding": "gzip"}
        assert routed(await w.agent("a1", type="Explore", model="elsewhere:own", send=zipped)) == "elsewhere:own"
        await w.change_providers()
        later = (_said("Hello"), _user("x"))
        answer = await w.agent("a1", type="Explore", model="elsewhere:own", history=later, send=zipped)
        assert (routed(answer), asked_of_claude(w)) == ("", "claude-haiku-4-5")
        assert w.rig.origin.requests[-1].header("content-encoding") is None


async def test_when_the_provider_fails_claude_is_asked_for_a_model_that_it_has(world):
    async with world({}, providers=lambda port: [Provider(1)]) as w:
        await w.main(model="claude-haiku-4-5")
        assert routed(await w.agent("a1", type="Explore", model="elsewhere:own")) == ""
        assert w.decision.outcome == "fell back"
        assert asked_of_claude(w) == "claude-haiku-4-5"


async def test_a_summary_of_a_conversation_with_anothers_model_is_claudes_own(world):
    async with world({"model:claude-on-gpt": "elsewhere:big"}) as w:
        fields = {"x-claude-code-session-id": SESSION, "x-claude-code-request-class": "compaction"}
        body = _body([_user("hi"), _said(), _user(SUMMARY)], "x") | {"model": "claude-on-gpt"}
        assert routed(await w.send(body, {**fields, "x-claude-code-compaction": "manual"})) == ""
        assert asked_of_claude(w).startswith("claude-sonnet-")


async def test_a_request_may_ask_for_another_providers_model_itself(world):
    async with world({}) as w:
        assert routed(await w.agent("a1", type="Explore", model="elsewhere:own")) == "elsewhere:own"
        assert routed(await w.agent("a2", type="Explore", model="claude-opus-5-5")) == ""
        later = (_said("Hello"), _user("x"))
        assert routed(await w.agent("a3", type="Explore", model="elsewhere:own", history=later)) == "elsewhere:own"
        program = {"model": "elsewhere:own", "max_tokens": 9, "stream": True, "messages": [_user("hi")]}
        assert routed(await w.send(program, {}, client="")) == "elsewhere:own"
        assert routed(await w.main(model="elsewhere:own")) == ""  # the main line is not looked into for that
        assert not w.held


async def test_nothing_is_looked_into_where_nobody_could_answer(world):
    async with world({}, providers=lambda port: [Provider(port, not_ready="no key")]) as w:
        for type in ("custom", "Explore"):
            await w.agent("a1", type=type)
            assert not w.held
        await w.send(_body([_user("x")], "x"), {}, client=OLDER)
        assert not w.held


# ---- message threads


async def test_a_routed_agents_thread_is_refused_once_and_sent_whole(world):
    async with world() as w:
        await w.main(("code-reviewer", "review it"), thread={"type": "create"})
        assert b'"thread"' in w.rig.origin.requests[-1].body
        first = await w.agent("a1", "review it", thread={"type": "create"})
        assert first.status == 400
        error = first.json["error"]
        assert error["details"]["error_code"] == "thread_unsupported_request"
        assert "capability_rejected: beta_header:message-threads-2026-08-12" in error["message"]
        assert w.server.bodies == []
        assert routed(await w.agent("a1", "review it")) == "elsewhere:big"
        assert routed(await w.agent("a1", "review it", history=(_said("Hello"), _user("x")))) == "elsewhere:big"
        again = await w.agent("a1", "only the new", thread={"type": "continue", "previous_message_id": "msg_1"})
        assert again.status == 400
        other = await w.agent("a2", type="Explore", thread={"type": "create"})
        assert routed(other) == ""


async def test_a_thread_is_no_obstacle_at_an_agents_first_request(world):
    """The codecs cannot say a thread, and so a provider declines one."""

    class Strict(Provider):
        def decline(self, request, model):
            return "a message thread" if "thread" in request.features else ""

    async with world(providers=lambda port: [Strict(port)]) as w:
        await w.main(("code-reviewer", "review it"))
        assert (await w.agent("a1", "review it", thread={"type": "create"})).status == 400
        assert routed(await w.agent("a1", "review it")) == "elsewhere:big"


# ---- what is answered here


async def test_case_41_tokens_of_a_routed_agent_are_counted_here(world):
    async with world(providers=lambda port: [Provider(port, can=Capabilities(context=100_000))]) as w:
        await w.reviewer("a1", "one")
        seen = len(w.rig.origin.requests)
        body = _body([_user("count me " * 100)], "x")
        fields = {"x-claude-code-session-id": SESSION, "x-claude-code-request-class": "auxiliary"}
        counting = "/v1/messages/count_tokens?beta=true"
        answer = await w.send(body, {**fields, "x-claude-code-agent-id": "a1"}, path=counting)
        tokens = answer.json["input_tokens"]
        assert answer.status == 200
        assert isinstance(tokens, int)
        assert 2500 < tokens < 4500  # some 300, told to a client whose window is some ten times as large
        assert len(w.rig.origin.requests) == seen
        await w.send(body, fields, path=counting)
        assert len(w.rig.origin.requests) == seen + 1
        assert not w.held


async def test_case_41_tokens_are_counted_here_for_a_model_by_a_rule(world):
    async with world({"model:claude-on-gpt": "elsewhere:big"}) as w:
        body = {**_body([_user("count me")], "x"), "model": "claude-on-gpt"}
        answer = await w.send(body, {}, path="/v1/messages/count_tokens")
        assert answer.json["input_tokens"] > 0
        assert w.rig.origin.requests == []


async def get(w: World, path: str, **how: Any):
    stream = await w.rig.tls(userinfo=w.scope.userinfo)
    await stream.send_all(request(path, method="GET", body=None, extra="Accept-Encoding: gzip\r\n", **how))
    with trio.fail_after(10):
        answer = await read_response(stream, method="GET")
    await stream.aclose()
    return answer


LISTED = {"data": [{"type": "model", "id": "claude-opus-5-5"}], "has_more": False, "last_id": "claude-opus-5-5"}
ALIASES = {
    "model:claude-on-gpt": "elsewhere:big",
    "model:claude-on-air": "gone:x",
    "model:claude-*": "elsewhere:x",
    "model:claude-haiku-4-5": "elsewhere:x",  # a model of Claude's, whatever answers for it
}


async def test_case_41_models_by_a_rule_are_listed_behind_the_upstreams(world):
    async with world(ALIASES) as w:
        w.on_models = Answer(body=json.dumps(LISTED).encode(), coding="gzip", content_type="application/json")
        answer = await get(w, "/v1/models?limit=1000")
        assert [model["id"] for model in answer.json["data"]] == ["claude-opus-5-5", "claude-on-gpt"]
        assert answer.json["last_id"] == "claude-on-gpt"
        assert "content-encoding" not in answer.fields
        (asked,) = w.rig.origin.requests
        assert (asked.target, asked.header("x-api-key")) == ("/v1/models?limit=1000", "k")
        one = await get(w, "/v1/models/claude-on-gpt")
        assert (one.status, one.json["id"], one.json["display_name"]) == (200, "claude-on-gpt", "big (elsewhere)")
        assert len(w.rig.origin.requests) == 1
        w.on_models = Answer(body=b'{"type":"error"}', status=404, content_type="application/json")
        for name in ("claude-on-air", "claude-haiku-4-5", "claude-opus-5-5"):
            assert (await get(w, f"/v1/models/{name}")).status == 404
        assert len(w.rig.origin.requests) == 4
        assert (await get(w, "/v1/models")).json == {"type": "error"}


async def test_case_41_without_such_a_rule_the_models_are_the_upstreams_business(world):
    async with world({"model:claude-*": "elsewhere:x", "code-reviewer": "elsewhere:big"}) as w:
        w.on_models = Answer(body=json.dumps(LISTED).encode(), coding="gzip", content_type="application/json")
        answer = await get(w, "/v1/models")
        assert answer.fields["content-encoding"] == "gzip"
        assert await w.watcher.outcomes() == [Outcome.OK]


# ---- what can be seen of it


async def test_every_pin_is_told_and_counted(world):
    async with world() as w:
        await w.reviewer("a1", "one")
        await w.agent("a1", "one", history=(_said("Hello"), _user("x")))
        await w.agent("a2", type="Explore")
        (event,) = await w.told("route_decided")
        assert {name: event[name] for name in ("conv_id", "thread", "rule", "target", "reason")} == {
            "conv_id": SESSION,
            "thread": "a1",
            "rule": "code-reviewer = elsewhere:big",
            "target": "elsewhere:big",
            "reason": "the agent is named code-reviewer, as the spawn ledger says",
        }
        health = w.plugin.health()
        (rule,) = health["rules"]
        assert rule == {"key": "code-reviewer", "to": ["elsewhere:big"], "fallback": True, "refused": ""}
        assert (health["pins"], health["routed"]) == (1, {"elsewhere:big": 2})
        assert [(sample.value, sample.labels) for sample in w.plugin.metrics()] == [
            (2, {"target": "elsewhere:big", "outcome": "routed"})
        ]


async def test_labels_are_bounded():
    plugin = SubagentRouting()
    for number in range(100):
        plugin.tally(Route((Target("p", str(number)),)))
        plugin.tally(Declined("x"))
    samples = {(s.labels["target"], s.labels["outcome"]): s.value for s in plugin.metrics()}
    assert len(samples) <= 65 + 1
    assert samples["other", "routed"] == 100 - 63
    assert samples["", "declined"] == 100
