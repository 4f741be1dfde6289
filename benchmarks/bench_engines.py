"""Time the graphs of a model in every engine that opens on this machine, in one run.

    python -m benchmarks.bench_engines [--engines onnx,torch,...] [--sizes 288x512] [--batch 1,8] [--people 1,4,20]
                                       [--model DIR] [--threads N] [--seconds S] [--json F] [--save]

The outputs of each engine are compared with those of ONNX Runtime first; one that is too far off gets no time. Engines
take turns call by call. "from the host" is NumPy in, NumPy out; "on the device" has its tensors there and waits for the
result. Each line has ONNX Runtime beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Row, measure, report
from engines import Artifact, default_artifact, load_artifact, open_engine
from engines.engine import DeviceEngine, Engine, EngineError, EngineOptions
from kernels.coordinates import compose

BASELINE = "onnx"
GPU_ENGINES = ("tensorrt", "tensorrt-rtx", "torch")
MAX_DIFFERENCE = {"float32": 2e-3, "float16": 0.05, "bfloat16": 0.35}
"""Of probabilities, by precision: beyond it an engine computes something else."""

MAX_CHANGED_SHARE = {"float32": 1e-4, "float16": 0.005, "bfloat16": 0.03}
"""Share of mask px that may change sides at one half."""

Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to run a graph."""

    engine: str
    device: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine} {self.device} {self.precision}"


@dataclass(slots=True)
class Suite:
    """What a run has found so far."""

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    differences: dict[str, str] = field(default_factory=dict)


def contestants(wanted: Sequence[str], *, gpu: bool) -> Iterator[Contestant]:
    """The ways that may work here, the baseline first."""
    yield Contestant(BASELINE, "cpu", "float32")
    if "openvino" in wanted:
        yield Contestant("openvino", "cpu", "float32")
    if "torch" in wanted:
        yield Contestant("torch", "cpu", "float32")
        yield Contestant("torch", "cpu", "bfloat16")
    if gpu:
        for engine in GPU_ENGINES:
            if engine in wanted:
                yield from (Contestant(engine, "cuda:0", precision) for precision in ("float32", "float16"))


def has_gpu() -> bool:
    """Whether PyTorch can use one."""
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def picture(height: int, width: int) -> tuple[NDArray[np.uint8], str]:
    """(H, W, 3) uint8 with people where scikit-image is installed, else soft noise; and what it is."""
    try:
        from examples.make_demo_clip import render
    except ImportError:
        noise = np.random.default_rng(0).integers(0, 255, (9, 16, 3), np.uint8)
        return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), "noise"
    return cv2.resize(render(50)[0], (width, height), interpolation=cv2.INTER_AREA), "demo clip, frame 50"


def segment_feeds(artifact: Artifact, found: Feeds, people: int) -> Feeds:
    """People all over the picture, one after the other around the likeliest rows of the keypoint graph."""
    rng = np.random.default_rng(people)
    rows = found["person_keypoints"][0]
    matrices, poses = np.empty((people, 2, 3), np.float32), np.empty((people, 17, 3), np.float32)
    for n in range(people):
        joints = rows[n % min(4, len(rows))]
        scale = max(8.0, 1.3 * float(np.ptp(joints[:, :2], axis=0).max())) / artifact.roi_size
        corner = joints[:, :2].mean(0) - scale * artifact.roi_size / 2 + rng.uniform(-8, 8, 2)
        input_from_roi = np.array([[scale, 0, corner[0]], [0, scale, corner[1]]])
        matrices[n] = compose(artifact.feature_from_input, input_from_roi)
        poses[n, :, :2] = (joints[:, :2] - corner) / scale
        poses[n, :, 2] = np.where(joints[:, 2] > 0.2, 2, 1)
    return {
        "features": np.ascontiguousarray(found["features"][:1], np.float32),
        "feature_from_roi": matrices,
        "roi_image": np.zeros(people, np.int32),
        "roi_keypoints": poses,
    }


def difference(found: Feeds, expected: Feeds, precision: str) -> str:
    """How far outputs are from the baseline's, in words.

    Raises:
        AssertionError: too far.
    """
    if "probabilities" in expected:
        largest = float(np.abs(found["probabilities"] - expected["probabilities"]).max())
        changed = float(((found["probabilities"] > 0.5) != (expected["probabilities"] > 0.5)).mean())
        text = f"probabilities {largest:.2g}, {changed:.2g} of the px change sides"
        assert largest < MAX_DIFFERENCE[precision], text
        assert changed < MAX_CHANGED_SHARE[precision], text
        return text
    ours, theirs = np.asarray(found["features"], np.float32), expected["features"]
    relative = float(np.abs(ours - theirs).mean() / np.abs(theirs).mean())
    text = f"features {relative:.2g} of their mean"
    assert relative < MAX_DIFFERENCE[precision], text
    if "person_scores" in expected:
        largest = float(np.abs(found["person_scores"] - expected["person_scores"]).max())
        text += f", person_scores {largest:.2g}"
        assert largest < MAX_DIFFERENCE[precision], text
    return text


def calls_of(engine: Engine, feeds: Feeds) -> dict[str, Callable[[], object]]:
    """From the host, and on the device where that is another one."""
    calls: dict[str, Callable[[], object]] = {"from the host": partial(engine.run, feeds)}
    device = getattr(engine, "device", "cpu")
    if device != "cpu":
        import torch

        on_device = cast("DeviceEngine", engine)
        tensors = {name: torch.from_numpy(array).to(device) for name, array in feeds.items()}

        def run_there() -> object:
            results = on_device.run_on_device(tensors)
            torch.cuda.synchronize()
            return results

        calls["on the device"] = run_there
    return calls


def typed(engine: Engine, feeds: Feeds) -> Feeds:
    """Features in the type that this engine takes."""
    return {spec.name: np.asarray(feeds[spec.name], spec.dtype) for spec in engine.inputs}


def time_graph(
    suite: Suite,
    path: Path,
    options: Mapping[Contestant, EngineOptions],
    cases: Sequence[tuple[dict[str, object], Feeds]],
    *,
    seconds: float,
    done: Callable[[], None],
) -> None:
    """All cases of one graph; engines stay open between them.

    Args:
        suite: where rows and remarks go.
        path: the graph.
        options: of every contestant, the baseline first.
        cases: settings that are printed, and inputs.
        seconds: for each case.
        done: called after each case.
    """
    engines: dict[Contestant, Engine] = {}
    try:
        for contestant, chosen in options.items():
            try:
                engines[contestant] = open_engine(path, engine=contestant.engine, options=chosen)
            except EngineError as error:
                suite.left_out[f"{contestant}, {path.stem}"] = str(error)
        for settings, feeds in cases:
            time_case(suite, path.stem, engines, settings, feeds, seconds=seconds)
            done()
    finally:
        for engine in engines.values():
            engine.close()


def time_case(
    suite: Suite,
    graph: str,
    engines: Mapping[Contestant, Engine],
    settings: dict[str, object],
    feeds: Feeds,
    *,
    seconds: float,
) -> None:
    baseline = next(iter(engines))
    expected = engines[baseline].run(feeds)
    calls: dict[str, Callable[[], object]] = {}
    for contestant, engine in engines.items():
        case = f"{contestant}, {graph} " + " ".join(f"{key}={value}" for key, value in settings.items())
        own = typed(engine, feeds)
        try:
            for _ in range(3):  # the last is what is timed: replayed, where an engine records
                found = engine.run(own)
            suite.differences[case] = difference(found, expected, contestant.precision)
        except (AssertionError, EngineError) as error:
            suite.left_out[case] = str(error)
            continue
        calls |= {f"{contestant}, {where}": call for where, call in calls_of(engine, own).items()}
    timings = measure(calls, seconds=seconds, min_samples=5, warm_up_s=min(0.2, seconds))
    first, *others = timings
    suite.rows.append(Row(name=graph, settings=settings, timings={first: timings[first]}))
    suite.rows += [
        Row(name=graph, settings=settings, timings={name: timings[name], first: timings[first]}) for name in others
    ]


def sizes(text: str) -> list[tuple[int, int]]:
    return [(int(height), int(width)) for height, _, width in (size.partition("x") for size in text.split(","))]


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="onnx,openvino,torch,tensorrt,tensorrt-rtx", help="names, by comma")
    parser.add_argument("--sizes", type=sizes, default=[(288, 512)], help="HxW of the input in px, by comma")
    parser.add_argument("--batch", type=numbers, default=[1, 8], help="pictures of one call, by comma")
    parser.add_argument("--people", type=numbers, default=[1, 4, 20], help="people of one call, by comma")
    parser.add_argument("--model", type=Path, default=default_artifact(), help="a model folder of the family live")
    parser.add_argument("--threads", type=int, help="cores of one call; all by default")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case")
    parser.add_argument("--json", type=Path, help="write the figures here, after each case")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<device>/engines.json")
    arguments = parser.parse_args()
    wanted = arguments.engines.split(",")
    artifact = load_artifact(arguments.model)
    options = {
        contestant: EngineOptions(
            threads=arguments.threads if contestant.device == "cpu" else None,
            device=contestant.device,
            precision=cast("Any", contestant.precision),
            max_batch=max(arguments.batch),
            max_people=max(arguments.people),
            long_side=max(max(size) for size in arguments.sizes),
        )
        for contestant in contestants(wanted, gpu=has_gpu())
    }
    suite = Suite()
    notes: dict[str, object] = {"differences": suite.differences, "left_out": suite.left_out}

    def store() -> None:
        """What there is so far: a run that is cut short leaves its figures."""
        if arguments.json is not None:
            rows = [{"name": row.name, "settings": row.settings, "speedup": row.speedup} for row in suite.rows]
            arguments.json.write_text(json.dumps({"rows": rows, "notes": notes}), encoding="utf-8")

    keypoint_cases: list[tuple[dict[str, object], Feeds]] = []
    segment_cases: list[tuple[dict[str, object], Feeds]] = []
    with closing(open_engine(artifact.keypoints_path, engine=BASELINE)) as keypoints:
        for height, width in arguments.sizes:
            image, notes["picture"] = picture(height, width)
            size = f"{height}x{width}"
            for batch in arguments.batch:
                feeds = {"image": np.ascontiguousarray(np.broadcast_to(image, (batch, *image.shape)))}
                keypoint_cases.append(({"size": size, "batch": batch}, feeds))
            found = keypoints.run({"image": image[None]})
            segment_cases += [
                ({"size": size, "people": people}, segment_feeds(artifact, found, people))
                for people in arguments.people
            ]
    for path, cases in ((artifact.keypoints_path, keypoint_cases), (artifact.segment_path, segment_cases)):
        time_graph(suite, path, options, cases, seconds=arguments.seconds, done=store)
    document = report("engines", suite.rows, notes=notes, save=arguments.save)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
