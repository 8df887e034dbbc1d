"""What tests, benchmarks and plugin authors use: a fake Messages API, a scripted agent, and the demo made of both.

``providers`` are fake servers of other providers, ``codecs`` the conformance kit for whoever translates to one.

``origin`` is the oracle of our own tests and therefore shares no code with ``dbproxy.wire``.
"""

from __future__ import annotations
