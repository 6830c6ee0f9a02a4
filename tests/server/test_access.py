"""Who may talk to a server: headers, tokens behind a real proxy, certificates; and that no secret is ever shown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
import urllib.request

import pytest
from chromadb.config import Settings
from pydantic import SecretStr

import aiochroma
from aiochroma.client.options import HttpOptions


@pytest.mark.parametrize(
    ("name", "value", "is_read"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1080", True),
        ("HTTP_PROXY", "ftp://proxy:1", True),
        ("NO_PROXY", "[::1]", True),
        ("SSL_CERT_FILE", "/no/such/file.pem", False),
    ],
)
async def test_what_the_environment_says_of_other_machines(server, monkeypatch, name, value, is_read):
    """It is not even looked at for a server on this one; for another it is, where it matters, and the error says so."""
    for variable in ("no_proxy", "NO_PROXY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    async with aiochroma.AsyncHttpClient("127.0.0.1", server.port) as client:
        assert await client.heartbeat()
    expected = aiochroma.InvalidInputError if is_read else aiochroma.StoreUnavailableError
    with pytest.raises(expected, match="PROXY" if is_read else "No Chroma server"):
        await aiochroma.AsyncHttpClient("chroma.invalid", 8000)


async def test_each_client_sends_its_own_headers(relay):
    """Two clients in one loop, on one server, with different headers: neither ever sends the other's."""
    async with (
        aiochroma.AsyncHttpClient(
            "127.0.0.1", relay.port, headers={"x-who": "anna"}, tenant="default_tenant"
        ) as anna,
        aiochroma.AsyncHttpClient("127.0.0.1", relay.port, headers={"x-who": "bert"}) as bert,
    ):
        opened = len(relay.seen)
        calls = [anna.count_collections() for _ in range(5)] + [bert.list_collections() for _ in range(5)]
        await asyncio.gather(*calls, anna.heartbeat(), bert.get_version())
    of_whom = {(seen.operation, seen.headers["x-who"]) for seen in relay.seen[opened:]}
    assert of_whom == {
        ("collections_count", "anna"),
        ("heartbeat", "anna"),
        ("collections", "bert"),
        ("version", "bert"),
    }


@pytest.mark.parametrize(
    ("header", "sent"),
    [
        ("authorization", {"authorization": "Bearer a-token"}),
        ("x-chroma-token", {"x-chroma-token": "a-token"}),
        ("both", {"authorization": "Bearer a-token", "x-chroma-token": "a-token"}),
    ],
)
async def test_the_token_goes_where_it_should(relay, header, sent):
    """The token is sent as configured, and only so."""
    async with aiochroma.AsyncHttpClient(
        "127.0.0.1", relay.port, auth_token=SecretStr("a-token"), auth_header=header
    ):
        pass
    for seen in relay.seen:
        headers = {name.lower(): value for name, value in seen.headers.items()}
        assert {
            name: headers[name] for name in ("authorization", "x-chroma-token") if name in headers
        } == sent


async def test_chromas_own_settings_for_a_token(relay):
    """Settings as Chroma's own client takes them work, are not changed, and nothing secret is left in those in force."""
    settings = Settings(
        chroma_client_auth_provider="chromadb.auth.token_authn.TokenAuthClientProvider",
        chroma_client_auth_credentials="a-token",
        chroma_server_headers={"x-more": "hidden-value"},
    )
    before = settings.model_dump()
    async with aiochroma.AsyncHttpClient("127.0.0.1", relay.port, settings=settings) as client:
        in_force = repr(client.get_settings()) if hasattr(client, "get_settings") else ""
        in_force += repr(client._server.get_settings())
    assert settings.model_dump() == before
    assert {seen.headers["Authorization"] for seen in relay.seen} == {"Bearer a-token"}
    assert {seen.headers["x-more"] for seen in relay.seen} == {"hidden-value"}
    assert "a-token" not in in_force
    assert "hidden-value" not in in_force


async def test_the_secret_is_shown_nowhere(relay, name, caplog):
    """A token is in no representation, error, log record or statistics, even where a proxy echoes what it was sent."""
    secret = "S3cretS3cretS3cret"
    caplog.set_level(logging.DEBUG)
    shown = []
    opening = aiochroma.AsyncHttpClient(
        "127.0.0.1", relay.port, auth_token=secret, auth_header="both", attempts=2
    )
    shown.append(repr(opening))
    async with opening as client:
        collection = await client.create_collection(name, embedding_function=None)
        engine = client.session.connection.engine
        shown += [
            repr(client),
            repr(engine.location),
            repr(engine.options),
            str(client.stats()),
            repr(collection),
        ]
        shown += [str(await client.health()), repr(client._server.get_settings()), engine.serving.thread.name]
        shown += [str(vars(record)) for record in caplog.records]

        async def collect(call):
            with pytest.raises(aiochroma.AiochromaError) as error:
                await call
            shown.extend(
                [str(error.value), repr(error.value), "".join(traceback.format_exception(error.value))]
            )

        def echo(status):
            location = {"Content-Type": "text/plain", "Location": f"http://x/?{secret}"}
            return lambda seen: (status, location, repr(seen.headers).encode())

        for status in (301, 401, 403, 404, 413, 500, 502, 503):
            relay.rule = echo(status)
            await collect(collection.count())
            await collect(collection.delete(where={"a": 1}))
        relay.rule = lambda seen: "lose-response"
        await collect(collection.count())
        shown += [str(client.stats()), str(await client.health())]
        relay.rule = lambda seen: None
    # At DEBUG the HTTP library logs the headers of answers, and so what this proxy has put there.
    shown += [str(vars(record)) for record in caplog.records if not record.name.startswith("httpcore")]
    assert any(secret in str(seen.headers) for seen in relay.seen), "the test would see nothing otherwise"
    assert not [text for text in shown if secret in text]


@pytest.mark.parametrize("token", ["with space", "new\nline", "", "ümlaut"])
def test_a_token_that_cannot_be_sent(token):
    """A token that no header can carry is refused at once, without being repeated."""
    with pytest.raises(aiochroma.InvalidInputError) as error:
        aiochroma.AsyncHttpClient(auth_token=token)
    assert not token or token not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"host": ""}, "`host`"),
        ({"host": "user:password@host"}, "must not contain user name"),
        ({"host": "ftp://host"}, "http://"),
        ({"host": "no such host"}, "`host`"),
        ({"port": 0}, "`port`"),
        ({"port": "8000"}, "`port`"),
        ({"timeout": 0}, "`timeout`"),
        ({"connections": 0}, "`connections`"),
        ({"connections": 1.5}, "`connections`"),
        ({"read_timeout": -1}, "`read_timeout`"),
        ({"auth_header": "cookie"}, "`auth_header`"),
        ({"headers": {"bad name": "x"}}, "bad name"),
        ({"headers": {"x": "a\r\nb: c"}}, "'x'"),
        ({"headers": {"Authorization": "x"}, "auth_token": "y"}, "one of the two"),
        ({"ca_file": "ca.pem"}, "`ssl=True`"),
        ({"settings": Settings(chroma_server_host="elsewhere")}, "another host"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_arguments(arguments, what):
    """What is wrong with an argument is said at once, naming it, and no password is repeated."""
    with pytest.raises(aiochroma.InvalidInputError) as error:
        aiochroma.AsyncHttpClient(**arguments)
    assert what in str(error.value)
    assert "password" not in str(error.value).replace("user name or password", "")


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        (("LocalHost", 8000, False), "http://localhost:8000"),
        (("example.org", 443, True), "https://example.org:443"),
        (("https://example.org/chroma/", 8000, False), "https://example.org:443/chroma"),
        (("http://example.org:81", 8000, False), "http://example.org:81"),
        (("::1", 8000, False), "http://[::1]:8000"),
        (("127.0.0.1", 1, False), "http://127.0.0.1:1"),
    ],
)
def test_addresses(arguments, url):
    """A host may be a name, an address or a URL; there is one spelling for each server."""
    assert (
        HttpOptions(**dict(zip(("host", "port", "ssl"), arguments, strict=True))).resolve().location.url
        == url
    )


def test_credentials_tell_locations_apart():
    """Whatever is sent along tells one engine from another; nothing of it can be seen."""
    given = [
        {},
        {"headers": {"x-a": "one"}},
        {"headers": {"x-a": "two"}},
        {"auth_token": "one-token"},
        {"auth_token": "one-token", "auth_header": "both"},
        {"tenant": "other"},
    ]
    targets = [HttpOptions(host="h", port=1, **arguments).resolve() for arguments in given]
    assert len({target.location for target in targets}) == len(given)
    assert len({repr(target.location) for target in targets}) == 1
    same = HttpOptions(host="H", port=1, headers={"X-A": "one"}).resolve()
    assert same.location == targets[1].location


# -- behind nginx, as in the example -----------------------------------------------------------------------------------


def opening(proxy, certificates, **arguments):
    return aiochroma.AsyncHttpClient(
        "127.0.0.1", proxy.port, True, ca_file=certificates / "ca.pem", **arguments
    )


@pytest.mark.parametrize("header", ["authorization", "x-chroma-token", "both"])
async def test_with_the_token(proxy, certificates, token, name, header):
    """With the token, in either header, a client works through TLS and the proxy."""
    async with opening(proxy, certificates, auth_token=token, auth_header=header) as client:
        collection = await client.create_collection(name, embedding_function=None)
        await collection.upsert(ids=["a", "b"], embeddings=[[1.0, 0.0], [0.0, 1.0]])
        found = await asyncio.gather(
            *(collection.query(query_embeddings=[[1.0, 0.0]], n_results=1) for _ in range(30))
        )
        assert {one["ids"][0][0] for one in found} == {"a"}


async def test_large_bodies_pass_the_proxy(proxy, certificates, token, name):
    """Bulk writing and large records fit through the proxy as it is shipped."""
    async with opening(proxy, certificates, auth_token=token) as client:
        collection = await client.create_collection(name, embedding_function=None)
        await collection.upsert(
            ids=[str(number) for number in range(600)],
            embeddings=[[float(number)] * 300 for number in range(600)],
            documents=["y" * 3000] * 600,
        )
        await collection.upsert(ids=["large"], embeddings=[[1.0] * 300], documents=["z" * 5_000_000])
        assert await collection.count() == 601


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda token: None, "No token was sent"),
        (lambda token: "wrong" + token, "not accepted"),
        (lambda token: token.swapcase(), "not accepted"),
        (lambda token: token[:-1], "not accepted"),
    ],
    ids=["none", "wrong", "other case", "shortened"],
)
async def test_without_the_token(proxy, certificates, token, change, what):
    """Without the token, or with anything but exactly it, access is denied at once, and the error says what to check."""
    wrong = change(token)
    with pytest.raises(aiochroma.AccessDeniedError, match=f"HTTP 401.*{what}.*CHROMA_AUTH_TOKEN") as error:
        await opening(proxy, certificates, auth_token=wrong)
    assert wrong is None or wrong not in str(error.value)


async def test_the_health_check_needs_no_token(proxy):
    """The shipped health check answers without a token, and gives away nothing else."""
    url = f"http://127.0.0.1:{proxy.health_port}"

    def status(path):
        with (
            contextlib.suppress(urllib.error.HTTPError),
            urllib.request.urlopen(url + path, timeout=30) as response,
        ):
            return response.status
        return None

    assert await asyncio.to_thread(status, "/health") == 200
    assert await asyncio.to_thread(status, "/api/v2/version") is None


async def test_a_certificate_of_another_authority(proxy, other_certificates, token):
    """A server whose certificate the given authority has not signed is refused, without repeating, and told why."""
    with pytest.raises(aiochroma.StoreUnavailableError, match=r"certificate.*refused.*ca_file") as error:
        await opening(proxy, other_certificates, auth_token=token)
    assert "attempts" not in str(error.value)


async def test_the_systems_authorities_do_not_know_it(proxy, token):
    """Certificates are verified without being asked to."""
    with pytest.raises(aiochroma.StoreUnavailableError, match="the system's authorities"):
        await aiochroma.AsyncHttpClient("127.0.0.1", proxy.port, True, auth_token=token)


async def test_a_certificate_for_another_name(proxy, certificates, token):
    """A certificate for another name is refused."""
    with pytest.raises(aiochroma.StoreUnavailableError, match=r"certificate.*refused.*localhost"):
        await aiochroma.AsyncHttpClient(
            "localhost", proxy.port, True, ca_file=certificates / "ca.pem", auth_token=token
        )


async def test_tls_where_there_is_none(server):
    """TLS to a server that speaks none is told apart from a certificate that is not trusted."""
    with pytest.raises(aiochroma.StoreUnavailableError, match="`ssl=False`"):
        await aiochroma.AsyncHttpClient("127.0.0.1", server.port, True)


async def test_no_tls_where_there_is_some(proxy, token):
    """Plain HTTP to a TLS port says what the proxy says."""
    with pytest.raises(aiochroma.StoreUnavailableError, match="plain HTTP request was sent to HTTPS port"):
        await aiochroma.AsyncHttpClient("127.0.0.1", proxy.port, auth_token=token)


async def test_a_file_of_certificates_that_is_none(server, tmp_path):
    """A file that is missing, or holds no certificates, is named."""
    for path in (tmp_path / "missing.pem", tmp_path):
        with pytest.raises(aiochroma.InvalidInputError, match="`ca_file`"):
            await aiochroma.AsyncHttpClient("127.0.0.1", server.port, True, ca_file=path)


async def test_restart_behind_the_proxy(own_server, proxy_to, certificates, token, name):
    """While the server behind the proxy restarts, the proxy's 502 is not seen by callers of harmless calls."""
    with proxy_to(own_server.port) as proxy:
        # So many attempts that a restart is over before the last, however busy the machine.
        async with opening(proxy, certificates, auth_token=token, attempts=40) as client:
            collection = await client.create_collection(name, embedding_function=None)
            await collection.upsert(ids=["a"], embeddings=[[1.0, 0.0]])
            await asyncio.to_thread(own_server.kill)
            waiting = [asyncio.ensure_future(collection.count()) for _ in range(10)]
            writing = asyncio.ensure_future(collection.upsert(ids=["b"], embeddings=[[0.0, 1.0]]))
            await asyncio.to_thread(own_server.start)
            await writing
            assert {await one for one in waiting} <= {1, 2}
            assert await collection.count() == 2
