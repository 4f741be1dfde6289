from __future__ import annotations

from pathlib import Path

import pytest

from engines import ArtifactError
from pipeline.build import build, make_sinks, open_model
from pipeline.errors import SettingsError, SinkError, SourceError
from pipeline.settings import Settings
from tests.clips import write_images, write_video
from tests.fakes import ListSource, fake_model, frame
from tests.magenta_model import write_magenta_model

pytestmark = pytest.mark.timeout(60)


def test_every_named_output_is_a_sink(tmp_path) -> None:
    settings = Settings(
        source="x",
        output=tmp_path / "a.mp4",
        json=tmp_path / "a.jsonl",
        coco=tmp_path / "a.json",
        sheet=tmp_path / "a.png",
    )
    assert len(make_sinks(settings, None)) == 4
    assert make_sinks(Settings(source="x"), None) == []


def test_nothing_is_drawn_when_nobody_looks(tmp_path) -> None:
    def drawn(**options) -> list[bool]:
        pipeline = build(Settings(source="x", **options), model=fake_model(), source=ListSource([frame()]))
        return [result.drawn is not None for result in pipeline.results()]

    assert drawn() == [False]
    assert drawn(json=tmp_path / "a.jsonl") == [False]
    assert drawn(output=tmp_path / "a.mp4") == [True]
    assert drawn(sheet=tmp_path / "a.png") == [True]


def test_outputs_are_checked_before_the_source_is_opened(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text("x")
    with pytest.raises(SinkError, match="exists already"):
        build(Settings(source=str(tmp_path / "missing.mp4"), json=tmp_path / "a.jsonl"))


def test_the_source_is_opened_before_the_model(tmp_path) -> None:
    with pytest.raises(SourceError):
        build(Settings(source=str(tmp_path / "missing.mp4"), model=tmp_path / "no_model"))


def test_a_source_is_closed_when_the_model_fails(tmp_path) -> None:
    source = ListSource([])
    with pytest.raises(ArtifactError, match="expected a model folder"):
        build(Settings(source="x", model=tmp_path / "no_model"), source=source)
    assert source.closed == 1


@pytest.mark.parametrize("link", [False, True])
def test_no_output_replaces_an_input(tmp_path, link) -> None:
    video = write_video(tmp_path / "a.mp4", 2)
    output = video
    if link:
        output = tmp_path / "other.mp4"
        output.symlink_to(video)
    before = video.read_bytes()
    with pytest.raises(SettingsError, match="is also read by this run"):
        build(Settings(source=str(video), output=output, overwrite=True), model=fake_model())
    with pytest.raises(SettingsError, match="is also read by this run"):
        build(Settings(source=str(tmp_path), output=output, overwrite=True), model=fake_model())
    assert video.read_bytes() == before


def test_coco_results_are_for_images(tmp_path) -> None:
    video = write_video(tmp_path / "a.mp4", 2)
    with pytest.raises(SettingsError, match="--coco writes results of images"):
        build(Settings(source=str(video), coco=tmp_path / "a.json"), model=fake_model())
    folder = write_images(tmp_path / "in", ["a.png"])
    build(Settings(source=str(folder), coco=tmp_path / "a.json"), model=fake_model())


def test_a_model_folder_opens(tmp_path) -> None:
    model = open_model(Settings(source="x", model=write_magenta_model(tmp_path / "model"), threads=1))
    assert model.artifact.long_side == 128
    model.close()


def damage_manifest(folder: Path) -> None:
    (folder / "model.json").write_text("{}")


def damage_graph(folder: Path) -> None:
    path = folder / "segment.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove_graph(folder: Path) -> None:
    (folder / "keypoints.onnx").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [(damage_manifest, "schema"), (damage_graph, "SHA-256"), (remove_graph, "found nothing")],
)
def test_damaged_model_folders(tmp_path, damage, message) -> None:
    folder = write_magenta_model(tmp_path / "model")
    damage(folder)
    with pytest.raises(ArtifactError, match=message) as caught:
        open_model(Settings(source="x", model=folder))
    assert "\n" not in str(caught.value)
