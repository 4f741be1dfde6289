"""The authors' published weights -> ours: `python -m training.convert_authors_checkpoint IN.pkl OUT.safetensors`.

The file is read as tensors only: nothing in it is run. Every tensor must have its place and its shape, else nothing is
written and the differences are listed. The result goes wherever a checkpoint goes (`training.evaluate --checkpoint`,
`training.export_onnx --checkpoint`, `training.train --init-checkpoint`) and says itself which network it is: the
authors' ResNet has the stride of a stage in its first 1x1 convolution, and their weights grew up with the sampling of
PyTorch 1.0, so it is written with ``backbone.stride_in`` 1x1 and ``align.compat`` ref_pt10.

Their names: ``backbone.`` with a ResNet whose shortcut is conv4 and bn4, a pyramid counted from 1 (``fpn_c1p1`` is our
lateral c2, ``fpn_p1`` our output p2; ``fpn_p2`` to ``fpn_p4`` are computed there, never used, and dropped here), and
``segnet.`` (in older files ``pose2seg.seg_branch.``).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

from training.checkpoint import save_weights
from training.families import new_network_of
from training.model_settings import ModelSettings, model_settings_from_json
from training.paper_model import Backbone
from training.resnet_weights import read_tensors, require_same_tensors, without_counters
from training.settings import with_changes

AUTHORS_MODEL = {"family": "paper", "backbone": {"stride_in": "1x1"}, "align": {"compat": "ref_pt10"}}
OLD_SEG_PREFIX = "pose2seg.seg_branch."
RENAMED = (  # our name -> theirs, applied in turn
    (r"^backbone\.trunk\.(.*)\.downsample\.0\.", r"backbone.\1.conv4."),
    (r"^backbone\.trunk\.(.*)\.downsample\.1\.", r"backbone.\1.bn4."),
    (r"^backbone\.trunk\.", r"backbone."),
    (r"^backbone\.lateral\.c(\d)\.", lambda m: f"backbone.fpn_c{int(m[1]) - 1}p{int(m[1]) - 1}."),
    (r"^backbone\.output\.p(\d)\.", lambda m: f"backbone.fpn_p{int(m[1]) - 1}."),
    (r"^seg_module\.stem\.0\.", r"segnet.conv1."),
    (r"^seg_module\.stem\.1\.", r"segnet.bn1."),
    (r"^seg_module\.units\.", r"segnet.layer1."),
    (r"^seg_module\.decoder\.", r"segnet.decoder1.0."),
    (r"^seg_module\.out\.", r"segnet.pred_small."),
)


def authors_name(ours: str) -> str:
    """What the authors call one of our tensors."""
    for pattern, replacement in RENAMED:
        name, count = re.subn(pattern, replacement, ours)
        if count:
            return name
    raise ValueError(f"{ours} has no name in the authors' network")


def expected_tensors(settings: ModelSettings) -> dict[str, Tensor]:
    """Our name -> a tensor of the right shape, of everything that the authors' file holds, unused levels included."""
    with torch.device("meta"):
        tensors = new_network_of(settings).state_dict()
        backbone = Backbone(settings.backbone.width, settings.feature_channels, every_level=True)
    tensors.update({f"backbone.{name}": value for name, value in backbone.state_dict().items()})
    return without_counters(tensors)


def convert(path: Path, settings: ModelSettings) -> dict[str, Tensor]:
    """State of our network out of the authors' file.

    Raises:
        ValueError: the file cannot be read as tensors, or is another network: what is missing, unexpected, or of
            another shape is listed by the authors' names.
    """
    theirs = without_counters(read_tensors(path))
    if theirs and all(name.startswith("module.") for name in theirs):  # written by a parallel run
        theirs = {name.removeprefix("module."): value for name, value in theirs.items()}
    theirs = {
        "segnet." + name.removeprefix(OLD_SEG_PREFIX) if name.startswith(OLD_SEG_PREFIX) else name: value
        for name, value in theirs.items()
    }
    expected = {authors_name(name): value for name, value in expected_tensors(settings).items()}
    require_same_tensors(path, expected, theirs)
    network = new_network_of(settings)
    state = network.state_dict()
    for name in without_counters(state):
        state[name] = theirs[authors_name(name)].to(torch.float32).contiguous()
    network.load_state_dict(state)
    return state


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.convert_authors_checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", type=Path, help="the authors' file, .pkl or .pth")
    parser.add_argument("output", type=Path, help=".safetensors file to write")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for weights of an ablation, such as model.skeleton.enabled=false",
    )
    options = parser.parse_args(arguments)
    try:
        if options.output.suffix != ".safetensors":
            raise ValueError(f"{options.output}: expected a name that ends in .safetensors")
        changed = with_changes({"model": AUTHORS_MODEL}, options.set)
        settings = model_settings_from_json(changed["model"])
        state = convert(options.input, settings)
        save_weights(options.output, state, settings, provenance={"converted_from": options.input.name})
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.output}: {json.dumps(changed['model'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
