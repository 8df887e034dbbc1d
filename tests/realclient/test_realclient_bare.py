"""The ground that the other tests stand on: the real client without a proxy, on the island, with the fake API."""

from __future__ import annotations

import pytest
from island import EXIT, START, typed

pytestmark = pytest.mark.realclient


def test_the_client_finds_the_fake_api_by_name(island):
    direct = {"NODE_EXTRA_CA_CERTS": str(island.ca)}
    story = island.run({"scenario": "plain"}, island.step("claude", "-p", "hi", env=direct))
    assert story.steps[0].code == 0, story
    assert "OK from the fake API." in story.steps[0].stdout
    assert set(story.roles) == {"main"}, story
    assert set(story.asked) == {"api.anthropic.com"}


def test_the_client_uses_a_base_url(island):
    base = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8081"}
    story = island.run({"scenario": "plain"}, island.step("claude", "-p", "hi", env=base))
    assert story.steps[0].code == 0, story
    assert story.roles == ["main"], story


def test_the_client_speaks_on_a_terminal(island):
    direct = {"NODE_EXTRA_CA_CERTS": str(island.ca)}
    keys = [*START, *typed("hello"), {"wait": "OK from the fake API."}, *EXIT]
    story = island.run({"scenario": "plain"}, island.step("claude", env=direct, keys=keys, seconds=30))
    assert story.steps[0].missed == "", story
    assert "main" in story.roles, story
