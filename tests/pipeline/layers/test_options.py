from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.command_line import parse_settings
from pipeline.errors import SettingsError
from pipeline.layers.options import LAYER_KINDS, read_background, read_ids, read_layer
from pipeline.settings import Settings


def test_layers_of_the_command_line() -> None:
    settings = parse_settings(["a.mp4", "--layer", "blur=b.mp4", "--layer", "cutout=p_{id}.mov", "--layer-ids", "1,3"])
    assert settings.layer == ("blur=b.mp4", "cutout=p_{id}.mov")
    assert parse_settings(["a.mp4"]).layer == ()
    assert [flag for flag, _ in settings.output_paths()] == ["--layer blur", "--layer cutout"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blurr=a.mp4", "--layer expects KIND=FILE with KIND one of cutout, matte, .*got 'blurr=a.mp4'"),
        ("a.mp4", "--layer expects KIND=FILE"),
        ("", "--layer expects KIND=FILE"),
        ("blur", "--layer blur expects a file: --layer blur=FILE"),
        ("blur=", "--layer blur expects a file"),
        ("blur=a.webm", "--layer blur expects a name ending in .mp4, .m4v, .mov, got a.webm"),
        ("cutout=a.mp4", r"--layer cutout expects a name ending in .mov, .webm, a folder \(a name without suffix\)"),
        ("heatmap=a", "--layer heatmap expects a name ending in .png"),
        ("blur=a{id}.mp4", "makes a file per person of cutout and matte"),
        ("cutout={id}/a.mov", "in the last part of the path; got {id}/a.mov"),
    ],
)
def test_layers_that_are_none(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_layer(text)
    with pytest.raises(SettingsError, match=message):
        Settings(source="a.mp4", layer=(text,))


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_every_kind_takes_what_it_lists(kind: str) -> None:
    for allowed in LAYER_KINDS[kind]:
        name = f"out{allowed}" if allowed.startswith(".") else "out"
        layer = read_layer(f"{kind}={name}")
        assert (layer.kind, layer.path, layer.is_folder) == (kind, Path(name), not allowed.startswith("."))
    assert read_layer("cutout=frames/").is_folder
    assert read_layer("cutout=C.MOV").path == Path("C.MOV")


def test_one_file_per_person() -> None:
    layer = read_layer("cutout=out/p_{id}.mov")
    assert layer.per_person
    assert layer.path_of(12) == Path("out/p_12.mov")
    assert not read_layer("cutout=out/p.mov").per_person


@pytest.mark.parametrize("text", ["", "a", "1;3", "1,", ",1", "0", "1,0", "-1", "not:", "not 1", "1.5", "1" * 12, "²"])
def test_ids_that_are_none(text: str) -> None:
    with pytest.raises(SettingsError, match="--layer-ids expects ids from 1 such as 1,3 or not:1,3"):
        read_ids(text)


def test_ids() -> None:
    assert [n in read_ids("1,3") for n in (1, 2, 3)] == [True, False, True]
    assert [n in read_ids("not:1,3") for n in (1, 2, 3)] == [False, True, False]
    assert all(n in read_ids(None) for n in (1, 2, 99))


def test_backgrounds() -> None:
    assert read_background("blur") is None
    assert read_background("#00ff80") == (0, 255, 128)
    assert read_background("beach.jpg") == Path("beach.jpg")
    for text in ("", "#00ff0", "#gggggg", "#00ff0000"):
        with pytest.raises(SettingsError, match="--layer-background expects a picture, a colour such as #00ff00"):
            read_background(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": ("blur=a.mp4", "pixelate=a.mp4")}, "--layer blur and --layer pixelate both name a.mp4"),
        ({"layer": ("cutout=f", "cutout=./f/")}, "--layer cutout and --layer cutout both name"),
        ({"layer": ("blur=a.mp4",), "output": Path("x/../a.mp4")}, "--output and --layer blur both name a.mp4"),
        ({"layer_ids": "1"}, "--layer-ids chooses people of layers: add --layer"),
        ({"layer_background": "#ffffff", "layer": ("blur=a.mp4",)}, "add --layer background=FILE"),
        ({"layer": ("blur=a.mp4",), "cover_frames": 0}, "--cover-frames must be 1 or more with --hide or --layer blur"),
        ({"hide": "blur", "cover_frames": 0}, "--cover-frames must be 1 or more with --hide"),
        ({"hide_ahead": 3}, "--hide-ahead is for hidden people: add --layer"),
        ({"hide_ahead": -1, "hide": "blur"}, "--hide-ahead must be from 0 to 250"),
        ({"hide": "erase"}, "--hide must be one of off, blur, pixelate, remove"),
        ({"layer": ("blur=a.mp4",), "cover_frames": -1}, "--cover-frames must be 0 or more, got -1"),
    ],
)
def test_options_that_do_not_go_together(options: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(source="in.mp4", **options)
