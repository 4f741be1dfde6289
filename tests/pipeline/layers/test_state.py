"""What layers remember: it comes back exactly, and wherever a run goes on, the pictures are those of one pass."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.layers.sinks import LayerSet
from pipeline.layers.state import pack_state, unpack_state
from pipeline.settings import Settings
from tests.layer_results import Box, result_of, textured

FRAMES = 24
LAYERS = ("blur=b.mp4", "remove=r.mp4", "matte=m.mkv", "matte=p_{id}.mkv", "heatmap=h.png", "pixelate=x.mp4")


def test_values_and_arrays_come_back() -> None:
    state = {
        "scene": (1, 2),
        "nothing": None,
        "people": [[7, {"region": [3, 4, np.arange(6, dtype=np.uint8).reshape(2, 3)], "speed_px": 0.1 + 0.2}]],
        "empty": np.zeros((0, 0, 3), np.uint8),
        "sum": np.array([[1 / 3]], np.float32),
    }
    found = unpack_state(pack_state(state))
    assert found["scene"] == [1, 2] and found["nothing"] is None
    ((person_id, seen),) = found["people"]
    assert person_id == 7 and seen["speed_px"] == 0.1 + 0.2
    np.testing.assert_array_equal(seen["region"][2], [[0, 1, 2], [3, 4, 5]])
    assert found["empty"].shape == (0, 0, 3)
    assert found["sum"].dtype == np.float32 and found["sum"][0, 0] == np.float32(1 / 3)


@pytest.mark.parametrize("data", [b"", b"text", pack_state({})[:-30]])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="expected the state of layers"):
        unpack_state(data)


def people_of(number: int) -> dict[int, Box]:
    """Somebody walks, somebody comes late, somebody is missed now and then."""
    people: dict[int, Box] = {}
    if number % 7 not in {3, 4}:
        people[1] = (10.0 + 2 * number, 30.0, 40.0 + 2 * number, 100.0)
    if number >= 9:
        people[2] = (100.0, 25.0 + number % 3, 135.0, 105.0)
    return people


def written(folder: Path, borders: list[int], ahead: int) -> dict[str, list[bytes]]:
    """Pictures of all parts, one after the other; the state goes through bytes at each border."""
    folder.mkdir()
    scene = textured(120, 160, seed=1)
    state: bytes | None = None
    found: dict[str, list[bytes]] = {}
    ends = [*sorted(set(borders)), FRAMES]
    for part, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        here = folder / str(part)
        here.mkdir()
        layers = tuple(text.replace("=", f"={here}/") for text in LAYERS)
        made = LayerSet(Settings(source="x", layer=layers, hide_ahead=ahead, cover_frames=5, video_crf=0))
        if state is not None:
            made.restore(unpack_state(state))
        for number in range(start, end):
            image = scene.copy()
            for x0, y0, x1, y1 in people_of(number).values():
                image[int(y0) : int(y1), int(x0) : int(x1)] = 200
            result = result_of(people_of(number), number=number, image=image)
            for sink in made.sinks:
                sink.write(result)
        if end < FRAMES:
            made.close_later()
            state = pack_state(made.to_state())
        for sink in made.sinks:
            sink.close()
        for path in sorted(here.glob("*.m*")):
            with av.open(str(path)) as container:
                frames = [frame.to_ndarray().tobytes() for frame in container.decode(video=0)]
            found.setdefault(path.name, []).extend(frames)
        found["h.png"] = [cv2.imread(str(here / "h.png")).tobytes()]
    return found


@pytest.fixture(scope="module")
def one_pass(tmp_path_factory) -> dict[int, dict[str, list[bytes]]]:
    return {ahead: written(tmp_path_factory.mktemp("whole") / "x", [], ahead) for ahead in (0, 4)}


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(borders=st.lists(st.integers(1, FRAMES - 1), max_size=4), ahead=st.sampled_from([0, 4]))
def test_wherever_a_run_goes_on_the_pictures_are_those_of_one_pass(one_pass, tmp_path_factory, borders, ahead) -> None:
    """Lossless videos; parts shorter than what is held back are among them."""
    found = written(tmp_path_factory.mktemp("split") / "x", borders, ahead)
    expected = one_pass[ahead]
    assert sorted(found) == sorted(expected)
    for name, pictures in expected.items():
        assert found[name] == pictures, name
    assert len(expected["b.mp4"]) == FRAMES
