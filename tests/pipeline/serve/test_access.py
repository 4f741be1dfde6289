"""Who gets in: names, tokens, sessions, foreign pages; asked over real sockets."""

from __future__ import annotations

import http.client

import pytest

from pipeline.errors import SettingsError
from pipeline.serve import access
from pipeline.serve.access import Attempts, Sessions, new_token, read_token
from pipeline.serve.listen import ListenAddress
from pipeline.serve.openapi import ROUTES
from pipeline.serve.server import PageOptions
from tests.pipeline.serve.held_run import TOKEN

pytestmark = pytest.mark.timeout(300)
CLOSED = [route for route in ROUTES if not route.is_open]


def path_of(route) -> str:
    return route.path.replace("{viewer}", "x").replace("{stream}", "0").replace("{name}", "page.js")


def test_a_token_is_asked_for_wherever_others_could_ask() -> None:
    for host in ("0.0.0.0", "192.168.0.1", "cam.local", "::"):
        with pytest.raises(ValueError, match="needs a token"):
            PageOptions(listen=ListenAddress(host=host, port=0))
    with pytest.raises(ValueError, match="needs a token"):
        PageOptions(listen=ListenAddress(host="127.0.0.1", port=0), origins=("https://a.example",))


@pytest.mark.parametrize("route", CLOSED, ids=lambda route: f"{route.method} {route.path}")
def test_nothing_is_given_without_the_token(serve, route) -> None:
    held = serve(host="0.0.0.0", token=TOKEN)
    client = held.client()
    for headers in (
        {},
        {"Authorization": "Basic " + TOKEN},
        {"Authorization": TOKEN},
        {"Cookie": f"{access.COOKIE}={TOKEN}"},
        {"Cookie": f"{access.COOKIE}="},
        {"X-CSRF-Token": TOKEN},
    ):
        answer = client(route.method, path_of(route), {} if route.body else None, headers)
        assert answer.status == 401, headers
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert "token is needed" in answer.error
    assert len(held.run.channels) == 0


def test_what_is_open_says_nothing_of_the_run(serve) -> None:
    client = serve(host="0.0.0.0", token=TOKEN).client()
    for path in ("/", "/static/page.js", "/healthz", "/readyz", "/api/session"):
        answer = client("GET", path)
        assert answer.status in {200, 503}, path
        assert b"cam/1" not in answer.body
    assert client("GET", "/api/session").json == {"needs_token": True, "csrf": None}


def test_bearer_needs_nothing_else(serve) -> None:
    client = serve(host="0.0.0.0", token=TOKEN).client()
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    assert client("GET", "/metrics").status == 200
    assert client("PUT", "/api/streams/0/recording", {"on": True}).json["on"] is True


def test_log_in_and_out(serve) -> None:
    client = serve(host="0.0.0.0", token=TOKEN).client()
    answer = client("POST", "/api/session", {"token": TOKEN})
    assert answer.status == 200
    cookie = answer.headers["Set-Cookie"]
    for part in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age="):
        assert part in cookie
    assert TOKEN not in cookie
    client.headers["Cookie"] = cookie.partition(";")[0]
    assert client("GET", "/api/state").status == 200
    change = ("PUT", "/api/streams/0/recording", {"on": True})
    assert client(*change).status == 403
    assert client(*change, {"X-CSRF-Token": "x"}).status == 403
    csrf = answer.json["csrf"]
    assert client("GET", "/api/session").json["csrf"] == csrf
    assert client(*change, {"X-CSRF-Token": csrf}).status == 200
    assert client("DELETE", "/api/session").status == 403
    assert client("DELETE", "/api/session", None, {"X-CSRF-Token": csrf}).status == 204
    assert client("GET", "/api/state").status == 401


def test_the_cookie_goes_by_https_only_where_a_proxy_speaks_it(serve) -> None:
    held = serve(token=TOKEN, origins=("https://cams.example.org",))
    headers = {"Host": "cams.example.org", "Origin": "https://cams.example.org", "Sec-Fetch-Site": "same-origin"}
    answer = held.client()("POST", "/api/session", {"token": TOKEN}, headers)
    assert answer.status == 200
    assert "Secure" in answer.headers["Set-Cookie"]
    headers["Origin"] = "https://evil.example.org"
    assert held.client()("POST", "/api/session", {"token": TOKEN}, headers).status == 403


def test_guessing_is_slowed_down(serve) -> None:
    client = serve(host="0.0.0.0", token=TOKEN).client()
    for number in range(access.ATTEMPTS):
        answer = client("POST", "/api/session", {"token": f"guess-{number}"})
        assert (answer.status, answer.error) == (401, "wrong token")
    answer = client("POST", "/api/session", {"token": TOKEN})
    assert answer.status == 429
    assert 0 < int(answer.headers["Retry-After"]) <= access.ATTEMPTS_S + 1
    assert client("GET", "/api/state", None, {"Authorization": f"Bearer {TOKEN}"}).status == 429


def test_attempts_pass_and_networks_count_as_one() -> None:
    now = [0.0]
    attempts = Attempts(lambda: now[0])
    for n in range(access.ATTEMPTS):
        assert attempts.wait_s("fd00::1") == 0
        attempts.failed(f"fd00::{n}")
    assert attempts.wait_s("fd00::ffff") == access.ATTEMPTS_S
    assert attempts.wait_s("fd00:0:0:1::1") == 0
    assert attempts.wait_s("10.0.0.1") == 0
    now[0] = access.ATTEMPTS_S + 0.1
    assert attempts.wait_s("fd00::1") == 0
    for n in range(3 * access.MAX_ADDRESSES):
        attempts.failed(f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}")
    assert len(attempts._failed) == access.MAX_ADDRESSES
    attempts.failed("no address")
    assert attempts.wait_s("no address") == 0


def test_sessions_end_by_time_and_by_number() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    cookie, csrf = sessions.begin()
    assert sessions.csrf_of(cookie) == csrf
    assert sessions.csrf_of(cookie + "x") is None
    assert sessions.csrf_of("\udcff") is None
    now[0] = access.SESSION_S + 1
    assert sessions.csrf_of(cookie) is None
    cookies = [sessions.begin()[0] for _ in range(access.MAX_SESSIONS + 1)]
    assert sessions.csrf_of(cookies[0]) is None
    assert sessions.csrf_of(cookies[1]) is not None
    assert cookie not in str(sessions._sessions)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        "localhost.evil.example:{port}",
        "10.0.0.1:{port}",
    ],
)
def test_a_rebound_name_gets_nothing(serve, host) -> None:
    """DNS rebinding: the browser believes that evil.example is this machine."""
    held = serve()
    answer = held.client()("GET", "/api/state", None, {"Host": host.format(port=held.port)})
    assert answer.status == 421
    assert "does not go by that name" in answer.error
    assert b"cam/1" not in answer.body


def test_two_hosts_are_none(serve) -> None:
    held = serve()
    connection = http.client.HTTPConnection("127.0.0.1", held.port, timeout=20)
    connection.putrequest("GET", "/api/state", skip_host=True)
    connection.putheader("Host", f"127.0.0.1:{held.port}")
    connection.putheader("Host", "evil.example")
    connection.endheaders()
    assert connection.getresponse().status in {400, 421}
    connection.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    ],
)
def test_another_sites_page_gets_nothing_and_changes_nothing(serve, headers) -> None:
    held = serve()
    client = held.client().with_csrf()
    for method, path, body in (
        ("GET", "/api/state", None),
        ("GET", "/api/session", None),
        ("GET", "/api/streams/0/pictures.mjpg", None),
        ("PUT", "/api/streams/0/recording", {"on": True}),
        ("POST", "/api/viewers", None),
    ):
        answer = client(method, path, body, headers)
        assert answer.status == 403, path
        assert "another site" in answer.error
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert held.run.recording == [False, False]


def test_a_link_from_another_site_opens_the_page(serve) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    client = serve().client()
    assert client("GET", "/", None, headers).status == 200
    assert client("GET", "/api/state", None, headers).status == 403


def test_changes_on_loopback_need_the_header_too(serve) -> None:
    """A form or a fetch without CORS from another site carries no header of its own."""
    held = serve()
    client = held.client()
    for route in CLOSED:
        if route.method != "GET":
            answer = client(route.method, path_of(route), {} if route.body else None)
            assert answer.status == 403, route.path
            assert "X-CSRF-Token is needed" in answer.error
    assert client("PUT", "/api/streams/0/recording", raw=b"on=true").status == 403
    plain = client.with_csrf()(
        "PUT", "/api/streams/0/recording", raw=b'{"on": true}', headers={"Content-Type": "text/plain"}
    )
    assert plain.status == 415
    assert held.run.recording == [False, False]


def test_headers_bind_the_browser(serve) -> None:
    client = serve().client()
    for path in ("/", "/static/page.css", "/api/state", "/nothing", "/metrics"):
        headers = client("GET", path).headers
        policy = dict(part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Server"] == "pose2seg"


def test_tokens_in_files(tmp_path) -> None:
    path = tmp_path / "token"
    for text, mode, said in (
        ("short", 0o600, "expected one line of 16 to 512"),
        (TOKEN, 0o644, "other users may read it: chmod 600"),
        (TOKEN + "\n" + TOKEN, 0o600, "expected one line"),
        (TOKEN + "ü", 0o600, "expected one line"),
        ("a b" * 20, 0o600, "expected one line"),
    ):
        path.write_text(text)
        path.chmod(mode)
        with pytest.raises(SettingsError, match=said) as caught:
            read_token(path)
        assert TOKEN not in str(caught.value)
    path.write_bytes(b"\xff" * 40)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_token(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_token(tmp_path / "nothing")
    path.write_text(TOKEN + "\n")
    assert read_token(path) == TOKEN
    assert len({new_token() for _ in range(100)}) == 100
    assert all(len(new_token()) >= 43 for _ in range(10))
