"""What networks of other shapes would cost on this CPU: random weights, so times only.

    python -m benchmarks.bench_network_shapes [--size 288x512] [--people 3] [--seconds S] [--json F] [--save]

Two tables. **Trunks**: the installed keypoint graph, whose inverted residuals are depthwise, beside plain 3x3 ResNets
of several widths (the middle one is the 17 ms trunk of a former prototype), all with levels from stride 4 to 32 and a
top-down path of 48 channels. **Mask parts**: segment graphs with other windows (48, 64, 96 px) and widths. One thread,
contestants in turns. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.bench_engines import picture, segment_feeds, sizes
from benchmarks.measure import Row, measure, report
from engines import default_artifact, load_artifact, open_engine
from engines.engine import EngineError, EngineOptions
from training.export_onnx import export_segment
from training.model import LiveNetwork
from training.model_settings import ModelSettings

RUNTIMES = (("onnx", "float32"), ("openvino", "bfloat16"))
BLOCKS = (1, 2, 3, 2)  # of the stages at stride 4, 8, 16, 32
WIDTHS = ((24, 48, 96, 144), (32, 64, 128, 192), (48, 96, 192, 288))  # of the stages
NECK = 48
WINDOWS = ((64, 48), (48, 48), (96, 48), (64, 32), (64, 64))  # side of the window, width of the SegModule


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the way around them; norm layers are folded, as they are when serving."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.around = nn.Identity() if inputs == outputs and stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.around(x) + self.second(F.relu(self.first(x))))


class PlainTrunk(nn.Module):
    """uint8 picture (1, H, W, 3) -> (1, 48, H/4, W/4)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, 2, 1)
        inputs, stages = widths[0], []
        for width, blocks in zip(widths, BLOCKS, strict=True):
            stages.append(
                nn.Sequential(*(BasicBlock(inputs if not i else width, width, 1 if i else 2) for i in range(blocks)))
            )
            inputs = width
        self.stages = nn.ModuleList(stages)
        self.laterals = nn.ModuleList(nn.Conv2d(width, NECK, 1) for width in widths)
        self.out = nn.Conv2d(NECK, NECK, 3, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem(image.permute(0, 3, 1, 2).float() / 127.5 - 1))
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        merged = self.laterals[-1](levels[-1])
        for lateral, level in zip(reversed(self.laterals[:-1]), reversed(levels[:-1]), strict=True):
            merged = F.interpolate(merged, scale_factor=2.0, mode="bilinear", align_corners=False) + lateral(level)
        return F.relu(self.out(merged))


def trunk_file(widths: Sequence[int], size: tuple[int, int], folder: Path) -> Path:
    """A trunk with random weights as an ONNX file of one input size."""
    torch.manual_seed(0)
    example = torch.zeros(1, *size, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        PlainTrunk(widths).eval(), (example,), input_names=["image"], dynamo=True, verbose=False
    )
    assert program is not None
    path = folder / f"trunk-{widths[0]}.onnx"
    path.write_bytes(program.model_proto.SerializeToString())
    return path


def segment_file(window: int, width: int, folder: Path) -> Path:
    """A segment graph with random weights as an ONNX file."""
    torch.manual_seed(0)
    settings = ModelSettings(roi_size=window, seg_width=width)
    path = folder / f"segment-{window}-{width}.onnx"
    onnx.save(export_segment(LiveNetwork(settings).eval()), str(path))
    return path


def windows_of(feeds: Mapping[str, Any], label: str) -> dict[str, Any]:
    """The same people in windows of another size."""
    factor = int(label.partition(" ")[0]) / 64
    matrices, poses = feeds["feature_from_roi"].copy(), feeds["roi_keypoints"].copy()
    matrices[:, :, :2] /= factor
    poses[:, :, :2] *= factor
    return {**feeds, "feature_from_roi": matrices, "roi_keypoints": poses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=sizes, default=[(288, 512)], help="HxW of the input, px")
    parser.add_argument("--people", type=int, default=3, help="people of a segment call")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each table and runtime")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<device>/network_shapes.json")
    arguments = parser.parse_args()
    artifact = load_artifact(default_artifact())
    ((height, width),) = arguments.size
    image = picture(height, width)[0][None]
    with closing(open_engine(artifact.keypoints_path, engine="onnx")) as keypoints:
        of_people = segment_feeds(artifact, keypoints.run({"image": image}), arguments.people)
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        folder = Path(name)
        trunks = {"installed, depthwise": artifact.keypoints_path}
        trunks |= {
            f"plain {', '.join(map(str, widths))}": trunk_file(widths, (height, width), folder) for widths in WIDTHS
        }
        parts = {
            f"{window} px, {channels} channels": segment_file(window, channels, folder) for window, channels in WINDOWS
        }
        for runtime, precision in RUNTIMES:
            options = EngineOptions(threads=1, device="cpu", precision=cast("Any", precision))
            for table, files in (("trunk", trunks), ("mask part", parts)):
                try:
                    engines = {
                        label: opened.enter_context(closing(open_engine(path, engine=runtime, options=options)))
                        for label, path in files.items()
                    }
                except EngineError as error:
                    left_out[f"{table}, {runtime} {precision}"] = str(error)
                    continue
                calls = {
                    label: partial(engine.run, {"image": image} if table == "trunk" else windows_of(of_people, label))
                    for label, engine in engines.items()
                }
                timings = measure(calls, seconds=arguments.seconds, min_samples=5)
                first, *_ = timings
                settings = {"table": table, "runtime": f"{runtime} {precision}"}
                rows += [
                    Row(name=label, settings=settings, timings={label: timing} | {first: timings[first]})
                    for label, timing in timings.items()
                ]
    notes = {"size": f"{height}x{width}", "people": arguments.people, "left_out": left_out}
    report("network_shapes", rows, notes=notes, save=arguments.save)


if __name__ == "__main__":
    main()
