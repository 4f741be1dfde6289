from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SettingsError
from pipeline.publish.mqtt import topic_of
from pipeline.publish.target import PUBLISH_PORTS, PUSH_PORTS, WEBHOOK_PORTS, parse_target

PORTS = PUBLISH_PORTS | PUSH_PORTS | WEBHOOK_PORTS


def parse(text: str, ports=PORTS):
    return parse_target(text, flag="--flag", ports=ports)


@pytest.mark.parametrize(
    ("text", "port", "name"),
    [
        ("tcp://h:5000", 5000, "tcp://h:5000"),
        ("ws://h/lines?token=secret", 80, "ws://h/lines?token=***"),
        ("WSS://u:secret@h", 443, "wss://***@h"),
        ("mqtts://u:secret%40@[::1]/a/b", 8883, "mqtts://***@[::1]/a/b"),
        ("rtsp://u:secret@h:8554/camera", 8554, "rtsp://***@h:8554/camera"),
        ("rtmp://h/live/secret", 1935, "rtmp://h/live/***"),
        ("rtmps://h/live/secret-{stream}", 443, "rtmps://h/live/***{stream}"),
        ("srt://h:7000?streamid=x&passphrase=secret", 7000, "srt://h:7000?streamid=x&passphrase=***"),
        ("https://u:secret@h/services/secret?key=secret", 443, "https://***@h/***"),
        ("http://h:8080", 8080, "http://h:8080"),
    ],
)
def test_what_a_target_means(text, port, name) -> None:
    target = parse(text)
    assert (target.port, target.name) == (port, name)
    assert "secret" not in repr(target)
    assert "secret" not in target.hidden_in(f"cannot open {text!r}: {target.url.query} {target.password}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expects tcp://"),
        ("h:5000", "got no address"),
        ("file:///etc/passwd", "got file://"),
        ("tcp://u:secret@h", "expected a port behind the host"),
        ("ws://", "host or port is none"),
        ("ws://u:secret@h:99999/", "host or port is none"),
        ("ws://h/a b", "no spaces"),
        ("ws://h/a\nb", "no spaces"),
        ("ws://h/\u202e", "no spaces, control characters"),
        ("ws://h/" + "a" * 5000, "at most 4096"),
        ("@/nowhere/at/all", "cannot be read"),
    ],
)
def test_what_is_refused(text, said) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        parse(text)
    assert "secret" not in str(caught.value)


def test_an_address_in_a_file(tmp_path) -> None:
    path = tmp_path / "push.txt"
    path.write_text("rtmp://h/live/secret\nwhatever\n")
    assert parse(f"@{path}").text == "rtmp://h/live/secret"
    path.write_bytes(b"\xff\n")
    with pytest.raises(SettingsError, match="it is no text"):
        parse(f"@{path}")
    path.write_text("@another\n")
    with pytest.raises(SettingsError, match="got no address"):
        parse(f"@{path}")


def test_streams_of_one_address() -> None:
    target = parse("rtsp://h/cam{stream}")
    assert target.several
    assert target.of_stream(3).text == "rtsp://h/cam3"
    assert parse("mqtt://u%40x:p%2F@h").user == "u@x"
    assert parse("mqtt://u%40x:p%2F@h").password == "p/"


@pytest.mark.parametrize(
    ("text", "topic"), [("mqtt://h", "pose2seg"), ("mqtt://h/", "pose2seg"), ("mqtt://h/a/b/", "a/b")]
)
def test_topics(text, topic) -> None:
    assert topic_of(parse(text)) == topic


@pytest.mark.parametrize("text", ["mqtt://h/a/+/b", "mqtt://h/a/#", "mqtt://h/$SYS"])
def test_topics_that_cannot_be_written_to(text) -> None:
    with pytest.raises(SettingsError, match="holds no"):
        topic_of(parse(text))


@given(
    st.sampled_from(sorted(PORTS)),
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=3, max_size=12),
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=3, max_size=12),
)
def test_no_password_is_ever_shown(scheme, user, password) -> None:
    target = parse(f"{scheme}://{user}:Xx{password}xX@host:99/path")
    assert f"Xx{password}xX" not in target.name + repr(target)
    assert f"Xx{password}xX" not in target.hidden_in(f"Xx{password}xX refused by {target.text}")
