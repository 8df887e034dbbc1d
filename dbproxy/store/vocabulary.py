"""What the first messages of a file are compressed with, before it has words of its own.

Owns the text that becomes the first row of ``dictionary``: the shapes that clients of the Messages API send and receive
(API facts 1, client facts 2), so that small values cost tens of bytes from the start. Imports nothing of dbproxy.
Changing it is harmless: every file keeps the dictionary that it was written with.
"""

from __future__ import annotations

from typing import Final

# The most frequent shapes stand last: zstandard codes nearer matches in fewer bits.
VOCABULARY: Final = (
    b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_"}'
    b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: tokens > maximum"}}'
    b'{"type":"error","error":{"type":"rate_limit_error","message":"This request would exceed the rate limit."}}'
    b'{"type":"image","source":{"type":"base64","media_type":"image/png","data":"'
    b'{"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"'
    b'{"name":"Bash","description":"Executes a given bash command","input_schema":{"$schema":"https://json-schema.org/'
    b'draft/2020-12/schema","type":"object","properties":{"command":{"description":"The command to execute",'
    b'"type":"string"},"file_path":{"description":"The absolute path to the file","type":"string"},"pattern":{'
    b'"description":"","type":"string","enum":[]},"timeout":{"type":"number"}},"required":["command"],'
    b'"additionalProperties":false}}'
    b'{"type":"text","text":"<system-reminder>\\nAs you answer the user\'s questions, you can use this context:'
    b"\\n# claudeMd\\nCodebase and user instructions are shown below. IMPORTANT: this context may or may not be"
    b" relevant to your tasks. You should not respond to this context unless it is highly relevant to your task.\\n"
    b'</system-reminder>\\n"}'
    b"The file has been updated successfully. The todo list has been modified successfully. No matches found\\n"
    b"import from return self def class None True False if not else for in async await function const export\\n    "
    b'[["connection","keep-alive"],["Accept","application/json"],["X-Stainless-Retry-Count","0"],'
    b'["X-Stainless-Timeout","600"],["X-Stainless-Lang","js"],["X-Stainless-Package-Version","0.81.0"],'
    b'["X-Stainless-OS","Linux"],["X-Stainless-Arch","x64"],["X-Stainless-Runtime","node"],'
    b'["X-Stainless-Runtime-Version","v24.3.0"],["anthropic-dangerous-direct-browser-access","true"],'
    b'["anthropic-version","2023-06-01"],["authorization","hmac:"],["x-api-key","hmac:"],["x-app","cli"],'
    b'["User-Agent","claude-cli/2.1.329 (external, cli)"],["X-Claude-Code-Session-Id","'
    b'["content-type","application/json"],["anthropic-beta","claude-code-20250219,oauth-2025-04-20,'
    b"interleaved-thinking-2025-05-14,context-management-2025-06-27,prompt-caching-scope-2026-01-05,"
    b'effort-2025-11-24"],["accept-language","*"],["sec-fetch-mode","cors"],'
    b'["accept-encoding","gzip, deflate, br, zstd"],["content-length","'
    b'[["Date","Mon, 01 Jan 2026 00:00:00 GMT"],["Content-Type","text/event-stream; charset=utf-8"],'
    b'["Transfer-Encoding","chunked"],["Connection","keep-alive"],["Cache-Control","no-cache"],'
    b'["anthropic-ratelimit-unified-status","allowed"],["anthropic-ratelimit-unified-5h-status","allowed"],'
    b'["anthropic-ratelimit-unified-5h-reset","17"],["anthropic-ratelimit-unified-5h-utilization","0.'
    b'"],["anthropic-ratelimit-unified-7d-status","allowed"],["anthropic-ratelimit-unified-7d-reset","17"],'
    b'["anthropic-ratelimit-unified-7d-utilization","0."],'
    b'["anthropic-ratelimit-unified-representative-claim","five_hour"],'
    b'["anthropic-ratelimit-unified-fallback-percentage","0.5"],["anthropic-ratelimit-unified-reset","17"],'
    b'["anthropic-ratelimit-unified-overage-disabled-reason","org_level_disabled"],'
    b'["anthropic-ratelimit-unified-overage-status","rejected"],["request-id","req_011C"],'
    b'["strict-transport-security","max-age=31536000; includeSubDomains; preload"],'
    b'["anthropic-organization-id",""],["Server","cloudflare"],["x-envoy-upstream-service-time",""],'
    b'["cf-cache-status","DYNAMIC"],["X-Robots-Tag","none"],["CF-RAY","-FRA"]]'
    b'[["session","","x-claude-code-session-id",""],["kind","main","header",""],["agent","main","header",""],'
    b'["parent","","longest prefix",""],["branch","1","longest prefix",""],["account","","credential",""]]'
    b'{"model":"claude-opus-4-5-20251101","id":"msg_01","type":"message","role":"assistant","content":[{"type":'
    b'"thinking","thinking":"","signature":""},{"type":"text","text":""}],"stop_reason":"end_turn","stop_sequence":null,'
    b'"usage":{"input_tokens":3,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"cache_creation":{'
    b'"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"output_tokens":0,"service_tier":"standard"}}'
    b'{"model":"claude-opus-4-5-20251101","messages":[],"system":[{"type":"text","text":"x-anthropic-billing-header: '
    b'cc_version=2.1.329; cc_entrypoint=cli; cch=00000;"}],"tools":[],"metadata":{"user_id":"{\\"device_id\\":\\"\\",'
    b'\\"account_uuid\\":\\"\\",\\"session_id\\":\\"\\"}"},"max_tokens":32000,"thinking":{"budget_tokens":31999,'
    b'"type":"enabled"},"context_management":{"edits":[{"type":"clear_thinking_20251015","keep":"all"}]},'
    b'"output_config":{"effort":"medium"},"stream":true}'
    b'{"role":"assistant","content":[{"type":"tool_use","id":"toolu_01","name":"Edit","input":{"file_path":"/home/'
    b'","old_string":"","new_string":"","replace_all":false}}]}'
    b'{"role":"assistant","content":[{"type":"thinking","thinking":"","signature":"E"},{"type":"tool_use",'
    b'"id":"toolu_01","name":"Bash","input":{"command":"","description":""},"caller":{"type":"direct"}}]}'
    b'{"role":"user","content":[{"tool_use_id":"toolu_01","type":"tool_result","content":"","is_error":false}]}'
)
