"""The kernels of the GPU path, each against what else would do its work: `python -m benchmarks.bench_gpu_kernels`.

Every output is compared with the CPU's in float64 before anything is timed. A sample is one call with a cold L2
cache: a large buffer is read first. On a GPU calls are replayed as CUDA graphs between two events, so that Python's
time does not count; the note `empty_graph_us` says what that costs by itself. Beside the times stand the fewest bytes
that the work has to move (each value that is needed read once, each result written once), and the share of the measured
bandwidth of a copy that they were moved with.

Without a CUDA device nothing is measured, the result says ``"status": "skipped"``, and the exit status is 0.
``--device cpu`` runs everything on the CPU's build of the same sources: a dry run, whose times (CPU time of one thread)
say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu_frame_cases import FRAMES, letterbox_cases, paste_cases
from benchmarks.measure import Row, Timing, environment, report, summarise
from kernels.affine_align import affine_align as numba_affine_align
from kernels.affine_align.torch_op import affine_align, affine_align_backward, align_with_skeleton
from kernels.torch_skeleton import skeleton_features

ROI_SIZE = 64
FLUSH_BYTES = {"cuda": 512 << 20, "cpu": 64 << 20}  # several times the largest cache
COPY_BYTES = {"cuda": 1 << 30, "cpu": 64 << 20}
OURS = "ours"
COPY = "copy of as many bytes"
HEADLINE = "paper"

#: Name, people, channels, height and width of the feature map.
SHAPES = (
    (HEADLINE, 32, 256, 128, 128),  # ResNet50-FPN, 512 x 512, stride 4
    ("live", 4, 48, 72, 128),  # 16:9 at a long side of 512 px, stride 4
    ("live", 20, 48, 72, 128),
)
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
DTYPES = {"f16": torch.float16, "f32": torch.float32}

#: Largest difference from float64 that ours may have. What is compared with us samples half-precision features at
#: coordinates in half precision, as PyTorch wants it: its error is reported, not limited to ours.
MAX_ERROR = {"f16": 2e-3, "f32": 1e-3}
MAX_ERROR_OF_BASELINES = {"f16": 0.5, "f32": 1e-2}


def largest_difference(result: Tensor, expected: Tensor) -> float:
    """Of all elements, both in float64."""
    return float((result - expected).abs().max())


def difference_but_for_rims(result: Tensor, expected: Tensor) -> float:
    """The same without the four largest: px on the rim of a joint or limb may fall to either side of it. NaN counts."""
    differences = (result - expected).abs().flatten()
    return float(differences.topk(5).values[-1]) if torch.isfinite(differences).all() else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One piece of work, several ways to do it."""

    name: str
    settings: Mapping[str, object]
    contestants: Mapping[str, Callable[[], Tensor]]
    """Ours first, then what it is compared with."""
    expected: Tensor
    """On the CPU, as exact as it gets."""
    max_error: Mapping[str, float]
    """Of ours, and of all others."""
    minimum_bytes: int
    eager: frozenset[str] = frozenset()
    """Contestants that cannot be captured as a graph; Python's time counts where the GPU waits for it."""
    error: Callable[[Tensor, Tensor], float] = largest_difference


@dataclass(slots=True, kw_only=True)
class Outcome:
    """A case's times and what follows from them."""

    case: Case
    errors: dict[str, float]
    timings: dict[str, Timing]
    copy_bytes_per_s: float

    @property
    def share_of_copy_bandwidth(self) -> float:
        """Needed bytes over our time, as a part of what a large copy reaches."""
        return self.case.minimum_bytes / (self.timings[OURS].median_ms * 1e-3) / self.copy_bytes_per_s

    def row(self) -> Row:
        """As `benchmarks.measure.report` takes it."""
        return Row(
            name=self.case.name,
            settings={
                **self.case.settings,
                "minimum_MB": round(self.case.minimum_bytes / 1e6, 2),
                "share_of_copy": float(f"{self.share_of_copy_bandwidth:.3g}"),
                **({"without_graph": sorted(self.case.eager)} if self.case.eager else {}),
            },
            timings=self.timings,
        )


# --------------------------------------------------------------------------------------------------------------- cases


def align_cases(device: torch.device) -> Iterator[Case]:
    """`affine_align` against the published way and one grid_sample for the image."""
    for settings, scene in _scenes(device):
        contestants: dict[str, Callable[[], Tensor]] = {
            OURS: partial(affine_align, *scene.arguments, ROI_SIZE),
            "published: gather, grid_sample": scene.published,
            "one grid_sample": scene.one_grid_sample,
        }
        if device.type == "cpu" and (scene.dtype, settings["layout"]) == ("f32", "NCHW"):
            contestants["Numba"] = scene.numba
        yield Case(
            name="affine_align",
            settings=settings,
            contestants=contestants,
            expected=affine_align(*scene.exact, ROI_SIZE),
            max_error={OURS: MAX_ERROR[scene.dtype], "others": MAX_ERROR_OF_BASELINES[scene.dtype]},
            minimum_bytes=scene.minimum_bytes(scene.channels),
        )


def skeleton_cases(device: torch.device) -> Iterator[Case]:
    """`align_with_skeleton` against aligning, drawing and concatenating."""
    for settings, scene in _scenes(device):

        def composed(align: Callable[[], Tensor], scene: Scene = scene) -> Tensor:
            drawn = skeleton_features(scene.keypoints, ROI_SIZE).to(DTYPES[scene.dtype])
            return torch.cat((align(), drawn), dim=1)

        yield Case(
            name="align_with_skeleton",
            settings=settings,
            contestants={
                OURS: partial(align_with_skeleton, *scene.arguments, scene.keypoints, ROI_SIZE),
                "published: gather, grid_sample, draw, cat": partial(composed, scene.published),
                "affine_align, draw, cat": partial(composed, partial(affine_align, *scene.arguments, ROI_SIZE)),
            },
            expected=align_with_skeleton(*scene.exact, scene.keypoints.cpu(), ROI_SIZE),
            max_error={OURS: MAX_ERROR[scene.dtype], "others": MAX_ERROR_OF_BASELINES[scene.dtype]},
            minimum_bytes=scene.minimum_bytes(scene.channels + 55),
            # PyTorch's drawing makes its index tensors on the host at every call.
            eager=frozenset({"published: gather, grid_sample, draw, cat", "affine_align, draw, cat"}),
            error=difference_but_for_rims,
        )


#: Every suite of cases; each makes its arrays when a case is reached.
SUITES: tuple[Callable[[torch.device], Iterator[Case]], ...] = (
    align_cases,
    skeleton_cases,
    partial(letterbox_cases, Case),
    partial(paste_cases, Case),
)


class Scene:
    """People spread over one feature map, most of them upright, as big as people are."""

    def __init__(self, device: torch.device, shape: tuple[int, int, int, int], dtype: str, layout: str) -> None:
        """Make the arrays; the same people for every type and layout."""
        people, self.channels, self.height, self.width = shape
        self.dtype, self.device = dtype, device
        random = torch.Generator().manual_seed(people)

        def uniform(low: float, high: float, *sizes: int) -> Tensor:
            return torch.rand(*sizes, generator=random) * (high - low) + low

        # Sines along both axes: smooth as a network's features are, with a slope of at most 1 per px.
        y, x = torch.arange(self.height)[:, None] / 5, torch.arange(self.width) / 7
        phase = uniform(0, 6.28, self.channels, 1, 1)
        values = (torch.sin(x + phase) * torch.cos(y - phase))[None]
        self.features = values.to(device, DTYPES[dtype]).contiguous(memory_format=LAYOUTS[layout])
        angle, side = uniform(-0.4, 0.4, people), uniform(0.25, 1.0, people) * self.height
        a, b = side / ROI_SIZE * angle.cos(), side / ROI_SIZE * angle.sin()
        middle = (ROI_SIZE - 1) / 2
        centre = uniform(0.25, 0.75, people, 2) * torch.tensor([self.width, self.height])
        shift_x, shift_y = centre[:, 0] - (a + b) * middle, centre[:, 1] - (a - b) * middle
        self.matrices = torch.stack((torch.stack((a, b, shift_x), -1), torch.stack((-b, a, shift_y), -1)), 1).to(device)
        # On the CPU PyTorch's grid_sample reads beside channels-last arrays in half precision (2.13): a dry run samples
        # float32 there.
        whole = device.type == "cpu" and dtype == "f16"
        self.sampled = self.features.float().contiguous() if whole else self.features
        self.images = torch.zeros(people, dtype=torch.int32, device=device)
        joints = torch.cat((uniform(4, ROI_SIZE - 4, people, 17, 2), torch.full((people, 17, 1), 2.0)), -1)
        self.keypoints = joints.to(device)
        # The matrix that affine_grid takes for the same points, with align_corners=False.
        to_roi = torch.tensor([[ROI_SIZE / 2, 0, middle], [0, ROI_SIZE / 2, middle], [0, 0, 1]])
        extent = torch.tensor([self.width, self.height])[:, None]
        normalised = self.matrices.cpu() @ to_roi * 2 / extent
        normalised[..., 2:] += 1 / extent - 1
        self.normalised = normalised.to(device)

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the operator."""
        return self.features, self.matrices, self.images

    @property
    def exact(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same on the CPU in float64."""
        return self.features.cpu().double(), self.matrices.cpu().double(), self.images.cpu()

    def minimum_bytes(self, channels: int) -> int:
        """Every feature px that some person needs read once, (N, channels, S, S) written once."""
        ones = torch.ones(len(self.images), 1, ROI_SIZE, ROI_SIZE)
        weights = affine_align_backward(ones, self.matrices.cpu(), self.images.cpu(), 1, self.height, self.width)
        needed = int((weights > 0).sum()) * self.channels
        return (needed + len(self.images) * channels * ROI_SIZE**2) * self.features.element_size()

    def numba(self) -> Tensor:
        """What the pipeline and the tests use where there is no PyTorch."""
        arrays = (self.features.numpy(), self.matrices.numpy(), self.images.numpy())
        return torch.from_numpy(numba_affine_align(*arrays, ROI_SIZE))

    def _grid(self) -> Tensor:
        size = [len(self.images), self.channels, ROI_SIZE, ROI_SIZE]
        return F.affine_grid(self.normalised, size, align_corners=False).to(self.sampled.dtype)

    def published(self) -> Tensor:
        """A copy of the feature map for each person, then one grid_sample."""
        return F.grid_sample(self.sampled[self.images], self._grid(), align_corners=False).to(self.features.dtype)

    def one_grid_sample(self) -> Tensor:
        """The grids of all people below each other: no copy of the map, but one of the result."""
        stacked = self._grid().reshape(1, -1, ROI_SIZE, 2)
        rows = F.grid_sample(self.sampled, stacked, align_corners=False).to(self.features.dtype)
        return rows.reshape(self.channels, -1, ROI_SIZE, ROI_SIZE).transpose(0, 1).contiguous()


def _scenes(device: torch.device) -> Iterator[tuple[dict[str, object], Scene]]:
    for name, *shape in SHAPES:
        for dtype in DTYPES:
            for layout in LAYOUTS:
                people, channels, height, width = shape
                settings = {
                    "shape": name,
                    "people": people,
                    "channels": channels,
                    "map": f"{height}x{width}",
                    "size": ROI_SIZE,
                    "type": dtype,
                    "layout": layout,
                }
                yield settings, Scene(device, (people, channels, height, width), dtype, layout)


# ----------------------------------------------------------------------------------------------------------- measuring


def check(case: Case) -> dict[str, float]:
    """Largest differences from what is expected.

    Raises:
        AssertionError: a contestant's is larger than the case allows, or not a number.
    """
    errors = {}
    for name, call in case.contestants.items():
        # Memory that the result may be given next holds NaN: what is not written shows.
        poison = torch.full(case.expected.shape, torch.nan, device=call().device)
        del poison
        result = call().cpu().double()
        errors[name] = case.error(result, case.expected)
        limit = case.max_error[OURS if name == OURS else "others"]
        assert result.shape == case.expected.shape, f"{case.name}, {name}: {tuple(result.shape)}"
        assert errors[name] <= limit, f"{case.name} {dict(case.settings)}, {name}: off by {errors[name]}, not {limit}"
    return errors


class Stopwatch:
    """Times calls on a device, each with a cold cache, in turns."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        """Make the buffer that is read between calls, and measure the bandwidth of a copy."""
        self._device, self._seconds = device, seconds
        self._kept: list[Tensor] = []
        self._flushed = torch.zeros(FLUSH_BYTES[device.type] // 4, device=device)
        source = torch.zeros(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        median_ms = self.time({"copy": partial(target.copy_, source)})["copy"].median_ms
        self.copy_bytes_per_s = 2 * source.numel() / (median_ms * 1e-3)

    def time(
        self, contestants: Mapping[str, Callable[[], Tensor]], eager: frozenset[str] = frozenset()
    ) -> dict[str, Timing]:
        """Samples of each; those named in ``eager`` are not captured as a graph."""
        self._kept.clear()
        calls = {name: self._prepared(call, captured=name not in eager) for name, call in contestants.items()}
        samples: dict[str, list[float]] = {name: [] for name in calls}
        started, rounds = time.perf_counter(), 0
        while rounds < 10 or (rounds < 500 and time.perf_counter() - started < self._seconds):
            for name, call in calls.items():
                samples[name].append(self._sample(call))
            rounds += 1
        return {name: summarise(times) for name, times in samples.items()}

    def _prepared(self, call: Callable[[], Tensor], *, captured: bool) -> Callable[[], object]:
        for _ in range(3):
            call()
        if self._device.type == "cpu" or not captured:
            return call
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = call()
        self._kept.append(kept)  # the result's memory is the graph's, and stays taken
        return graph.replay

    def _sample(self, call: Callable[[], object]) -> float:
        """One, in ms. What is enqueued waits for the reading of the buffer, so that Python is ahead of the GPU."""
        self._flushed.sum()
        if self._device.type == "cpu":
            begin = time.thread_time()  # others may be using the cores
            call()
            return (time.thread_time() - begin) * 1e3
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last))


def run_case(case: Case, stopwatch: Stopwatch, device: torch.device) -> Outcome:
    """Check, then time."""
    errors = check(case)
    half = torch.zeros(case.minimum_bytes // 2, dtype=torch.uint8, device=device)
    contestants = {**case.contestants, COPY: partial(torch.empty_like(half).copy_, half)}
    timings = stopwatch.time(contestants, case.eager)
    return Outcome(case=case, errors=errors, timings=timings, copy_bytes_per_s=stopwatch.copy_bytes_per_s)


def headlines(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """The figures that are wanted of a datacentre GPU, for both layouts; the plain name is that of NHWC."""
    found: dict[str, object] = {}
    for outcome in outcomes:
        settings = outcome.case.settings
        if outcome.case.name == "affine_align" and (settings["shape"], settings["type"]) == (HEADLINE, "f16"):
            ending = "" if settings["layout"] == "NHWC" else "_nchw"
            found["affine_align_f16_share_of_copy_bandwidth" + ending] = round(outcome.share_of_copy_bandwidth, 3)
            published = outcome.timings["published: gather, grid_sample"].median_ms
            found["affine_align_f16_times_published_pipeline" + ending] = round(
                published / outcome.timings[OURS].median_ms, 2
            )
    return found


def gpu_notes(device: torch.device) -> dict[str, object]:
    """What a reader needs to judge a GPU's number."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_MB": round(getattr(properties, "L2_cache_size", 0) / 2**20),
        "cuda_of_torch": torch.version.cuda,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the suite; the document that was printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="default %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases to run, by name")
    parser.add_argument(
        "--shape", nargs="+", choices=sorted({name for name, *_ in SHAPES} | set(FRAMES)), help="shapes to run"
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="sampling time of a case (default %(default)s)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<device>/gpu_kernels.json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        reason = "no CUDA device; --device cpu is a dry run on the CPU's build"
        document: dict[str, Any] = {"status": "skipped", "reason": reason, "environment": environment()}
        print(json.dumps(document))
    else:
        threads = torch.get_num_threads()
        if options.device == "cpu":
            torch.set_num_threads(1)
        try:
            document = _measured(torch.device(options.device), options)
        finally:
            torch.set_num_threads(threads)
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return document


def _measured(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    stopwatch = Stopwatch(device, options.seconds)
    outcomes = []
    for suite in SUITES:
        for case in suite(device):
            if options.only and case.name not in options.only:
                continue
            if options.shape and case.settings.get("shape") not in options.shape:
                continue
            outcomes.append(run_case(case, stopwatch, device))
    notes: dict[str, object] = {
        "status": "measured" if device.type == "cuda" else "dry run: CPU time of one thread, no time here is a GPU's",
        "copy_GB_per_s": round(stopwatch.copy_bytes_per_s / 1e9, 1),
    }
    if device.type == "cuda":
        one = torch.zeros(1, device=device)
        empty = stopwatch.time({"empty": lambda: one.add_(1)})["empty"]
        notes |= {"empty_graph_us": round(empty.median_ms * 1e3, 2), **gpu_notes(device), **headlines(outcomes)}
    for dtype in DTYPES:
        ours = [outcome.errors[OURS] for outcome in outcomes if outcome.case.settings.get("type") == dtype]
        notes[f"largest_error_{dtype}"] = float(f"{max(ours, default=float('nan')):.3g}")
    document = report("gpu_kernels", [outcome.row() for outcome in outcomes], notes=notes, save=options.save)
    return {"status": "measured" if device.type == "cuda" else "dry run", **document}


if __name__ == "__main__":
    main()
