"""Searches of the web that the model's own server made, as the Messages API shows them: pairs of call and result.

Owns the two blocks and the citations. Pure. Invariant: a result stands directly behind its call. A search whose pages
are told with it is shown where it was made; one whose pages are known only by what the text cites waits for that text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes

if TYPE_CHECKING:
    from dbproxy.model.codecs.writer import MessageWriter

_STRANGE: Final = re.compile(r"[^A-Za-z0-9_]")


class Searches:
    """The searches of one answer."""

    def __init__(self, writer: MessageWriter) -> None:
        self._writer = writer
        self._count = 0
        self._waiting: list[tuple[str, dict[str, Any]]] = []  # ids and inputs
        self._pages: dict[str, str] = {}  # url to title, of what was cited since the last search was shown

    def add(self, item: dict[str, Any]) -> None:
        """A web_search_call, whole."""
        self._count += 1
        id = f"srvtoolu_{_STRANGE.sub('_', shapes.text(item.get('id')))[:60] or 'search'}_{self._count}"
        action = shapes.mapping(item.get("action"))
        asked = _asked(action)
        if item.get("status") == "failed":
            self._show(id, asked, {"type": "web_search_tool_result_error", "error_code": "unavailable"})
            return
        sources = map(shapes.mapping, shapes.sequence(action.get("sources")))
        urls = [url for source in sources if (url := shapes.text(source.get("url")))]
        if not urls and action.get("type") != "search" and shapes.text(action.get("url")):
            urls = [action["url"]]  # a page that was opened
        if urls:
            self._show(id, asked, [_page(url, url) for url in dict.fromkeys(urls)])
        else:
            self._waiting.append((id, asked))

    def cite(self, annotation: dict[str, Any]) -> None:
        """An annotation of the text at hand; others than citations of pages have no twin."""
        url = shapes.text(annotation.get("url"))
        if annotation.get("type") != "url_citation" or not url:
            return
        title = shapes.text(annotation.get("title"))
        if not self._pages.get(url):
            self._pages[url] = title
        # The two that only Anthropic's server could fill: what the page says, and where in it.
        location = {"type": "web_search_result_location", "url": url, "title": title or None}
        self._writer.cite({**location, "encrypted_index": "", "cited_text": ""})

    def close(self) -> None:
        """A text has ended: searches that waited for it are shown, the pages with the last of them."""
        waiting, self._waiting = self._waiting, []
        for at, (id, asked) in enumerate(waiting, 1):
            pages = [_page(url, title or url) for url, title in self._pages.items()] if at == len(waiting) else []
            self._show(id, asked, pages)
        self._pages.clear()

    def _show(self, id: str, asked: dict[str, Any], content: list[dict[str, Any]] | dict[str, Any]) -> None:
        self._writer.whole({"type": "server_tool_use", "id": id, "name": "web_search", "input": asked})
        self._writer.whole({"type": "web_search_tool_result", "tool_use_id": id, "content": content})


def _asked(action: dict[str, Any]) -> dict[str, Any]:
    """What was looked for, or which page was opened."""
    query = shapes.text(action.get("query"))
    queries = [text for text in shapes.sequence(action.get("queries")) if isinstance(text, str)]
    if query or queries:
        return {"query": query or "; ".join(queries)}
    return {name: action[name] for name in ("url", "pattern") if isinstance(action.get(name), str)}


def _page(url: str, title: str) -> dict[str, Any]:
    return {"type": "web_search_result", "url": url, "title": title, "encrypted_content": "", "page_age": None}
