"""Where the threads of a run spend their time, as a picture.

    python -m benchmarks.flame VIDEO --plot docs/images/flame.png

py-spy looks at the running command 100 times a second, native code included (Linux; it has to be installed). Kept is
what a stage does with a frame: neither waiting for the next one nor compiling and loading. A bar is a function, as wide
as the share of samples it was seen in, and what it calls stands below it. The worker threads inside a network runtime
and the encoder run no Python and are not seen.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOT_WORK = ("Channel.get", "Channel.put", ".open ", ".close ")
OURS = re.compile(r"(?P<name>[\w.<>]+) \((?:pipeline|kernels|engines)/")
STAGE = re.compile(r"Pipeline\._run_(stage|source)")
LIBRARIES = {
    "onnxruntime": "ONNX Runtime",
    "cv2": "OpenCV",
    "libav": "FFmpeg",
    "libx264": "x264",
    "libswscale": "FFmpeg",
}
MIN_LABEL = 0.035  # share of the width under which a name does not fit


def stacks(folded: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """Stage, then our functions from the outside in, then the library they ended in; and how many samples.

    Args:
        folded: py-spy's raw format, `frame;frame;... count` in each line.
    """
    for line in folded.splitlines():
        text, _, count = line.rpartition(" ")
        frames = text.split(";")
        start = next((index for index, frame in enumerate(frames) if STAGE.search(frame)), None)
        if start is None or any(word in frame + " " for frame in frames[start:] for word in NOT_WORK):
            continue
        thread = frames[0].rpartition(": ")[2]
        path = [thread]
        for frame in frames[start + 1 :]:
            found = OURS.search(frame)
            if found and found["name"] != path[-1] and "<" not in found["name"]:
                path.append(found["name"])
        library = next((name for word, name in LIBRARIES.items() if any(word in frame for frame in frames[-6:])), None)
        yield (*path, library) if library else tuple(path), int(count)


def draw(counted: Counter[tuple[str, ...]], path: Path) -> None:
    """Icicle picture of the stacks, the outermost on top."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    total = sum(counted.values())
    depth = max(map(len, counted))
    figure, axis = plt.subplots(figsize=(13, 0.42 * depth + 0.6), layout="constrained")
    colours = plt.get_cmap("Set3")
    stages = [stage for stage, _ in _children(counted, ())]

    def place(prefix: tuple[str, ...], left: float) -> None:
        for name, samples in _children(counted, prefix):
            width = samples / total
            colour: Any = colours(stages.index((*prefix, name)[0]) % 12)
            axis.barh(-len(prefix), width, 0.94, left=left, align="edge", color=colour, edgecolor="white")
            if width > MIN_LABEL:
                shown = f"{name} {100 * width:.0f}%"
                axis.text(
                    left + width / 2, -len(prefix) + 0.47, shown, ha="center", va="center", fontsize=7, clip_on=True
                )
            place((*prefix, name), left)
            left += width

    place((), 0.0)
    axis.set(xlim=(0, 1), ylim=(-depth + 1, 1))
    axis.axis("off")
    axis.set_title(f"{total} samples of working threads", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _children(counted: Counter[tuple[str, ...]], prefix: tuple[str, ...]) -> list[tuple[str, int]]:
    """Names right below a stack, with all samples in and under them, most first."""
    below: Counter[str] = Counter()
    for stack, samples in counted.items():
        if stack[: len(prefix)] == prefix and len(stack) > len(prefix):
            below[stack[len(prefix)]] += samples
    return below.most_common()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path, metavar="VIDEO")
    parser.add_argument("--plot", type=Path, required=True, metavar="F.png")
    parser.add_argument("--max-frames", type=int, default=250)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = [sys.executable, "run_stream.py", str(options.video.resolve()), "--engine", "onnx", "--device", "cpu"]
        run += ["--output", str(folder / "o.mp4"), "--json", str(folder / "o.jsonl"), "--overwrite"]
        run += ["--max-frames", str(options.max_frames)]
        watch = ["py-spy", "record", "--native", "--threads", "--rate", "100", "--format", "raw", "--output"]
        spy = Path(sys.executable).with_name("py-spy")
        watch[0] = str(spy) if spy.is_file() else watch[0]
        try:
            subprocess.run([*watch, str(folder / "folded"), "--", *run], cwd=ROOT, check=True)  # noqa: S603  our own command
        except FileNotFoundError:
            sys.exit("error: py-spy is not installed: pip install py-spy")
        folded = (folder / "folded").read_text(encoding="utf-8")
    counted: Counter[tuple[str, ...]] = Counter()
    for stack, samples in stacks(folded):
        counted[stack] += samples
    draw(counted, options.plot)
    total = sum(counted.values())
    for stage, samples in _children(counted, ()):
        print(f"{stage:12s} {100 * samples / total:5.1f}%")


if __name__ == "__main__":
    main()
