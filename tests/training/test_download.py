"""The data sets of the paper: COCO from a real server, OCHuman from what its authors give."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.file_server import Behaviour, serving
from training import download as module
from training.dataset import DataError, read_photos
from training.download import COCO, OCHUMAN_FORM, Archive, download_coco, main, prepare_ochuman, unpack
from training.fetch import Checksum, FetchError
from training.ochuman import KEYPOINT_NAMES, MARKS


def packed(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def archive_of(url: str, content: bytes) -> Archive:
    digest = hashlib.sha1(content).hexdigest()
    return Archive(url=url, checksum=Checksum(algorithm="sha1", digest=digest, source="the test"), content="val2017")


def test_coco_is_fetched_over_broken_connections_unpacked_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = packed({"val2017/1.jpg": bytes(range(256)) * 900, "val2017/2.jpg": b"two"})
    behaviour = Behaviour(content=content, cut_after=len(content) // 2)
    with serving(behaviour) as url:
        for _ in range(2):
            (folder,) = download_coco(tmp_path / "coco", ["val"], archives={"val": archive_of(url, content)})
    assert folder == tmp_path / "coco" / "val2017"
    assert (folder / "1.jpg").read_bytes() == bytes(range(256)) * 900 and (folder / "2.jpg").read_bytes() == b"two"
    assert [path.name for path in folder.parent.iterdir()] == ["val2017"]
    assert [request["range"] is None for request in behaviour.requests] == [True, False, False][
        : len(behaviour.requests)
    ]
    assert 2 <= len(behaviour.requests) <= 3
    assert "file.zip:" in capsys.readouterr().out


def test_archives_can_be_kept(tmp_path: Path) -> None:
    content = packed({"val2017/1.jpg": b"one"})
    with serving(Behaviour(content=content)) as url:
        download_coco(tmp_path, ["val"], keep_archives=True, archives={"val": archive_of(url, content)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.zip", "val2017"]


@pytest.mark.parametrize(
    "name", ["../evil.txt", "/evil.txt", "val2017/../../evil.txt", "other/1.jpg", "val2017\\..\\x"]
)
def test_members_outside_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "in" / "file.zip"
    file.parent.mkdir()
    file.write_bytes(packed({"val2017/1.jpg": b"one", name: b"evil"}))
    with pytest.raises(DataError, match="expected members below val2017/ only"):
        unpack(file, tmp_path / "in", "val2017")
    assert [path.name for path in file.parent.iterdir()] == ["file.zip"] and len(list(tmp_path.iterdir())) == 1


def test_damaged_and_empty_zips_leave_no_folder(tmp_path: Path) -> None:
    content = bytearray(packed({"val2017/1.jpg": b"one" * 1000}))
    deflated = packed({"val2017/1.jpg": np.random.default_rng(0).bytes(4000)}, zipfile.ZIP_DEFLATED)
    for damaged, said in (
        (bytes(content[: len(content) // 2]), "is not a whole zip"),
        (bytes(content[:60]) + b"\xff" * 100 + bytes(content[160:]), "is not a whole zip"),
        (deflated[:60] + b"\xff" * 100 + deflated[160:], "is not a whole zip"),
        (packed({}), "it is empty"),
    ):
        (tmp_path / "file.zip").write_bytes(damaged)
        with pytest.raises(DataError, match=said):
            unpack(tmp_path / "file.zip", tmp_path, "val2017")
        assert [path.name for path in tmp_path.iterdir()] == ["file.zip"]


def test_a_zip_that_would_fill_the_disk_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.zip").write_bytes(packed({"val2017/1.jpg": b"1"}))

    def full(_folder: Path, needed: int, what: str) -> None:
        raise FetchError(f"{what}: {needed}")

    monkeypatch.setattr(module, "require_space", full)
    with pytest.raises(FetchError, match=r"unpacking file\.zip: 1"):
        unpack(tmp_path / "file.zip", tmp_path, "val2017")
    assert [path.name for path in tmp_path.iterdir()] == ["file.zip"]


def test_every_official_archive_has_a_checksum_and_says_whose() -> None:
    assert set(COCO) == {"annotations", "val", "train"}
    for archive in COCO.values():
        assert archive.url.startswith("http://images.cocodataset.org/") and archive.url.endswith(".zip")
        assert archive.checksum is not None and len(archive.checksum.digest) == 40
        assert "COCO itself publishes none" in archive.checksum.source


def ochuman(people: int = 2) -> dict[str, Any]:
    person = {
        "bbox": [2, 2, 30, 40],
        "keypoints": [float(value) for number in range(19) for value in (number + 2, 20, 1)],
        "segms": {"outer": [[2, 2, 30, 2, 30, 40, 2, 40]], "inner": [], "height": 48, "width": 64},
        "max_iou": 0.8,
    }
    size = {"width": 64, "height": 48}
    entry = {"image_id": "1", "file_name": "000001.jpg", **size, "annotations": [person] * people}
    return {"keypoint_names": list(KEYPOINT_NAMES), "keypoint_visible": MARKS, "images": [entry]}


def test_without_a_source_ochuman_says_where_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ochuman", "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "no direct link" in said and OCHUMAN_FORM in said and "--from" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["zip", "folder", "address"])
def test_ochuman_is_taken_from_what_its_authors_give(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = json.dumps(ochuman()).encode()
    given = packed({"OCHuman/ochuman.json": annotations, "OCHuman/images/000001.jpg": b"x"})
    source = tmp_path / "given"
    if kind == "folder":
        (source / "images").mkdir(parents=True)
        (source / "ochuman.json").write_bytes(annotations)
    else:
        source.write_bytes(given)
    out = tmp_path / "out"
    if kind == "address":
        with serving(Behaviour(content=given)) as url:
            assert main(["ochuman", "--from", url, "--output", str(out)]) == 0
    else:
        assert main(["ochuman", "--from", str(source), "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert "1 pictures, 2 masks (published are 5,081 and 8,110)" in said
    (photo,) = read_photos(out / "val_hard.json")
    assert len(photo.people) == 2 and photo.people[0].has_keypoints


def test_what_is_not_ochuman_is_named(tmp_path: Path) -> None:
    page = Behaviour(content=b"<html>a form</html>")
    with serving(page) as url, pytest.raises(DataError, match="gave no zip: perhaps a page for a browser"):
        prepare_ochuman(url, tmp_path / "out")
    assert not (tmp_path / "out" / "ochuman.zip").exists()
    with pytest.raises(DataError, match="there is no such file or folder"):
        prepare_ochuman(str(tmp_path / "missing"), tmp_path / "out")
    cases: list[tuple[dict[str, bytes], str]] = [
        ({"images/1.jpg": b"x"}, r"pictures and no ochuman\.json"),
        ({"ochuman.json": b"{}"}, r"expected pictures and ochuman\.json in it"),
        ({"ochuman.json": b"{}", "images/1.jpg": b"x"}, r"is not OCHuman's annotation file: KeyError 'images'"),
        ({"ochuman.json": b"[", "images/1.jpg": b"x"}, r"is not OCHuman's annotation file"),
    ]
    for members, said in cases:
        (tmp_path / "some.zip").write_bytes(packed(members))
        with pytest.raises(DataError, match=said):
            prepare_ochuman(str(tmp_path / "some.zip"), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"or a folder with ochuman\.json and images"):
        prepare_ochuman(str(tmp_path / "empty"), tmp_path / "out")
