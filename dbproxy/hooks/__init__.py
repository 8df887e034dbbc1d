"""What plugins may hook into, and how their implementations are found, called, limited and watched.

Owns the hook specifications (specs), their kinds and deadlines (kinds), discovery (manager), the call loops (calls
without an event loop, dispatch with one), filters and taps (taps), metric samples (metrics) and the generated hook
page (document). Knows no product feature. Must not import net, store, proc, app or cli.
"""
