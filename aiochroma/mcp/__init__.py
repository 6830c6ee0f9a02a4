"""The Model Context Protocol: a memory for coding agents and other programs that speak it.

``aiochroma mcp`` is what such a program starts, once for each session. That process only passes messages on. One server process
for each directory holds the memory: the first session starts it, it ends after the last one, and it shares the directory
with other programs through a host. The server needs the extra ``mcp``.

:func:`aiochroma.mcp.server.make_server` makes a server of a memory in this process.
"""
