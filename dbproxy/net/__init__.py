"""Sockets and TLS on Trio: certificates, dialling, the user's own proxy, blind tunnels, the upstream pool.

Knows nothing of the Messages API. Never imports store, proc, hooks, app or cli.
"""
