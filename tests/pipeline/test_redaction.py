from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.redaction import redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rtsp://admin:hunter2@cam.local:554/stream", "rtsp://***@cam.local:554/stream"),
        ("rtsp://admin@cam/1", "rtsp://***@cam/1"),
        ("https://h/x?token=abc&t=1", "https://h/x?token=***&t=1"),
        ("https://h/x?t=1&api_key=abc#top", "https://h/x?t=1&api_key=***#top"),
        ("https://h/x?user=bob&password=p", "https://h/x?user=***&password=***"),
        ("cannot open 'rtsp://a:p@ss@h/1': refused", "cannot open 'rtsp://***@h/1': refused"),
        ("two: http://a:b@c/ and http://d:e@f/", "two: http://***@c/ and http://***@f/"),
        ("plain http://host/path@2x.png", "plain http://host/path@2x.png"),
        ("rtsp://admin:hunter/2?x#y@cam/1", "rtsp://***@cam/1"),
        ("rtsp://admin:9/hunter2@cam:554/1", "rtsp://admin:9/hunter2@cam:554/1"),  # that is a port to every parser
        ("http://host:8080/path@2x.png", "http://host:8080/path@2x.png"),
        ("http://[::1]:80/path@2x.png", "http://[::1]:80/path@2x.png"),
        ("a.mp4", "a.mp4"),
        ("mail me@host", "mail me@host"),
    ],
)
def test_known_texts(text, expected) -> None:
    assert redact(text) == expected


@given(
    user=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1),
    password=st.text(
        st.characters(codec="ascii", exclude_characters="/?#'\" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"), min_size=1
    ),
)
def test_no_password_survives(user, password) -> None:
    secret = "S3" + password
    text = redact(f"error in rtsp://{user}:{secret}@host:554/a?b=1: no answer")
    assert secret not in text
    assert text == "error in rtsp://***@host:554/a?b=1: no answer"


@given(st.text())
def test_redacting_twice_changes_nothing(text) -> None:
    assert redact(redact(text)) == redact(text)


def test_headers_that_libraries_write_down() -> None:
    assert redact("> Authorization: Basic dXNlcjpodW50ZXIy\r\n") == "> Authorization: Basic ***\r\n"
    assert redact("{'authorization': 'Bearer abc.def'}") == "{'authorization': 'Bearer ***'}"
    assert redact("authorization failed") == "authorization failed"
