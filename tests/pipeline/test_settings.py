from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.batch.settings import BatchSettings
from pipeline.command_line import parse_settings
from pipeline.errors import SettingsError
from pipeline.live.settings import LiveSettings
from pipeline.settings import Settings

BAD_VALUES = [
    ({"source": ""}, "SOURCE must be not empty"),
    ({"person_threshold": 1.5}, "--person-threshold must be from 0 to 1, got 1.5"),
    ({"joint_threshold": -0.1}, "--joint-threshold must be from 0 to 1"),
    ({"mask_threshold": float("nan")}, "--mask-threshold must be from 0 to 1, got nan"),
    ({"threads": 0}, "--threads must be from 1 to 1024, got 0"),
    ({"long_side": 16}, "--long-side must be from 32 to 4096"),
    ({"max_frames": 0}, "--max-frames must be 1 or more, got 0"),
    ({"queue_depth": 0}, "--queue-depth must be from 1 to 256"),
    ({"video_crf": 52}, "--video-crf must be from 0 to 51"),
    ({"image_fps": 0.0}, "--image-fps must be from 0.001 to 86400"),
    ({"timeout_s": float("inf")}, "--timeout-s must be from"),
    ({"engine": "gpu"}, "--engine must be one of auto, tensorrt,"),
    ({"device": "gpu"}, "--device must be cpu, cuda or cuda:N, got gpu"),
    ({"device": "cuda:"}, "--device must be cpu, cuda or cuda:N, got cuda:"),
    ({"precision": "fp16"}, "--precision must be one of auto, float32, float16, bfloat16, int8, got fp16"),
    ({"video_preset": "best"}, "--video-preset must be one of ultrafast"),
    ({"video_encoder": "x264"}, "--video-encoder must be one of auto, libx264, h264_nvenc, got x264"),
    ({"decode": "cuda"}, "--decode must be one of auto, cpu, gpu, got cuda"),
    ({"batch": 0}, "--batch must be from 1 to 64, got 0"),
    ({"coco_images": Path("a.json")}, "add --coco"),
    ({"output": Path("a.avi")}, "--output expects a name ending in .mp4"),
    ({"sheet": Path("a.gif")}, "--sheet expects a name ending in .png"),
    ({"json": Path("a.json"), "coco": Path("./a.json")}, "--json and --coco both name a.json"),
]


@pytest.mark.parametrize(("options", "message"), BAD_VALUES, ids=[str(options) for options, _ in BAD_VALUES])
def test_bad_values_say_what_is_allowed(options, message) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(**{"source": "a.mp4", **options})
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_defaults_are_valid() -> None:
    assert Settings(source="a.mp4").overwrite is False


BAD_ARGUMENTS = [
    ([], "SOURCE"),
    (["a.mp4", "--engine", "gpu"], "choose from"),
    (["a.mp4", "--video-preset", "best"], "veryfast"),
    (["a.mp4", "--precision", "half"], "float16"),
    (["a.mp4", "--threads", "many"], "--threads: must be a whole number, got 'many'"),
    (["a.mp4", "--mask-threshold", "half"], "--mask-threshold: must be a number, got 'half'"),
    (["a.mp4", "--output", ""], "--output: must be a path"),
    (["a.mp4", "--outptu", "x.mp4"], "unrecognized arguments: --outptu"),
    (["a.mp4", "--over"], "unrecognized arguments: --over"),  # no abbreviations
    (["a.mp4", "--threads", "0"], "from 1 to 1024"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS, ids=[" ".join(a) for a, _ in BAD_ARGUMENTS])
def test_bad_arguments(arguments, message) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arguments_become_typed_settings() -> None:
    settings = parse_settings(
        ["0", "--output", "o.mp4", "--show", "--no-overwrite", "--threads", "3", "--mask-threshold", "0.4", "--debug"]
    )
    assert settings == Settings(source="0", output=Path("o.mp4"), show=True, threads=3, mask_threshold=0.4, debug=True)


def test_masks_that_may_overlap_are_asked_for_in_every_command() -> None:
    assert not parse_settings(["a.mp4"]).overlapping_masks
    assert parse_settings(["a.mp4", "--overlapping-masks"]).overlapping_masks
    for overlapping in (False, True):
        live = LiveSettings(sources=("0",), overlapping_masks=overlapping)
        batch = BatchSettings(inputs=("a.mp4",), out=Path("o"), overlapping_masks=overlapping)
        assert live.run_settings().overlapping_masks == batch.of_files().overlapping_masks == overlapping
        assert ("overlapping_masks", overlapping) in batch.deciding().items()


def test_no_arguments_are_the_defaults() -> None:
    assert parse_settings(["a.mp4"]) == Settings(source="a.mp4")


def test_the_description_holds_every_option_and_no_password() -> None:
    text = Settings(source="rtsp://admin:hunter2@cam/1").describe()
    assert "source=rtsp://***@cam/1" in text
    assert "hunter2" not in text
    assert "queue_depth=2" in text
