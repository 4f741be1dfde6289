"""Between where a run started and where it ended: `python -m training.blend --checkpoint runs/NAME/step-N --output
DIR`.

A run that goes on from a trained network (`init_artifact`, `init_checkpoint`) learns what its recipe teaches and
forgets some of what it knew. The weights in between keep most of both (Wortsman et al. 2022, "Robust fine-tuning of
zero-shot models", section 3).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from training.checkpoint import CheckpointError, describe, load_weights, save_checkpoint
from training.dataset import DataError
from training.settings import settings_from_json
from training.train import build_optimiser, move_towards, start_of


def blend(checkpoint: Path, output: Path, *, share: float = 0.5, data: Path | None = None) -> Path:
    """Write a checkpoint whose weights lie between the first and the last ones of a run.

    Args:
        checkpoint: step folder of the run; its moving average is taken.
        output: folder of the new checkpoint, which is for evaluation and export: its optimiser has learned nothing.
        share: of the last weights, 0..1; the first ones have the rest.
        data: where the run's data lie now; as the run says by default.

    Raises:
        CheckpointError, DataError: the run or what it started from cannot be read. ValueError: the share.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, got {share}")
    known = describe(checkpoint)
    settings = settings_from_json(known["settings"], **({} if data is None else {"data": data}))
    end = load_weights(checkpoint)
    network = start_of(settings)
    move_towards(network, end, share)
    state = {"settings": known["settings"], "history": known.get("history", []), "share_of_the_run": share}
    return save_checkpoint(
        output,
        step=known["step"],
        network=network,
        ema=network,
        optimiser=build_optimiser(network, settings),
        state=state,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.blend", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="step folder of a run")
    parser.add_argument("--output", type=Path, required=True, help="folder of the new checkpoint")
    parser.add_argument("--share", type=float, default=0.5, help="of the last weights, 0..1")
    parser.add_argument("--data", type=Path, help="where the run's data lie now")
    options = parser.parse_args(arguments)
    try:
        path = blend(options.checkpoint, options.output, share=options.share, data=options.data)
    except (CheckpointError, DataError, ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
