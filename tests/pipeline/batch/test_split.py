"""Who does what of a file that several workers share: whatever the order and whoever is lost, all of it is done."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.batch.orders import DetectOrder, FileOrder, ScoutOrder
from pipeline.batch.plan import BatchInput
from pipeline.batch.split import AT_ONCE, SplitFile

ITEM = BatchInput(path="/in/a.mp4", name="a.mp4")


@given(count=st.integers(0, 30), workers=st.integers(1, 6), ahead=st.integers(AT_ONCE, 12), data=st.data())
def test_everything_is_done_once_and_nobody_waits_for_ever(count, workers, ahead, data) -> None:
    split = SplitFile(item=ITEM, ahead=ahead)
    in_work: list = [ScoutOrder(item=ITEM)]
    told = finished = 0
    detections: list[int] = []
    lost_left = 8
    for _ in range(2000):
        while len(in_work) < workers and (order := split.take()) is not None:
            in_work.append(order)
            assert sum(isinstance(order, FileOrder) for order in in_work) <= 1  # one pass in order at a time
        if not in_work:
            break
        order = in_work.pop(data.draw(st.integers(0, len(in_work) - 1)))
        if lost_left and data.draw(st.integers(0, 5)) == 0:
            lost_left -= 1
            split.lost(order)
            if isinstance(order, ScoutOrder):
                told = finished
                in_work.append(order)
        elif isinstance(order, ScoutOrder):
            if told < count:
                split.border(told, {"index": told})
                told += 1
                in_work.append(order)
            else:
                split.scout_ended()
        elif isinstance(order, DetectOrder):
            assert order.start == {"index": order.number}
            assert finished <= order.number < finished + ahead + AT_ONCE
            detections.append(order.number)
            split.done(order)
        elif order.until is None:
            assert split.scouted
            finished = count
            break
        else:
            assert all(number in detections for number in range(finished, order.until))
            finished = order.until
            split.done(order)
    assert finished == count
    assert set(detections) == set(range(count))


def test_a_file_with_nothing_to_split_is_done_in_order() -> None:
    split = SplitFile(item=ITEM, ahead=8)
    assert split.take() is None  # the scout is not back
    split.scout_ended()
    assert split.take() == FileOrder(item=ITEM)
    assert split.take() is None


def test_the_pass_in_order_waits_for_a_few_segments_and_what_lies_ahead_is_bounded() -> None:
    split = SplitFile(item=ITEM, ahead=6)
    for number in range(20):
        split.border(number, {"index": number})
    orders = [split.take() for _ in range(7)]
    assert [order.number for order in orders[:6]] == list(range(6))
    assert orders[6] is None
    for order in orders[:AT_ONCE]:
        split.done(order)
    assert split.take() == FileOrder(item=ITEM, until=AT_ONCE)
    assert split.take() is None
    split.done(FileOrder(item=ITEM, until=AT_ONCE))
    assert split.take() == DetectOrder(item=ITEM, number=6, start={"index": 6})
