"""An INT8 keypoint graph from a model folder and frames to calibrate on:
`python -m training.quantize --artifact engines/artifacts/live --frames FOLDER --output keypoints_int8.onnx`.

Quantise and dequantise nodes stand before and after each convolution: symmetric, weights per output channel,
activations per tensor. The convolutions that make scores and coordinates stay float32, and so does everything after
them. TensorRT has no other way into INT8 since version 11. The command measures what is lost; of the shipped model so
much is lost that its INT8 graph is of no use (docs/tensorrt.md).
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from engines import EngineError, load_artifact, open_engine
from kernels.coordinates import U8
from kernels.letterbox import letterbox, plan_letterbox

FRAMES = 64  # more change the ranges little, and each takes half a second
PICTURES = {".jpg", ".jpeg", ".png", ".webp"}
BETWEEN_CONVOLUTIONS = frozenset({"Add", "BatchNormalization", "Clip", "Concat", "Conv", "Relu", "Resize"})


class _Frames(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime publishes no types
    """Network inputs, one frame each, for ONNX Runtime's calibration."""

    def __init__(self, images: Sequence[U8]) -> None:
        self._next = iter(images)

    def get_next(self) -> dict[str, U8] | None:
        image = next(self._next, None)
        return None if image is None else {"image": image}


def network_inputs(folder: Path, *, long_side: int, multiple: int, limit: int = FRAMES) -> Iterator[U8]:
    """(1, H, W, 3) uint8 RGB: the pictures below a folder, evenly chosen, as the pipeline would hand them over.

    Raises:
        FileNotFoundError: no picture there.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not found:
        raise FileNotFoundError(f"{folder}: expected pictures ({', '.join(sorted(PICTURES))}), found none")
    step = max(len(found) / limit, 1.0)
    for index in range(min(limit, len(found))):
        picture = cv2.imread(str(found[int(index * step)]), cv2.IMREAD_COLOR_RGB)
        if picture is not None:
            plan = plan_letterbox(*picture.shape[:2], long_side=long_side, multiple=multiple)
            yield letterbox(np.asarray(picture, np.uint8), plan)[None]


def last_convolutions(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions whose results are no feature maps: scores, offsets, coordinates."""
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    kept = {value.name for value in model.graph.output if value.name == "features"}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.output[0] not in kept
        and not BETWEEN_CONVOLUTIONS & set(readers.get(node.output[0], []))
    ]


def quantise(path: Path, output: Path, images: Sequence[U8]) -> None:
    """Write the INT8 graph.

    Args:
        path: float32 keypoint graph.
        output: file to write.
        images: (1, H, W, 3) uint8 RGB each; the ranges of activations are taken from them.
    """
    logging.getLogger().setLevel(logging.ERROR)  # it advises a pre-processing that our exporter has done already
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, output.name)
        quantize_static(
            str(path),
            str(made),
            _Frames(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=last_convolutions(onnx.load(path)),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
        model = onnx.load(made)
    onnx.checker.check_model(model)
    onnx.save(model, output)


def differences(path: Path, quantised: Path, images: Sequence[U8], *, threshold: float) -> dict[str, float]:
    """How far results move on pictures: of people above a threshold in both graphs, matched by row.

    Returns:
        people, and the largest difference of scores and the median and largest of joints, in px of the input.
    """
    exact, rounded = open_engine(path, engine="onnx"), open_engine(quantised, engine="onnx")
    scores, px = [], []
    for image in images:
        one, other = exact.run({"image": image}), rounded.run({"image": image})
        for score, joints in zip(one["person_scores"][0], one["person_keypoints"][0], strict=True):
            if score < threshold:
                break  # falling
            away = np.abs(other["person_keypoints"][0][..., :2] - joints[None, :, :2]).mean((1, 2))
            nearest = int(away.argmin())
            scores.append(abs(float(other["person_scores"][0][nearest] - score)))
            px.append(float(away[nearest]))
    return {
        "people": float(len(px)),
        "score_max": max(scores, default=0.0),
        "px_median": float(np.median(px)) if px else 0.0,
        "px_max": max(px, default=0.0),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.quantize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifact", type=Path, required=True, help="a model folder of the family live")
    parser.add_argument("--frames", type=Path, required=True, help="a folder of pictures like those it will see")
    parser.add_argument("--output", type=Path, required=True, help="ONNX file to write")
    parser.add_argument("--limit", type=int, default=FRAMES, help="pictures to take (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        artifact = load_artifact(options.artifact)
        path = artifact.graph_path("keypoints")
        images = list(
            network_inputs(
                options.frames, long_side=artifact.long_side, multiple=artifact.input_multiple, limit=options.limit
            )
        )
        quantise(path, options.output, images)
        moved = differences(path, options.output, images[:16], threshold=artifact.person_threshold)
    except (EngineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"wrote {options.output}, calibrated on {len(images)} pictures; against float32 on {min(16, len(images))} of "
        f"them, {moved['people']:.0f} people: scores differ by {moved['score_max']:.2g} at most, joints by "
        f"{moved['px_median']:.2g} px (median of people), {moved['px_max']:.2g} px at most"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
