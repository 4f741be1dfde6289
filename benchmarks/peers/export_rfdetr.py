"""RF-DETR-Seg nano with random weights to ONNX: `python -m benchmarks.peers.export_rfdetr FOLDER`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from benchmarks.peers.torchvision_without_cuda import import_torchvision

    import_torchvision()
    import torch
    from rfdetr import RFDETRSegNano

    torch.manual_seed(0)
    folder = Path(sys.argv[1])
    scratch = folder / "rfdetr"
    model = RFDETRSegNano(pretrain_weights=None)
    model.export(output_dir=str(scratch))
    (written,) = scratch.glob("*.onnx")
    shutil.move(str(written), folder / f"rfdetr-seg-nano-{model.model.resolution}.onnx")


if __name__ == "__main__":
    main()
