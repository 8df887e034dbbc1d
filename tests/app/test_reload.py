"""Routes and providers follow their files in a running proxy, under what a launch was told, and nothing else does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio
from blackbox import Watcher, read_response, request
from rig import open_rig

from dbproxy.api import hookimpl
from dbproxy.app import run
from dbproxy.app.proxy import _MOST_LAUNCHES
from dbproxy.config import Section, load, trust_project
from dbproxy.hooks.routing import ProviderLimits
from dbproxy.scope import Scope, new_id, new_secret

if TYPE_CHECKING:
    from pathlib import Path

HELD = 1.5  # seconds within which a change must hold: one of its own, and some for a busy machine


class Person:
    """The user, the files, and one project."""

    def __init__(self, home: Path) -> None:
        self.env = {"HOME": str(home)}
        self.user_file = home / ".config" / "dbproxy" / "config.toml"
        self.user_file.parent.mkdir(parents=True)
        self.project = home / "project"
        (self.project / ".git").mkdir(parents=True)
        self.project_file = self.project / "dbproxy.toml"

    def launches(self, r, cli=None, **environment):
        """A scope as the launcher makes it."""
        given = {"upstream_ca": str(r.proxy.settings.upstream_ca), **(cli or {})}
        config = load(given, self.env | environment, self.project)
        scope = Scope(
            new_id(),
            new_secret(),
            cwd=str(self.project),
            settings=config.launch_values(),
            project=config.project_values(),
        )
        scope.save(r.proxy.paths.scopes)
        return r.proxy.scopes.known(scope.id)


@pytest.fixture
def person(tmp_path):
    return Person(tmp_path)


class Asker(Watcher):
    """A plugin that says what it would go by."""

    def __init__(self) -> None:
        super().__init__()
        self.services = None
        self.seen: list[dict[str, object]] = []

    @hookimpl
    def startup(self, app):
        self.services = app.services

    @hookimpl
    def route_request(self, exchange):
        self.seen.append(self.services.settings(exchange)["routes"])

    @hookimpl
    def wants_body(self, exchange):
        return True

    def now(self, name="routes"):
        return self.services.settings(None)[name]


async def routes_of(r, asker, scope):
    """What a request of this launch goes by."""
    stream = await r.tls(userinfo=scope.userinfo) if scope is not None else await r.plain()
    await stream.send_all(request())
    assert (await read_response(stream)).status == 200
    return asker.seen[-1]


async def soon(check, seconds=HELD):
    with trio.fail_after(seconds):
        while not check():
            await trio.sleep(0.02)


def events(r, *names):
    log = r.proxy.paths.log_file
    lines = log.read_text().splitlines() if log.exists() else []
    return [event for line in lines if (event := json.loads(line))["event"] in names]


async def heard(r, count, *names):
    await soon(lambda: len(events(r, *names)) >= count, 5)
    return events(r, *names)


async def test_the_users_rules_hold_within_a_second(tmp_path, person):
    asker = Asker()
    async with open_rig(tmp_path, plugins=(("asker", asker),)) as r:
        assert asker.now() == {}
        assert await routes_of(r, asker, None) == {}
        person.user_file.write_text('[routes]\na = "openai:gpt-4o"\n')
        await soon(lambda: asker.now() == {"a": "openai:gpt-4o"})
        assert await routes_of(r, asker, None) == {"a": "openai:gpt-4o"}
        person.user_file.write_text('[routes]\nb = ["x", "y"]\na = "o3"\n')
        await soon(lambda: list(asker.now()) == ["b", "a"])
        person.user_file.unlink()
        await soon(lambda: asker.now() == {})
        (first, *_) = await heard(r, 3, "settings_reloaded")
        assert (first["settings"], first["file"]) == (["routes"], str(person.user_file))


async def test_a_rule_of_the_file_reaches_a_launch_that_runs(tmp_path, person):
    person.user_file.write_text('[routes]\na = "user"\n')
    asker = Asker()
    async with open_rig(tmp_path, plugins=(("asker", asker),)) as r:
        scope = person.launches(r)
        assert "routes" not in scope.settings
        assert await routes_of(r, asker, scope) == {"a": "user"}
        person.user_file.write_text('[routes]\na = "other"\n')
        await soon(lambda: r.proxy.settings_for(scope).routes.plain() == {"a": "other"})
        assert await routes_of(r, asker, scope) == {"a": "other"}


async def test_the_order_of_the_sources_is_that_of_a_start(tmp_path, person):
    person.user_file.write_text('[routes]\na = "user"\nb = "user"\nc = "user"\nd = "user"\n')
    person.project_file.write_text('[routes]\nb = "project"\nc = "project"\nd = "project"\n')
    asker = Asker()
    async with open_rig(tmp_path, plugins=(("asker", asker),)) as r:
        scope = person.launches(r, {"routes": "d:cli"}, SUBAGENT_MAPPINGS="c:env")
        assert scope.settings["routes"] == {"d": "cli", "c": "env"}
        expected = {"d": "cli", "c": "env", "b": "project", "a": "user"}
        assert await routes_of(r, asker, scope) == expected  # from the first request on
        assert list(asker.seen[-1]) == list(expected)
        person.user_file.write_text('[routes]\na = "new"\nc = "new"\n')
        await soon(lambda: r.proxy.settings_for(scope).routes.plain() == {**expected, "a": "new"})
        person.project_file.write_text('[routes]\nd = "new project"\n')
        await soon(lambda: r.proxy.settings_for(scope).routes.plain() == {"d": "cli", "c": "env", "a": "new"})
        assert await routes_of(r, asker, None) == {"a": "new", "c": "new"}


async def test_what_the_proxy_itself_was_told_stays_for_traffic_without_a_launch(tmp_path, person):
    asker = Asker()
    async with open_rig(
        tmp_path, plugins=(("asker", asker),), routes="a:told", providers='{"x": {"base_url": "http://told"}}'
    ) as r:
        person.user_file.write_text(
            '[routes]\na = "user"\nb = "user"\n[providers.x]\nkey_env = "K"\n[providers.y]\nbase_url = "http://y"\n'
        )
        await soon(lambda: asker.now() == {"a": "told", "b": "user"})
        assert asker.now("providers") == {"x": {"base_url": "http://told"}, "y": {"base_url": "http://y"}}
        scope = person.launches(r)
        assert await routes_of(r, asker, scope) == {"a": "user", "b": "user"}  # a launch was told for itself


async def test_a_project_file_that_appears_and_one_that_is_trusted(tmp_path, person):
    asker = Asker()
    async with open_rig(tmp_path, plugins=(("asker", asker),)) as r:
        scope = person.launches(r)
        assert await routes_of(r, asker, scope) == {}
        person.project_file.write_text(
            '[routes]\na = { to = "x", when = "later" }\nb = "y"\n[providers.p]\nbase_url = "http://p"\n'
        )
        await soon(lambda: r.proxy.settings_for(scope).routes.plain() == {"b": "y"})
        trust_project(person.project, person.env)
        await soon(lambda: list(r.proxy.settings_for(scope).routes) == ["a", "b"])
        assert asker.now("providers") == {}  # one project does not speak for everybody
        found = await heard(r, 2, "settings_reloaded")
        assert {event["folder"] for event in found} == {str(person.project)}
        person.project_file.unlink()
        await soon(lambda: not r.proxy.settings_for(scope).routes)


async def test_nothing_else_in_a_file_has_an_effect(tmp_path, person):
    asker = Asker()
    async with open_rig(tmp_path, plugins=(("asker", asker),)) as r:
        scope = person.launches(r)
        before = r.proxy.settings_for(scope), r.proxy.settings
        await routes_of(r, asker, scope)
        person.user_file.write_text('buffer = "off"\npassthrough = true\nlog_level = "ERROR"\n[routes]\na = "b"\n')
        await soon(lambda: asker.now() == {"a": "b"})
        for old, new in zip(before, (r.proxy.settings_for(scope), r.proxy.settings), strict=True):
            assert (new.buffer, new.passthrough, new.log_level) == (old.buffer, old.passthrough, old.log_level)


async def test_a_file_that_becomes_wrong_changes_nothing_and_is_said_once(tmp_path, person):
    person.user_file.write_text('[routes]\na = "good"\n')
    asker = Asker()
    async with open_rig(tmp_path, plugins=(("asker", asker),)) as r:
        scope = person.launches(r)
        await routes_of(r, asker, scope)
        for wrong in ("[routes\n", "[routes\n# still", "[routes\n"):
            person.user_file.write_text(wrong)
            await trio.sleep(1.2)
            assert asker.now() == {"a": "good"}
        (first,) = await heard(r, 1, "settings_invalid")
        assert "not valid TOML" in first["message"]
        assert (first["file"], first["level"].lower()) == (str(person.user_file), "warning")
        person.user_file.write_text('[providers.x]\napi_key = "open-sesame-1"\n')
        (_, second) = await heard(r, 2, "settings_invalid")
        assert "x.api_key: a key does not belong into the settings" in second["message"]
        person.project_file.write_text("[routes]\na = 7\n")
        (*_, third) = await heard(r, 3, "settings_invalid")
        assert third["folder"] == str(person.project)
        assert await routes_of(r, asker, scope) == {"a": "good"}
        person.user_file.write_text('[routes]\na = "mended"\n')
        await soon(lambda: asker.now() == {"a": "mended"})
        assert events(r, "settings_invalid") == [first, second, third]
        assert "open-sesame" not in r.proxy.paths.log_file.read_text()


async def test_who_asks_gets_the_same_objects_until_something_changes(tmp_path, person):
    """Plugins remember by the object what they made of it."""
    person.user_file.write_text('[routes]\na = "b"\n')
    asker = Asker()
    async with open_rig(tmp_path, plugins=(("asker", asker),)) as r:
        scopes = [person.launches(r), person.launches(r, {"routes": "c:d"})]
        for _ in range(2):
            for scope in (*scopes, None):
                await routes_of(r, asker, scope)
        first, again = asker.seen[:3], asker.seen[3:]
        assert [one is two for one, two in zip(first, again, strict=True)] == [True] * 3
        settings = [r.proxy.settings_for(scope) for scope in scopes]
        person.project_file.write_text('[routes]\nc = "other"\n')  # the second was told so itself
        await soon(lambda: r.proxy.settings_for(scopes[0]) != settings[0])
        assert r.proxy.settings_for(scopes[1]) is settings[1]
        assert r.proxy.settings_for(scopes[0]) is r.proxy.settings_for(scopes[0])
        person.user_file.touch()
        await trio.sleep(1.2)
        assert r.proxy.settings_for(scopes[1]) is settings[1]
        assert len(await heard(r, 1, "settings_reloaded")) == 1  # what is as it was is no news


async def test_many_launches_and_the_latest_are_remembered(tmp_path, person):
    async with open_rig(tmp_path) as r:
        person.project_file.write_text('[routes]\na = "b"\n')
        scopes = [person.launches(r) for _ in range(_MOST_LAUNCHES + 3)]
        for scope in scopes:
            assert r.proxy.settings_for(scope).routes.plain() == {"a": "b"}
        assert len(r.proxy._launches) == _MOST_LAUNCHES
        person.project_file.write_text('[routes]\na = "c"\n')
        for scope in (scopes[0], scopes[-1]):
            await soon(lambda scope=scope: r.proxy.settings_for(scope).routes.plain() == {"a": "c"})


class One:
    """A provider that answers nothing."""

    limits = ProviderLimits()

    def __init__(self, name):
        self.name = name

    def unready(self):
        return ""

    def capabilities(self, model):
        raise NotImplementedError

    def decline(self, request, model):
        return ""

    def call(self, request, translation):
        raise NotImplementedError


class Several:
    """A plugin with a provider for each table."""

    def __init__(self):
        self.asked = 0

    @hookimpl
    def providers(self, app):
        self.asked += 1
        return [One(f"own-{name}") for name in app.services.settings(None)["providers"]]


async def test_a_provider_that_is_added_can_be_asked(tmp_path, person):
    asker, several = Asker(), Several()
    async with open_rig(tmp_path, plugins=(("asker", asker), ("several", several))) as r:
        assert "own-local" not in asker.services.providers()
        person.user_file.write_text('[providers.local]\nbase_url = "http://localhost:1234"\n')
        await soon(lambda: "own-local" in asker.services.providers())
        asked = several.asked
        await trio.sleep(2.0)
        assert several.asked == asked  # not at every look
        assert r.proxy.settings.providers.plain() == {"local": {"base_url": "http://localhost:1234"}}


async def test_a_look_that_fails_is_said_and_the_next_one_works(tmp_path, person, monkeypatch):
    asker = Asker()
    looks = []

    class Failing(run.FollowedFiles):
        def look(self, folders):
            looks.append(folders)
            if len(looks) == 1:
                raise RuntimeError("no luck")
            return super().look(folders)

    monkeypatch.setattr(run, "FollowedFiles", Failing)
    async with open_rig(tmp_path, plugins=(("asker", asker),)) as r:
        person.user_file.write_text('[routes]\na = "b"\n')
        (event,) = await heard(r, 1, "reload_crashed")
        assert event["level"].lower() == "error"
        await soon(lambda: asker.now() == {"a": "b"}, 3)


async def test_a_scope_with_rules_that_cannot_be_read_goes_by_the_users(tmp_path, person):
    person.user_file.write_text('[routes]\na = "user"\n')
    async with open_rig(tmp_path) as r:
        for broken in ({"settings": {"routes": 7}}, {"project": {"routes": [1]}}):
            scope = Scope(new_id(), new_secret(), cwd=str(person.project), **broken)
            assert r.proxy.settings_for(scope).routes.plain() == {"a": "user"}
        (event, _) = await heard(r, 2, "scope_invalid")
        assert "expected a table" in event["message"]


async def test_the_hot_path_reads_no_file(tmp_path, person, monkeypatch):
    async with open_rig(tmp_path) as r:
        scope = person.launches(r)
        person.user_file.parent.rename(person.user_file.parent.with_name("gone"))

        def forbidden(*_):
            raise AssertionError("a file was opened")

        monkeypatch.setattr("os.open", forbidden)
        monkeypatch.setattr("pathlib.Path.stat", forbidden)
        assert r.proxy.settings_for(scope).routes == Section()
        monkeypatch.undo()
