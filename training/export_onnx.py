"""Checkpoint -> artifact folder: `python -m training.export_onnx --checkpoint RUN/step-N --output DIR [--evaluation
NAME=F.json ...]`.

For timing without trained weights: `--family paper --random-weights --output DIR`; the manifest says so, and the masks
mean nothing.

Two graphs are written, see `training.graphs`. In the segment graph affine-align is one node of our own domain,
``pose2seg::AffineAlign``, with the attributes ``plugin_namespace`` and ``plugin_version`` that a runtime with our
kernel looks for; the file also carries a local function with the same meaning in standard operators, so that every
runtime can run it. Before the folder is written both graphs are compared with the network they came from.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxscript
import torch
from onnx.defs import OpSchema
from onnxscript import opset18 as op
from torch import nn

from engines import Artifact, EngineError, open_engine, write_artifact
from engines.signatures import DEFAULT_GROUPING, KEYPOINT_OUTPUTS
from kernels.affine_align.torch_op import affine_align as _affine_align_op  # noqa: F401  registers pose2seg::affine_align
from kernels.groupings import grouping_parameters
from training.checkpoint import CheckpointError, describe, load_weights
from training.export_difference import MAX_DIFFERENCE, grouping_difference, largest
from training.families import Network, new_network_of
from training.graphs import FeaturesGraph, KeypointGraph, SegmentGraph
from training.model import JOINTS, LiveNetwork
from training.model_settings import AlignSettings, ModelSettings, model_settings_from_json
from training.paper_model import PaperNetwork
from training.settings import with_changes

DOMAIN = "pose2seg"
LONG_SIDE = 512  # px: what the default artifact's thresholds and figures belong to
INPUT_MULTIPLE = 32
# Scores of each grouping mean different things; only the first was measured.
PERSON_THRESHOLDS = {"centre": 0.25, "embedding": 0.2, "affinity": 0.2, "personlab": 0.2}
JOINT_THRESHOLD = 0.2
RANDOM_WEIGHTS = "random: for timing only, the masks mean nothing"


class ExportError(RuntimeError):
    """The exported graph is not the network it came from."""


def _register_schema() -> None:
    formal, attribute = OpSchema.FormalParameter, OpSchema.Attribute
    if onnx.defs.has("AffineAlign", DOMAIN):
        return
    onnx.defs.register_schema(
        OpSchema(
            "AffineAlign",
            DOMAIN,
            1,
            doc="An aligned S x S window for each person out of its image's feature map: bilinear, zeros outside.",
            inputs=[
                formal("features", "T"),
                formal("feature_from_roi", "tensor(float)"),
                formal("roi_image", "tensor(int32)"),
            ],
            outputs=[formal("aligned", "T")],
            type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "")],
            attributes=[
                attribute("size", OpSchema.AttrType.INT, "", required=True),
                attribute("plugin_namespace", onnx.helper.make_attribute("plugin_namespace", DOMAIN), ""),
                attribute("plugin_version", onnx.helper.make_attribute("plugin_version", "1"), ""),
            ],
        )
    )


_DOMAIN_OPS = onnxscript.values.Opset(DOMAIN, 1)


@onnxscript.script(_DOMAIN_OPS, default_opset=op)
def AffineAlign(features, feature_from_roi, roi_image, size: int):  # type: ignore[no-untyped-def]  # noqa: N802  an ONNX function body
    # All images stacked along the height with a row of zeros above and below each: one GridSample for the whole batch
    # and no copy of a feature map per person. Rows are clamped to their own image's zero rows; columns outside are
    # zeros by GridSample's own rule.
    side = op.Constant(value_int=size)
    side1 = op.Reshape(side, op.Constant(value_ints=[1]))
    index = op.Cast(op.Range(op.Constant(value_int=0), side, op.Constant(value_int=1)), to=1)
    square = op.Concat(side1, side1, axis=0)
    column = op.Constant(value_ints=[-1, 1])
    u = op.Reshape(op.Expand(op.Unsqueeze(index, op.Constant(value_ints=[0])), square), column)
    v = op.Reshape(op.Expand(op.Unsqueeze(index, op.Constant(value_ints=[1])), square), column)
    one = op.Add(op.Mul(u, op.Constant(value_float=0.0)), op.Constant(value_float=1.0))
    points = op.MatMul(op.Concat(u, v, one, axis=1), op.Transpose(feature_from_roi, perm=[0, 2, 1]))
    points = op.Where(op.IsNaN(points), op.Constant(value_float=-1e6), points)
    points = op.Clip(points, op.Constant(value_float=-1e6), op.Constant(value_float=1e6))

    shape = op.Shape(features)
    height1 = op.Gather(shape, op.Constant(value_ints=[2]))
    width1 = op.Gather(shape, op.Constant(value_ints=[3]))
    channels1 = op.Gather(shape, op.Constant(value_ints=[1]))
    height = op.Cast(height1, to=1)
    width = op.Cast(width1, to=1)
    x = op.Gather(points, op.Constant(value_ints=[0]), axis=2)
    y = op.Gather(points, op.Constant(value_ints=[1]), axis=2)
    y = op.Max(op.Min(y, height), op.Constant(value_float=-1.0))
    first_row = op.Add(
        op.Mul(op.Cast(roi_image, to=1), op.Add(height, op.Constant(value_float=2.0))), op.Constant(value_float=1.0)
    )
    y = op.Add(y, op.Reshape(first_row, op.Constant(value_ints=[-1, 1, 1])))

    # As a tensor, not as `value_ints`: inside a function ONNX Runtime before 1.25 cannot infer Pad's shape from the
    # latter.
    padded = op.Pad(features, op.Constant(value=onnx.helper.make_tensor("pads", 7, [8], [0, 0, 1, 0, 0, 0, 1, 0])))
    tall1 = op.Constant(value_ints=[1])
    stacked = op.Reshape(
        op.Transpose(padded, perm=[1, 0, 2, 3]),
        op.Concat(tall1, channels1, op.Constant(value_ints=[-1]), width1, axis=0),
    )
    stacked_height = op.Cast(op.Gather(op.Shape(stacked), op.Constant(value_ints=[2])), to=1)
    two = op.Constant(value_float=2.0)
    unit = op.Constant(value_float=1.0)
    gx = op.Sub(op.Div(op.Add(op.Mul(x, two), unit), width), unit)
    gy = op.Sub(op.Div(op.Add(op.Mul(y, two), unit), stacked_height), unit)
    grid = op.Reshape(
        op.Concat(gx, gy, axis=2),
        op.Concat(tall1, op.Constant(value_ints=[-1]), side1, op.Constant(value_ints=[2]), axis=0),
    )
    sampled = op.GridSample(op.Cast(stacked, to=1), grid, align_corners=0, mode="bilinear", padding_mode="zeros")
    rows = op.Reshape(sampled, op.Concat(channels1, op.Constant(value_ints=[-1]), side1, side1, axis=0))
    return op.CastLike(op.Transpose(rows, perm=[1, 0, 2, 3]), features)


def _affine_align_node(features, feature_from_roi, roi_image, size: int):  # type: ignore[no-untyped-def]
    return _DOMAIN_OPS.AffineAlign(
        features, feature_from_roi, roi_image, size=size, plugin_namespace=DOMAIN, plugin_version="1"
    )


def _export(
    graph: nn.Module, arguments: tuple[torch.Tensor, ...], inputs: Sequence[str], outputs: Sequence[str], dynamic: Any
) -> onnx.ModelProto:
    _register_schema()
    program = torch.onnx.export(
        graph.eval(),
        arguments,
        dynamo=True,
        opset_version=18,
        verbose=False,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes=dynamic,
        custom_translation_table={torch.ops.pose2seg.affine_align.default: _affine_align_node},
    )
    assert program is not None
    model = program.model_proto
    if any(node.op_type == "AffineAlign" for node in model.graph.node):
        model.functions.append(AffineAlign.to_function_proto())
    for node in model.graph.node:  # file paths and stack traces of the exporting machine do not belong into the file
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:], model.metadata_props[:]
    onnx.checker.check_model(model)
    return model


def export_keypoints(network: LiveNetwork) -> onnx.ModelProto:
    """image [B, H, W, 3] uint8 -> candidates and features; B, H, W dynamic (H, W multiples of 32)."""
    batch = torch.export.Dim("B", min=1, max=64)
    rows, columns = (torch.export.Dim(name, min=2, max=256) for name in ("rows", "columns"))
    example = torch.randint(0, 255, (2, 128, 160, 3), dtype=torch.uint8)
    return _export(
        KeypointGraph(network),
        (example,),
        ["image"],
        [spec.name for spec in KEYPOINT_OUTPUTS[network.settings.keypoints]],
        ({0: batch, 1: INPUT_MULTIPLE * rows, 2: INPUT_MULTIPLE * columns},),
    )


def export_features(network: PaperNetwork) -> onnx.ModelProto:
    """image [B, H, W, 3] uint8 -> features; B, H, W dynamic (H, W multiples of 32)."""
    batch = torch.export.Dim("B", min=1, max=64)
    rows, columns = (torch.export.Dim(name, min=2, max=256) for name in ("rows", "columns"))
    example = torch.randint(0, 255, (2, 128, 160, 3), dtype=torch.uint8)
    dynamic = ({0: batch, 1: INPUT_MULTIPLE * rows, 2: INPUT_MULTIPLE * columns},)
    return _export(FeaturesGraph(network), (example,), ["image"], ["features"], dynamic)


def export_segment(network: Network) -> onnx.ModelProto:
    """features, feature_from_roi, roi_image, roi_keypoints -> probabilities, scores; B, N, h, w dynamic."""
    people, batch, rows, columns = (
        torch.export.Dim(name, min=1, max=size) for name, size in (("N", 256), ("B", 64), ("h", 4096), ("w", 4096))
    )
    arguments = (
        torch.randn(2, network.settings.feature_channels, 32, 40),
        torch.tensor([[0.5, 0, 0], [0, 0.5, 0]]).repeat(3, 1, 1),
        torch.tensor([0, 1, 1], dtype=torch.int32),
        torch.rand(3, 17, 3) * 64,
    )
    return _export(
        SegmentGraph(network),
        arguments,
        ["features", "feature_from_roi", "roi_image", "roi_keypoints"],
        ["probabilities", "scores"],
        ({0: batch, 2: rows, 3: columns}, {0: people}, {0: people}, {0: people}),
    )


def compare(
    network: Network,
    of_picture: Path,
    segment: Path,
    *,
    sizes: Sequence[tuple[int, int]] = ((128, 160), (288, 512)),
    people: Sequence[int] = (1, 2, 7),
) -> float:
    """Largest difference between the exported graphs in ONNX Runtime and the network, over several sizes and numbers of
    people; see `training.export_difference` for that of candidates.

    ``of_picture`` is the graph that takes the picture: keypoints or features, by family. The features of the paper's
    are sums over the levels of a large network, and count relative to the largest of them where that exceeds 1.

    Raises:
        ExportError: the difference exceeds `MAX_DIFFERENCE`.
    """
    rng = np.random.default_rng(0)
    worst = 0.0
    picture_engine, segment_engine = open_engine(of_picture, engine="onnx"), open_engine(segment, engine="onnx")
    network.eval()
    eager_segment = SegmentGraph(network).eval()
    for height, width in sizes:
        coarse = rng.integers(0, 255, (2, height // 16, width // 16, 3), np.uint8)
        image = np.ascontiguousarray(coarse.repeat(16, 1).repeat(16, 2))
        found = picture_engine.run({"image": image})
        with torch.no_grad():
            maps = network(torch.from_numpy(image).permute(0, 3, 1, 2))
        features = maps["features"].numpy()
        unit = 1.0 if network.finds_people else max(1.0, largest(features))
        worst = max(worst, largest(found["features"] - features) / unit)
        if network.finds_people:
            worst = max(worst, grouping_difference(network.settings.keypoints, found, maps))
        for n in people:
            angle, scale = rng.uniform(-1, 1, n), rng.uniform(0.2, 2.0, n)
            matrix = np.zeros((n, 2, 3), np.float32)
            matrix[:, 0, 0] = matrix[:, 1, 1] = scale * np.cos(angle)
            matrix[:, 0, 1], matrix[:, 1, 0] = -scale * np.sin(angle), scale * np.sin(angle)
            matrix[:, :, 2] = rng.uniform(-20, 40, (n, 2))
            poses = np.concatenate((rng.uniform(-5, 70, (n, 17, 2)), rng.integers(0, 3, (n, 17, 1))), -1).astype(
                np.float32
            )
            feeds = {
                "features": np.ascontiguousarray(features),
                "feature_from_roi": matrix,
                "roi_image": rng.integers(0, 2, n).astype(np.int32),
                "roi_keypoints": poses,
            }
            result = segment_engine.run(feeds)
            with torch.no_grad():
                eager = eager_segment(*(torch.from_numpy(value) for value in feeds.values()))
            inside = result["probabilities"] > 0.5  # not the network's: a px at one half may lie on either side
            mean = (result["probabilities"] * inside).sum((1, 2)) / np.maximum(inside.sum((1, 2)), 1)
            worst = max(worst, largest(result["probabilities"] - eager[0].numpy()), largest(result["scores"] - mean))
    if not worst < MAX_DIFFERENCE:
        raise ExportError(
            f"exported graphs differ from the network by {worst:.2g}, expected less than {MAX_DIFFERENCE:g}"
        )
    return worst


def require_servable(settings: ModelSettings) -> None:
    """Serving fits poses to the manifest's templates in one way only; everything else is inside the graphs.

    Raises:
        ExportError: windows are found in another way, or the network is given no poses.
    """
    if settings.family == "mask_rcnn":
        raise ExportError("the family mask_rcnn has no export: evaluate it, python -m training.evaluate --checkpoint")
    served = dataclasses.replace(AlignSettings(), compat=settings.align.compat)
    changed = [
        f"align.{f.name} {getattr(settings.align, f.name)}"
        for f in dataclasses.fields(AlignSettings)
        if getattr(settings.align, f.name) != getattr(served, f.name)
    ]
    if changed:
        raise ExportError(
            f"serving has no {', '.join(changed)}: evaluate the checkpoint itself, python -m training.evaluate "
            "--checkpoint"
        )


def random_network(settings: ModelSettings, seed: int = 0) -> Network:
    """A network that knows nothing, for timing: initial weights, and norm layers that have seen noise.

    Without the latter values would grow from unit to unit, beyond what half precision can hold.
    """
    torch.manual_seed(seed)
    network = new_network_of(settings).train()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # statistics are those of the one batch below
    torch.manual_seed(seed)  # the same noise whatever the network drew: like parts of unlike networks stay alike
    with torch.no_grad():
        features = network(torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8))["features"]
        poses = torch.rand(2, JOINTS, 3) * torch.tensor([settings.roi_size, settings.roi_size, 2.0])
        matrices = torch.tensor([[0.5, 0.1, 5.0], [-0.1, 0.5, 5.0]]).repeat(2, 1, 1)
        network.segment(features, matrices, torch.zeros(2, dtype=torch.int32), poses)
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def export(
    network: Network,
    output: Path,
    *,
    trained_on: Sequence[str],
    measured: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Artifact:
    """Write the artifact folder of a network (in eval mode).

    Raises:
        ExportError: the graphs do not compute what the network computes, or serving has no such windows.
        ArtifactError: a field is out of range.
    """
    require_servable(network.settings)
    keypoints = network.settings.keypoints
    graphs = {
        "keypoints" if isinstance(network, LiveNetwork) else "features": (
            export_keypoints(network) if isinstance(network, LiveNetwork) else export_features(network)
        ),
        "segment": export_segment(network),
    }
    output.mkdir(parents=True, exist_ok=True)
    scratch = output / ".export"
    scratch.mkdir(exist_ok=True)
    try:
        paths = {}
        for name, model in graphs.items():
            paths[name] = scratch / f"{name}.onnx"
            onnx.save(model, str(paths[name]))
        difference = compare(network, *paths.values())
        manifest = {
            "family": network.settings.family,
            "long_side": LONG_SIDE,
            "input_multiple": INPUT_MULTIPLE,
            "feature_from_input": network.feature_from_input,
            "roi_size": network.settings.roi_size,
            "templates": network.settings.templates.prepared(),
            "person_threshold": PERSON_THRESHOLDS[keypoints],
            "joint_threshold": JOINT_THRESHOLD,
            "decode": dataclasses.asdict(grouping_parameters(keypoints, {})) if network.finds_people else {},
            "trained_on": list(trained_on),
            "measured": {**measured, "export_difference": round(difference, 8)},
            "provenance": dict(provenance),
            **({} if keypoints == DEFAULT_GROUPING else {"grouping": keypoints}),
            **({"neighbours": True} if network.settings.skeleton.neighbours else {}),
        }
        return write_artifact(output, manifest, paths)
    finally:
        for path in scratch.iterdir():
            path.unlink()
        scratch.rmdir()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.export_onnx", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="a step-N folder of a run, or a file of converted weights")
    source.add_argument("--random-weights", action="store_true", help="weights that know nothing, for timing only")
    parser.add_argument("--family", choices=("live", "paper"), help="of --random-weights")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another setting of the model, such as model.seg.units=5; may be given again",
    )
    parser.add_argument("--output", type=Path, required=True, help="artifact folder to write")
    parser.add_argument(
        "--evaluation",
        action="append",
        default=[],
        metavar="NAME=F.json",
        help="figures of training.evaluate --json to store in the manifest",
    )
    options = parser.parse_args(arguments)
    if options.random_weights != (options.family is not None):
        parser.error("--family and --random-weights belong together")
    try:
        trained_on: list[str] = []
        provenance: dict[str, Any] = {}
        if options.random_weights:
            changed = with_changes({"model": {"family": options.family}}, options.set)
            network = random_network(model_settings_from_json(changed["model"]))
            provenance = {"weights": RANDOM_WEIGHTS}
        else:
            network = load_weights(options.checkpoint, changes=options.set)
            known = describe(options.checkpoint)
            settings = known["settings"]
            trained_on = [
                str(Path(source["annotations"]).parent)
                for source in settings.get("sources", ())
                if source["photo_weight"] + source["cutout_weight"] > 0
            ]
            if settings["model"].get("family", "live") == "live" and (
                settings.get("init_movenet") or settings.get("init_checkpoint") or settings.get("init_artifact")
            ):
                provenance["initial_weights"] = "MoveNet MultiPose Lightning v1 (Google, Apache-2.0)"
            elif settings.get("init_resnet"):
                provenance["initial_weights"] = f"ResNet-50 of {Path(settings['init_resnet']).name}"
            provenance |= known.get("provenance", {})
            if "step" in known:
                provenance["steps"] = known["step"]
        measured = {}
        for item in options.evaluation:
            name, _, path = item.partition("=")
            measured[name] = json.loads(Path(path).read_text())
        artifact = export(network, options.output, trained_on=trained_on, measured=measured, provenance=provenance)
    except (CheckpointError, ExportError, EngineError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {artifact.folder}: exported and eager differ by {artifact.measured['export_difference']:g} at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
