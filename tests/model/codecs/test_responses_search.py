"""Searches of the web that the Responses API made, as the client gets them. Numbers are those of seed-001 section 7."""

from __future__ import annotations

import pytest
from responsestalk import CITED, WHOLE, Talk, heard, read, without


def test_case_76_responses_a_search_is_a_pair_and_the_text_keeps_its_citations() -> None:
    talk = Talk().search("news", "https://a.example/x", "https://b.example/").message("Yes", annotations=[CITED])
    answer = heard(talk.end())
    use, result, text = answer.content
    assert (use["type"], use["name"], use["input"]) == ("server_tool_use", "web_search", {"query": "news"})
    assert result["tool_use_id"] == use["id"]
    assert [page["url"] for page in result["content"]] == ["https://a.example/x", "https://b.example/"]
    assert text["text"] == "Yes"
    assert [(cited["url"], cited["title"]) for cited in text["citations"]] == [("https://a.example/x", "X")]
    assert answer.stop == "end_turn"
    assert read(talk.document()).message == answer.message


@pytest.mark.parametrize("lost", [("annotation.added",), ("annotation.added", *WHOLE), WHOLE])
def test_case_76_responses_citations_are_told_once_wherever_they_stand(lost: tuple[str, ...]) -> None:
    answer = heard(without(Talk().search("q", "https://b.example/").message("Yes", annotations=[CITED]).end(), *lost))
    assert len(answer.content[-1]["citations"]) == 1


def test_a_search_without_its_pages_has_those_that_were_cited() -> None:
    answer = heard(Talk().search("a").search("b").message("Yes", annotations=[CITED, CITED]).call("Read", "{}").end())
    kinds = [block["type"] for block in answer.content]
    pair = ["server_tool_use", "web_search_tool_result"]
    assert kinds == ["text", *pair, *pair, "tool_use"]
    assert answer.content[2]["content"] == []
    assert [(page["url"], page["title"]) for page in answer.content[4]["content"]] == [("https://a.example/x", "X")]


def test_a_search_with_nothing_behind_it_is_shown_at_the_end() -> None:
    answer = heard(Talk().search("a").end())
    assert [block["type"] for block in answer.content] == ["server_tool_use", "web_search_tool_result"]


def test_a_search_that_failed_says_so() -> None:
    answer = heard(Talk().search("a", status="failed").message("x").end())
    assert answer.content[1]["content"] == {"type": "web_search_tool_result_error", "error_code": "unavailable"}


def test_a_page_that_was_opened_is_its_result() -> None:
    item = {"type": "web_search_call", "id": "ws", "status": "completed"}
    item["action"] = {"type": "open_page", "url": "https://a.example/x"}  # type: ignore[assignment]
    use, result = read(Talk().document(output=[item])).content
    assert use["input"] == {"url": "https://a.example/x"}
    assert result["content"][0]["url"] == "https://a.example/x"


def test_a_search_before_a_call_is_shown_before_it() -> None:
    talk = Talk().search("a").call("Read", "{}", call_id="c")
    for answer in (heard(talk.end()), read(talk.document())):
        assert [block["type"] for block in answer.content] == ["server_tool_use", "web_search_tool_result", "tool_use"]


def test_every_search_has_its_own_pages_and_id() -> None:
    other = CITED | {"url": "https://b.example/", "title": ""}
    talk = Talk().search("a").message("Yes", annotations=[CITED]).search("b").message("No", annotations=[other])
    for item in talk.output:
        item.pop("id")
    content = read({"output": talk.output}).content
    assert [page["url"] for page in content[2]["content"]] == ["https://a.example/x"]
    assert [(page["url"], page["title"]) for page in content[5]["content"]] == [("https://b.example/",) * 2]
    assert content[3]["citations"][0]["title"] is None
    assert len({block["id"] for block in content if block["type"] == "server_tool_use"}) == 2


def test_a_page_that_was_found_twice_is_listed_once() -> None:
    assert len(heard(Talk().search("a", "https://a.example/", "https://a.example/").end()).content[1]["content"]) == 1


@pytest.mark.parametrize(
    "annotation",
    [
        {"type": "file_citation", "file_id": "f", "filename": "n", "index": 1, "url": "https://a.example/"},
        {"type": "url_citation", "start_index": 0, "end_index": 1},
        {"type": "url_citation", "url": 5},
    ],
)
def test_other_annotations_than_pages_are_left_out(annotation: object) -> None:
    talk = Talk().message("Yes")
    talk.output[0]["content"][0]["annotations"] = [annotation]
    assert "citations" not in read({"output": talk.output}).content[0]
