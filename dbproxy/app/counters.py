"""Plain counters of one worker, as metric samples. Imports nothing that blocks; everything is an integer."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from dbproxy.hooks.metrics import Sample


@dataclass(slots=True)
class Counters:
    """What happened since start. Field names are the metric names; the metadata is their help text."""

    connections_total: int = field(default=0, metadata={"help": "Client connections accepted."})
    connections_open: int = field(default=0, metadata={"help": "Client connections open now.", "gauge": True})
    connections_refused_total: int = field(default=0, metadata={"help": "Client connections over the limit."})
    h2_connections_total: int = field(default=0, metadata={"help": "Client connections that spoke HTTP/2."})
    accept_errors_total: int = field(
        default=0, metadata={"help": "Failed accepts, for example no file descriptor left."}
    )
    connects_intercepted_total: int = field(default=0, metadata={"help": "CONNECTs whose TLS was terminated here."})
    connects_tunnelled_total: int = field(default=0, metadata={"help": "CONNECTs relayed blindly."})
    connects_refused_total: int = field(default=0, metadata={"help": "CONNECTs answered with an error."})
    handshakes_failed_total: int = field(default=0, metadata={"help": "TLS handshakes with clients that failed."})
    certificates_rejected_total: int = field(
        default=0, metadata={"help": "Clients that did not accept our certificate."}
    )
    exchanges_total: int = field(default=0, metadata={"help": "Requests begun."})
    exchanges_open: int = field(default=0, metadata={"help": "Requests under way.", "gauge": True})
    exchanges_local_total: int = field(default=0, metadata={"help": "Requests answered here."})
    exchanges_failed_total: int = field(default=0, metadata={"help": "Requests that the upstream did not answer."})
    exchanges_cut_total: int = field(default=0, metadata={"help": "Answers that the upstream broke off."})
    exchanges_aborted_total: int = field(default=0, metadata={"help": "Requests whose client went away."})
    upgrades_total: int = field(default=0, metadata={"help": "Requests that became a two-way stream."})
    bytes_up_total: int = field(default=0, metadata={"help": "Request body bytes relayed."})
    bytes_down_total: int = field(default=0, metadata={"help": "Response body bytes relayed."})
    tunnel_bytes_total: int = field(default=0, metadata={"help": "Bytes relayed blindly, both ways."})
    protocol_errors_total: int = field(default=0, metadata={"help": "Requests that were not HTTP as it should be."})
    crashes_total: int = field(
        default=0, metadata={"help": "Connections ended by an error of ours. Please report these."}
    )


def samples(counters: Counters) -> list[Sample]:
    """The counters as metric samples."""
    return [
        Sample(
            f"dbproxy_{item.name}",
            getattr(counters, item.name),
            kind="gauge" if item.metadata.get("gauge") else "counter",
            help=item.metadata["help"],
        )
        for item in fields(counters)
    ]
