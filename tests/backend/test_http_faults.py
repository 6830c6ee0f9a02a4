"""Error pages of servers and proxies: what is shown of them, and that looking at them never takes long."""

from __future__ import annotations

import httpx
import pytest

from aiochroma.backend.server import Access, Answer, examine


def _shown(body, access=None):
    request = httpx.Request("GET", "http://x/")
    response = httpx.Response(502, headers={"content-type": "text/html"}, content=body, request=request)
    with pytest.raises(Answer) as caught:
        examine(response, access or Access())
    return str(caught.value)


@pytest.mark.parametrize("piece", [b"<", b"<script", b"<script>", b"< a", b"</", b"<a<b>", b"\xff<"])
def test_a_page_made_to_be_slow(piece):
    """Some megabytes of it are looked at in one pass; anything worse would not end within this test's time limit."""
    assert len(_shown(piece * (4_000_000 // len(piece)))) < 300
    assert len(_shown(b"<" + b"a" * 4_000_000)) < 300


def test_the_text_of_a_page_is_shown():
    """Without markup, scripts, styles and what was sent."""
    page = b"<html><head><title>x</title></head><body><h1>Bad gateway</h1><script>a<b</script><p>token swordfish</p></body>"
    assert _shown(page, Access(secrets=("swordfish",))) == "HTTP 502 (Bad gateway token ***)"
