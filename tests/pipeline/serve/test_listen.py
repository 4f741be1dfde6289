from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import SettingsError
from pipeline.live.command import parse_live_settings
from pipeline.serve.listen import AllowedNames, ListenAddress, read_listen_address, read_origin


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, True),
        ("9000", "127.0.0.1", 9000, True),
        ("localhost", "localhost", 8080, True),
        ("127.9.9.9:1", "127.9.9.9", 1, True),
        ("[::1]:8080", "::1", 8080, True),
        ("[::]:0", "::", 0, False),
        ("0.0.0.0:80", "0.0.0.0", 80, False),
        ("Cam-Box.local:8080", "cam-box.local", 8080, False),
        ("192.168.1.4", "192.168.1.4", 8080, False),
    ],
)
def test_addresses(text, host, port, loopback) -> None:
    read = read_listen_address(text)
    assert (read.host, read.port, read.is_loopback) == (host, port, loopback)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", ":80", "host:", "host:x", "host:70000", "http://host:80", "a b:80", "::1", "[::1", "[127.0.0.1]:80"),
        *("127.1:80", "0x7f.0.0.1:1", "1.2.3:80", "h:80/x", "-h:80", "user@h:80", "h:٣", "clip.mp4/", "h\n:80"),
    ],
)
def test_what_is_no_address(text) -> None:
    with pytest.raises(SettingsError, match=r"--serve expects HOST:PORT"):
        read_listen_address(text)


@given(st.text(max_size=40))
@example("127.0.0.1:8080")
@example("[::1]:1")
def test_any_text_is_an_address_or_refused(text) -> None:
    try:
        read = read_listen_address(text)
    except SettingsError:
        return
    assert 0 <= read.port <= 65535
    again = read_listen_address(f"{read.url_host}:{read.port}")
    assert again == read


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://Cams.Example.org/", "https://cams.example.org"),
        ("https://cams.example.org:443", "https://cams.example.org"),
        ("http://10.0.0.1:8000", "http://10.0.0.1:8000"),
        ("https://[fd00::1]:8443", "https://[fd00::1]:8443"),
    ],
)
def test_origins(text, origin) -> None:
    assert read_origin(text) == origin
    assert read_origin(origin) == origin


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cams.example.org",
        "ftp://a",
        "https://a/b",
        "https://u@a",
        "https://a?x",
        "https://a#x",
        "https://a:x",
        "https://",
    ],
)
def test_what_is_no_origin(text) -> None:
    with pytest.raises(SettingsError, match="--serve-origin expects"):
        read_origin(text)


def test_names_on_loopback_are_this_machine_only() -> None:
    names = AllowedNames(ListenAddress(host="127.0.0.1", port=0), 8080, ("https://cams.example.org",))
    for host in ("127.0.0.1:8080", "localhost:8080", "LOCALHOST:8080", "[::1]:8080", "cams.example.org"):
        assert names.host_fits(host), host
    for host in (
        "",
        "localhost",
        "127.0.0.1",
        "evil.example:8080",
        "127.0.0.1:8081",
        "localhost.evil:8080",
        "10.0.0.1:8080",
    ):
        assert not names.host_fits(host), host
    assert names.origin_fits("http://127.0.0.1:8080", "127.0.0.1:8080")
    assert names.origin_fits("https://cams.example.org", "127.0.0.1:8080")
    for origin in ("null", "http://localhost:8080", "https://127.0.0.1:8080", "http://evil.example:8080", ""):
        assert not names.origin_fits(origin, "127.0.0.1:8080"), origin
    assert not names.origin_fits("http://evil.example:8080", "evil.example:8080")


@given(st.ip_addresses())
def test_elsewhere_any_address_of_this_port_is_no_rebound_name(address) -> None:
    names = AllowedNames(ListenAddress(host="0.0.0.0", port=0), 8080, ())
    shown = f"[{address}]" if isinstance(address, ipaddress.IPv6Address) else str(address)
    assert names.host_fits(f"{shown}:8080")
    assert not names.host_fits(f"{shown}:8081")
    assert not names.host_fits(f"x{shown}:8080")


@given(st.text(max_size=60))
def test_names_never_crash(host) -> None:
    for listen in ("127.0.0.1", "0.0.0.0"):
        names = AllowedNames(ListenAddress(host=listen, port=0), 80, ())
        names.host_fits(host)
        names.origin_fits(host, host)


def test_flags() -> None:
    assert parse_live_settings(["0", "--serve"]).serve == "127.0.0.1:8080"
    assert parse_live_settings(["0", "--serve", "0.0.0.0:9000"]).serve == "0.0.0.0:9000"
    assert parse_live_settings(["0"]).serve is None
    for arguments, said in (
        (["--serve", "clip.mp4:x"], "--serve expects HOST:PORT"),
        (["--serve", "--serve-origin", "nonsense"], "--serve-origin expects"),
        (["--serve-origin", "https://a.example"], "--serve-origin must be with --serve"),
        (["--serve-token-file", "x"], "--serve-token-file must be with --serve"),
        (["--serve", "--serve-viewers", "0"], "--serve-viewers must be from 1"),
    ):
        with pytest.raises(SettingsError, match=said):
            parse_live_settings(["0", *arguments])
