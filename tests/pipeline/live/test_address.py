from __future__ import annotations

import random
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import SettingsError, SourceError
from pipeline.live import address as live_address
from pipeline.live import srt as live_srt
from pipeline.live.address import (
    LIVE_SCHEMES,
    MAX_SOURCES,
    AllowedUrls,
    is_known_to_ffmpeg,
    is_private,
    parse_address,
    read_addresses,
    read_list,
)

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("-", "stdin", "standard input"),
        ("0", "camera", "camera 0"),
        ("007", "camera", "camera 7"),
        ("/dev/video3", "device", "/dev/video3"),
        ("/dev/video3/../../etc", "file", "/dev/video3/../../etc"),
        ("rtsp://user:secret@10.0.0.1:554/a?x=1", "url", "rtsp://***@10.0.0.1:554/a?x=1"),
        ("HTTP://host/a.mjpeg", "url", "HTTP://host/a.mjpeg"),
        ("udp://:5000", "url", "udp://:5000"),
        ("udp://239.1.2.3:5000", "url", "udp://239.1.2.3:5000"),
        ("rtmp://[::1]:1935/live/x", "url", "rtmp://[::1]:1935/live/x"),
        ("clip.mp4", "file", "clip.mp4"),
        ("a:b.mp4", "file", "a:b.mp4"),
    ],
)
def test_what_a_source_means(text, kind, name) -> None:
    address = parse_address(text)
    assert (address.kind, address.name) == (kind, name)
    assert "secret" not in repr(address)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a source of 1 to 4096 characters"),
        ("a\0b", "expected a source of 1 to"),
        ("x" * 5000, "of 5000 characters"),
        ("file:///etc/passwd", "got file://"),
        ("gopher://h/", "got gopher://"),
        ("concat://a|b", "got concat://"),
        ("http:///nothing", "expected a host behind http://"),
        ("http://h:99999/", "expected SCHEME://"),
        ("http://[::1/", "expected SCHEME://"),
        ("http://good\\@evil/", "holds no spaces, control characters or backslashes"),
        ("http://h/a b", "holds no spaces"),
        ("http://h/a\nHost: x", "holds no spaces"),
        ("http://user:secret@\u2100/", r"http://\*\*\*@\u2100/: expected SCHEME://"),
        ("12345", "a camera number of at most 4 digits"),
    ],
)
def test_what_is_refused(text, said) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        parse_address(text)
    assert "secret" not in str(caught.value)


def test_srt_needs_a_program_where_pyav_is_built_without(monkeypatch, tmp_path) -> None:
    assert is_known_to_ffmpeg("rtsp")
    monkeypatch.setattr(live_address, "is_known_to_ffmpeg", lambda scheme: scheme != "srt")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="needs the program ffmpeg, and it is not in the PATH"):
        parse_address("srt://h:1")
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho srtp\n")
    program.chmod(0o755)
    with pytest.raises(SettingsError, match="was built without srt"):
        parse_address("srt://h:1")
    live_srt._knows_srt.cache_clear()
    program.write_text("#!/bin/sh\necho srt\n")
    address = parse_address("srt://:5000?mode=listener&passphrase=hunter2hunter2")
    assert address.kind == "url" and "hunter2" not in address.name
    live_srt._knows_srt.cache_clear()


def test_a_file_that_is_called_like_a_number(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "3").write_bytes(b"x")
    assert parse_address("3").kind == "file"


def test_a_list_of_sources(tmp_path) -> None:
    path = tmp_path / "all.streams"
    path.write_bytes("\ufeff# cameras\r\n\r\n  rtsp://a:b@h/1  \r\n0\r\nudp://:5000\r\n".encode())
    found = read_addresses([str(path), "1"], AllowedUrls())
    assert [address.name for address in found] == ["rtsp://***@h/1", "camera 0", "udp://:5000", "camera 1"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# nothing\n", "found none"),
        (b"\xff\xfe\xff", "expected text in UTF-8"),
        (b"other.streams\n", "line 1: a list of sources cannot name another list"),
        (b"0\nfile:///x\n", "line 2: .*got file://"),
        (b"0\n" * (MAX_SOURCES + 1), f"at most {MAX_SOURCES} sources, line {MAX_SOURCES + 1}"),
        (b"#" * 2_000_000, "expected at most 1000000 bytes"),
    ],
)
def test_lists_that_are_refused(tmp_path, content, said) -> None:
    path = tmp_path / "bad.streams"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=said):
        read_list(path)


def test_what_is_not_there() -> None:
    with pytest.raises(SourceError, match="no such file"):
        read_addresses(["nothing_here.mp4"], AllowedUrls())
    with pytest.raises(SettingsError, match="cannot be read"):
        read_addresses(["nothing_here.streams"], AllowedUrls())
    with pytest.raises(SettingsError, match="one source only"):
        read_addresses(["-", "-"], AllowedUrls())
    with pytest.raises(SettingsError, match="at most 64 sources"):
        read_addresses(["0"] * 65, AllowedUrls())


@pytest.mark.parametrize(
    ("pattern", "url", "allowed"),
    [
        ("rtsp://10.0.0.*", "rtsp://u:p@10.0.0.7:8554/a/b", True),
        ("rtsp://10.0.0.*", "http://10.0.0.7/", False),
        ("rtsp://10.0.0.*:554", "rtsp://10.0.0.7/", True),
        ("rtsp://10.0.0.*:554", "rtsp://10.0.0.7:8554/", False),
        ("http*://*.example.com", "https://a.example.com/x", True),
        ("http://*.example.com", "http://evil.net/.example.com", False),
        ("http://*.example.com", "http://a.example.com@evil.net/", False),
        ("http://h/live/*", "http://h/live/1", True),
        ("http://h/live/*", "http://h/other", False),
        ("http://[::1]:80", "http://[::1]/", True),
    ],
)
def test_patterns(pattern, url, allowed) -> None:
    assert AllowedUrls((pattern,)).allows(url) is allowed


def test_with_patterns_every_address_needs_one() -> None:
    allowed = AllowedUrls(("rtsp://good*",))
    assert len(read_addresses(["rtsp://good/1", "0"], allowed)) == 2
    with pytest.raises(SettingsError, match=r"rtsp://\*\*\*@bad/1: no --allow-url pattern"):
        read_addresses(["rtsp://a:secret@bad/1"], allowed)
    with pytest.raises(SettingsError, match="--allow-url expects a pattern"):
        AllowedUrls(("good",))


@pytest.fixture
def hosts(monkeypatch):
    """Names that need no name server."""
    known = {"public.test": "8.8.8.8", "private.test": "10.1.2.3", "mapped.test": "::ffff:192.168.0.1"}

    def look_up(host, *_args, **_named):
        if host not in known and not host[0].isdigit() and ":" not in host:
            raise OSError("unknown")
        return [(2, 1, 6, "", (known.get(host, host), 0))]

    monkeypatch.setattr(live_address.socket, "getaddrinfo", look_up)


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("8.8.8.8", False),
        ("public.test", False),
        ("private.test", True),
        ("mapped.test", True),
        ("169.254.169.254", True),
        ("127.0.0.1", True),
        ("0.0.0.0", True),
        ("fd00::1", True),
        ("unknown.test", True),
        ("", True),
    ],
)
def test_private_hosts(hosts, host, private) -> None:
    assert is_private(host) is private


def test_redirects(hosts) -> None:
    free = AllowedUrls()
    free.check_redirect("http://public.test/", "https://8.8.4.4/x")
    free.check_redirect("http://private.test/", "http://10.9.9.9/x")
    with pytest.raises(SourceError, match="in a private network: refused"):
        free.check_redirect("http://public.test/", "http://169.254.169.254/secret")
    with pytest.raises(SourceError, match="only http and https"):
        free.check_redirect("http://public.test/", "file:///etc/passwd")
    AllowedUrls(("http://10.*",)).check_redirect("http://public.test/", "http://10.0.0.1/")
    with pytest.raises(SourceError, match="no --allow-url pattern allows"):
        AllowedUrls(("http://public.test",)).check_redirect("http://public.test/", "http://8.8.8.8/")


FRAGMENTS = (
    *(f"{scheme}://" for scheme in LIVE_SCHEMES if scheme != "srt"),
    *(
        "file://",
        "concat:",
        "-",
        "0",
        "/dev/video",
        "host",
        "[::1]",
        "[",
        "]",
        ":",
        ":0",
        ":99999",
        "@",
        "user:pw@",
    ),
    *("/", "?", "#", "%00", "%", "\\", "..", "\n", " ", "\0", "*", ".streams", ".mp4", "\u2100", "\udcff", "xn--"),
)
PIECES = st.sampled_from(FRAGMENTS)
TEXTS = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=8).map("".join))


def refusal_of(function, argument):
    """What was said against it, or what came out."""
    try:
        return "", function(argument)
    except SettingsError as error:
        return str(error), None


@settings(max_examples=5000)
@given(TEXTS)
@example("http://\u2100/")  # urlsplit refuses what NFKC turns into a slash
@example("rtsp://a:b@c@d/")
@example("rtsp://\u2100\udcff")
def test_any_text_is_a_source_or_a_clear_refusal(text) -> None:
    said, address = refusal_of(parse_address, text)
    if address is None:
        assert said.isprintable() and said
    else:
        assert address.name.isprintable()
        assert address.kind != "url" or address.url.scheme.lower() in LIVE_SCHEMES


@settings(max_examples=2000)
@given(st.lists(st.one_of(TEXTS, st.sampled_from(["http://h*", "rtsp://*:5*/*"])), max_size=3), TEXTS)
def test_any_pattern_matches_or_not(patterns, url) -> None:
    try:
        allowed = AllowedUrls(tuple(patterns))
    except SettingsError:
        return
    assert allowed.allows(url) in {True, False}


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_any_list_file_is_read_or_refused(tmp_path_factory, content) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.streams"
    path.write_bytes(content)
    said, found = refusal_of(read_list, path)
    assert found or said.startswith(str(path))


def test_a_hundred_thousand_random_sources() -> None:
    """None crashes, none takes long, and nothing that is said can forge a line of a log."""
    generator = random.Random(7)
    allowed = AllowedUrls(("rtsp://h*:5*/*",))
    slowest_s = 0.0
    for _ in range(100_000):
        count = generator.randrange(10)
        text = "".join(
            generator.choice(FRAGMENTS) if generator.random() < 0.7 else chr(generator.randrange(0x250))
            for _ in range(count)
        )
        started = time.perf_counter()
        said, address = refusal_of(parse_address, text)
        allowed.allows(text)
        slowest_s = max(slowest_s, time.perf_counter() - started)
        assert (said if address is None else address.name).isprintable()
    assert slowest_s < 5.0
