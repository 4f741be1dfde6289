from __future__ import annotations

import threading
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.channel import END, Channel, ChannelClosed

JOIN_S = 20


def test_items_come_out_in_order_and_the_end_mark_stays() -> None:
    channel: Channel[int] = Channel("c", 3)
    for item in (1, 2, 3):
        channel.put(item)
    channel.finish()
    assert [channel.get() for _ in range(5)] == [1, 2, 3, END, END]


def test_put_after_finish_is_a_bug() -> None:
    channel: Channel[int] = Channel("c", 1)
    channel.finish()
    with pytest.raises(RuntimeError, match="put after finish"):
        channel.put(1)


def test_capacity_below_one() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Channel("c", 0)


def test_the_newest_frame_wins() -> None:
    channel: Channel[int] = Channel("c", 2, "drop_oldest")
    for item in range(5):
        channel.put(item)
    stats = channel.stats()
    assert (stats.received, stats.dropped, stats.held, stats.delivered) == (5, 3, 2, 0)
    assert [channel.get(), channel.get()] == [3, 4]


def test_a_full_blocking_channel_holds_its_writer() -> None:
    channel: Channel[int] = Channel("c", 1)
    channel.put(0)
    third_is_in = threading.Event()

    def write() -> None:
        channel.put(1)
        third_is_in.set()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    assert not third_is_in.wait(0.05)
    assert channel.get() == 0
    assert third_is_in.wait(JOIN_S)
    writer.join(JOIN_S)
    assert channel.stats().writer_wait_s > 0
    assert channel.stats().dropped == 0


@pytest.mark.parametrize("policy", ["block", "drop_oldest"])
def test_hanging_up_wakes_and_stops_the_writer(policy) -> None:
    channel: Channel[int] = Channel("c", 1, policy)
    channel.put(0)
    stopped = threading.Event()

    def write() -> None:
        try:
            while True:
                channel.put(1)
        except ChannelClosed:
            stopped.set()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    channel.hang_up()
    assert stopped.wait(JOIN_S)
    writer.join(JOIN_S)


def test_hanging_up_wakes_the_reader() -> None:
    channel: Channel[int] = Channel("c", 1)
    outcome: list[object] = []

    def read() -> None:
        try:
            outcome.append(channel.get())
        except ChannelClosed:
            outcome.append("closed")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    channel.hang_up()
    reader.join(JOIN_S)
    assert outcome == ["closed"]


@given(
    capacity=st.integers(1, 4),
    policy=st.sampled_from(["block", "drop_oldest"]),
    steps=st.lists(st.sampled_from(["put", "get"]), max_size=60),
)
def test_every_item_is_accounted_for_and_order_is_kept(capacity, policy, steps) -> None:
    """In = out + dropped + held after every step, and what comes out is what a plain queue with that rule gives."""
    channel: Channel[int] = Channel("c", capacity, policy)
    expected: deque[int] = deque(maxlen=capacity)  # a deque drops its oldest by itself
    received = delivered = 0
    for step in steps:
        if step == "put":
            if policy == "block" and len(expected) == capacity:
                continue  # would wait for a reader
            channel.put(received)
            expected.append(received)
            received += 1
        elif expected:
            assert channel.get() == expected.popleft()
            delivered += 1
        stats = channel.stats()
        assert stats.received == received == stats.delivered + stats.dropped + stats.held
        assert (stats.delivered, stats.held) == (delivered, len(expected))
        assert stats.held <= stats.held_max <= capacity
        assert policy == "drop_oldest" or stats.dropped == 0


@given(capacity=st.integers(1, 3), policy=st.sampled_from(["block", "drop_oldest"]), count=st.integers(0, 200))
def test_two_threads_keep_the_law(capacity, policy, count) -> None:
    channel: Channel[int] = Channel("c", capacity, policy)

    def write() -> None:
        for item in range(count):
            channel.put(item)
        channel.finish()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    read = []
    while (item := channel.get()) is not END:
        read.append(item)
    writer.join(JOIN_S)
    assert not writer.is_alive()
    assert read == sorted(set(read))
    stats = channel.stats()
    assert stats.received == count == len(read) + stats.dropped
    assert stats.held == 0
    if policy == "block":
        assert read == list(range(count))
    elif count:
        assert read[-1] == count - 1


def test_what_waits_can_be_taken_at_once_and_nobody_waits_for_more() -> None:
    channel: Channel[int] = Channel("c", 4)
    assert channel.take_waiting(3) == []
    for item in range(4):
        channel.put(item)
    channel.finish()
    assert channel.get() == 0
    assert channel.take_waiting(2) == [1, 2]
    assert channel.take_waiting(5) == [3]
    assert channel.get() is END
    assert channel.stats().delivered == 4


def test_taking_what_waits_makes_room_for_the_writer() -> None:
    channel: Channel[int] = Channel("c", 2)
    channel.put(0)
    channel.put(1)
    writer = threading.Thread(target=channel.put, args=(2,))
    writer.start()
    assert channel.get() == 0
    writer.join(JOIN_S)
    assert not writer.is_alive()
    assert channel.take_waiting(8) == [1, 2]
    channel.hang_up()
    with pytest.raises(ChannelClosed):
        channel.take_waiting(1)
