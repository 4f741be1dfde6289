"""YOLO architectures with random weights to ONNX (YOLO26 to OpenVINO too), 384 x 640.

    python -m benchmarks.peers.export_yolo FOLDER

The pose networks get the one class that the published ones have.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

NAMES = ("yolo26n-seg", "yolo26n-pose", "yolo11n-seg", "yolo11n-pose")


def main() -> None:
    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")
    import torch
    from ultralytics import YOLO
    from ultralytics.nn.tasks import PoseModel

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    torch.manual_seed(0)
    for name in NAMES:
        model = YOLO(f"{name}.yaml")
        if name.endswith("pose"):
            one_class = PoseModel(model.model.yaml, nc=1, verbose=False)
            one_class.args, one_class.task = model.model.args, model.model.task
            model.model = one_class
        chosen_in_graph = (
            {"nms": False} if name.startswith("yolo26") else {}
        )  # keeps the head that needs no suppression
        model.export(format="onnx", imgsz=(384, 640), opset=17, simplify=True, verbose=False, **chosen_in_graph)
        if name.startswith("yolo26"):  # OpenVINO does not read the ONNX file of this head, its own exporter's it does
            model.export(format="openvino", imgsz=(384, 640), verbose=False, **chosen_in_graph)


if __name__ == "__main__":
    main()
