"""The tables of the database file, as SQL.

Owns names and meaning of tables and columns; ``migrations`` brings older files here. Content is kept once:

- a *blob* is a canonical message, system block, tool definition, template or answer, compressed, found by its digest;
- a *node* is one message of a request's exact history: its blob, the patch that restores the bytes as they were sent,
  and the node before it. Requests that share a history share its nodes, so that a turn costs what it adds;
- a *list* is a run of blobs with their patches: system blocks or tools.

Columns called *packed* hold JSON through ``Codec.pack``: the id of a dictionary as a variable-length integer (0 for
none), then a zstandard frame; ``Codec.unpack`` restores it.

Times are Unix seconds, durations milliseconds, cost in USD. Empty strings stand for "not known"; NULL only where a
number is not known.
"""

from __future__ import annotations

from typing import Final

#: Written to ``PRAGMA user_version``; a file with a higher one is refused.
VERSION: Final = 2
#: ``PRAGMA application_id``: "dbpx".
APPLICATION_ID: Final = 0x64627078

#: Words of messages and answers; rowid is the blob's id. detail=none keeps it small: phrases are checked afterwards.
SEARCH: Final = "CREATE VIRTUAL TABLE search USING fts5(text, content='', detail=none, tokenize='unicode61');"

TABLES: Final = (
    """
-- Shared dictionaries of the compression; data is a zstandard frame of one. Dropped when nothing was packed with it.
CREATE TABLE dictionary(id INTEGER PRIMARY KEY, made REAL NOT NULL, data BLOB NOT NULL);

-- Proxies that wrote here. One that has open exchanges and was not seen for minutes is dead: they are lost.
CREATE TABLE process(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  pid INTEGER NOT NULL,
  started REAL NOT NULL,
  seen REAL NOT NULL
);

CREATE TABLE blob(
  id INTEGER PRIMARY KEY,
  digest BLOB NOT NULL UNIQUE,            -- first 16 bytes of SHA-256 over the canonical bytes
  size INTEGER NOT NULL,                  -- of the canonical bytes
  dictionary INTEGER REFERENCES dictionary(id),
  base INTEGER REFERENCES blob(id),       -- or: a blob that served as dictionary and must stay as long; it has no base
  data BLOB NOT NULL                      -- zstandard frame
);
CREATE INDEX blob_base ON blob(base) WHERE base IS NOT NULL;

CREATE TABLE node(
  id INTEGER PRIMARY KEY,
  hash BLOB NOT NULL UNIQUE,              -- first 16 bytes of SHA-256 over parent hash, blob digest and patch
  parent INTEGER REFERENCES node(id),
  depth INTEGER NOT NULL,                 -- 1 for a first message
  blob INTEGER NOT NULL REFERENCES blob(id),
  patch BLOB                              -- NULL: the canonical bytes are the exact ones
);

CREATE TABLE list(
  id INTEGER PRIMARY KEY,
  digest BLOB NOT NULL UNIQUE,
  items BLOB NOT NULL                     -- JSON: [[blob id, patch as base64 or null], ...]
);

CREATE TABLE conversation(
  id TEXT PRIMARY KEY,
  account TEXT NOT NULL DEFAULT '',
  project TEXT NOT NULL DEFAULT '',
  client TEXT NOT NULL DEFAULT '',
  title TEXT NOT NULL DEFAULT '',
  started REAL NOT NULL,
  last REAL NOT NULL,
  forked_from TEXT NOT NULL DEFAULT ''    -- another conversation
) WITHOUT ROWID;

CREATE TABLE agent(
  conversation TEXT NOT NULL,
  thread TEXT NOT NULL,
  type TEXT NOT NULL DEFAULT '',
  name TEXT NOT NULL DEFAULT '',
  number INTEGER NOT NULL DEFAULT 0,
  parent_thread TEXT NOT NULL DEFAULT '',
  tool_use_id TEXT NOT NULL DEFAULT '',
  PRIMARY KEY(conversation, thread)
) WITHOUT ROWID;

CREATE TABLE exchange(
  id TEXT PRIMARY KEY,                    -- sortable: begins with the milliseconds of its start in hexadecimal
  state TEXT NOT NULL,                    -- open, closed, or lost (its proxy died)
  started REAL NOT NULL,
  finished REAL,
  process INTEGER NOT NULL DEFAULT 0,     -- that opened it
  method TEXT NOT NULL,
  host TEXT NOT NULL,
  path TEXT NOT NULL,
  via TEXT NOT NULL,
  scope TEXT NOT NULL DEFAULT '',
  project TEXT NOT NULL DEFAULT '',
  labels TEXT NOT NULL DEFAULT '{}',
  client TEXT NOT NULL DEFAULT '',
  account TEXT NOT NULL DEFAULT '',
  -- link
  conversation TEXT NOT NULL DEFAULT '',
  thread TEXT NOT NULL DEFAULT '',
  branch INTEGER NOT NULL DEFAULT 0,
  kind TEXT NOT NULL DEFAULT '',
  compaction TEXT NOT NULL DEFAULT '',
  parent TEXT NOT NULL DEFAULT '',
  edge TEXT NOT NULL DEFAULT '',
  attempt INTEGER NOT NULL DEFAULT 1,
  evidence BLOB,                          -- packed: [[question, answer, source, detail], ...]
  -- request
  model_asked TEXT NOT NULL DEFAULT '',
  streamed INTEGER NOT NULL DEFAULT 0,
  message_count INTEGER NOT NULL DEFAULT 0,
  request_headers BLOB,                   -- packed: [[name, value], ...]
  bytes_up INTEGER NOT NULL DEFAULT 0,
  body_kind TEXT NOT NULL DEFAULT 'none', -- none, parts, raw, shed (dropped under load), pruned
  body_sha256 BLOB,
  body_coding TEXT NOT NULL DEFAULT '',
  body_inexact INTEGER NOT NULL DEFAULT 0,
  template INTEGER REFERENCES blob(id),   -- the body around the parts; the whole body for 'raw'
  system_list INTEGER REFERENCES list(id),
  tool_list INTEGER REFERENCES list(id),
  tip INTEGER REFERENCES node(id),        -- the last message; its history hangs on it
  -- answer
  status INTEGER NOT NULL DEFAULT 0,
  outcome TEXT NOT NULL DEFAULT '',
  error TEXT NOT NULL DEFAULT '',
  first_byte_ms REAL,
  duration_ms REAL,
  bytes_down INTEGER NOT NULL DEFAULT 0,
  response_headers BLOB,                  -- packed: [[name, value], ...]
  model TEXT NOT NULL DEFAULT '',
  message_id TEXT NOT NULL DEFAULT '',
  request_id TEXT NOT NULL DEFAULT '',
  stop_reason TEXT NOT NULL DEFAULT '',
  message INTEGER REFERENCES blob(id),    -- final message or error, JSON
  message_inexact INTEGER NOT NULL DEFAULT 0,
  stream INTEGER REFERENCES blob(id),     -- optional: a line of JSON, [[ms, length], ...], then the bytes
  -- usage
  input_tokens INTEGER NOT NULL DEFAULT 0,
  output_tokens INTEGER NOT NULL DEFAULT 0,
  cache_read INTEGER NOT NULL DEFAULT 0,
  cache_write_5m INTEGER NOT NULL DEFAULT 0,
  cache_write_1h INTEGER NOT NULL DEFAULT 0,
  thinking_tokens INTEGER NOT NULL DEFAULT 0,
  web_searches INTEGER NOT NULL DEFAULT 0,
  iterations TEXT NOT NULL DEFAULT '[]',  -- JSON, where the answer gave them
  cost_usd REAL,
  priced_by TEXT NOT NULL DEFAULT '',
  -- route
  provider TEXT NOT NULL DEFAULT '',      -- that answered in place of the upstream
  route BLOB                              -- packed: what was decided, why, and each attempt; NULL without a route
);
CREATE INDEX exchange_conversation ON exchange(conversation, id);
CREATE INDEX exchange_message ON exchange(message_id) WHERE message_id <> '';
CREATE INDEX exchange_open ON exchange(state) WHERE state = 'open';

CREATE TABLE point(                       -- for linking after a restart
  conversation TEXT NOT NULL,
  thread TEXT NOT NULL,
  branch INTEGER NOT NULL,
  depth INTEGER NOT NULL,
  chain BLOB NOT NULL,
  exchange TEXT NOT NULL,
  PRIMARY KEY(conversation, thread, branch, depth)
) WITHOUT ROWID;
CREATE INDEX point_chain ON point(chain);

-- A row is written when a window's figures changed, and after some minutes even if they did not.
CREATE TABLE rate_limit(
  exchange TEXT NOT NULL,
  account TEXT NOT NULL,
  at REAL NOT NULL,
  window TEXT NOT NULL,
  status TEXT NOT NULL,
  utilization REAL,
  resets REAL,
  quota INTEGER,
  remaining INTEGER,
  PRIMARY KEY(account, window, at, exchange)
) WITHOUT ROWID;

CREATE TABLE shed(at REAL NOT NULL, exchange TEXT NOT NULL, bytes INTEGER NOT NULL);

-- Where a blob that is in the search index was first seen, so that a hit leads to an exchange.
CREATE TABLE found_in(blob INTEGER PRIMARY KEY, exchange TEXT NOT NULL, role TEXT NOT NULL);
"""
    + SEARCH
)
