"""What a request holds that no other dialect can say, or that a model does not take: asked before it is written.

Pure. Source: seed-001 3.1 and 3.3. Invariant: each reason names the thing; what only one dialect lacks stands there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dbproxy.model.codecs.capabilities import Capabilities
    from dbproxy.model.codecs.request import Request


def lacking(request: Request, can: Capabilities) -> str:
    """Why a model at another server cannot be asked this, "" if it can. Server tools are the dialect's to judge."""
    features = request.features
    if "thread" in features:
        return "a message thread: its earlier messages are not in the request"
    if "files" in features:
        return "files that were uploaded to the Messages API"
    if "images" in features and not can.images:
        return "the model takes no images"
    if "documents" in features and not can.documents:
        return "the model takes no documents"
    if "prefill" in features and "prefill" in can.refuses:
        return "an answer that is begun already"
    if request.tools and not can.tools:
        return "the model takes no tools"
    if request.max_tokens == 0:
        return "max_tokens is 0, which only fills the Messages API's own cache"
    client = next((feature for feature in sorted(features) if feature.startswith("client tool ")), "")
    return f"the {client}, which has no schema" if client else ""
