"""Train a network: `python -m training.train --recipe training/live.json --data DATA --output runs/NAME`.

Resumes by itself from the newest checkpoint in the output folder, exactly: sample i of the run depends on the seed and
on i alone. On several GPUs: `torchrun --nproc-per-node N -m training.train ...`. A loss that is not finite stops the
run and names the batch.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, distributed

from engines.signatures import KEYPOINT_OUTPUTS
from kernels.coordinates import F32
from kernels.groupings import READS, GroupingParameters, group_people, grouping_parameters
from training.artifact_weights import load_artifact_weights, restore_norms
from training.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    load_weights,
    require_same_settings,
    restore,
    save_checkpoint,
)
from training.dataset import DataError, Scene, SceneDataset
from training.families import Network, new_network_of, whole_input_window
from training.graphs import TENSORS_OF
from training.grouping_losses import grouping_losses
from training.losses import distillation_loss, keypoint_losses, keypoint_targets, mask_loss
from training.mask_rcnn import (
    MaskRcnnNetwork,
    MaskRcnnTrainer,
    load_detector_trunk,
    load_mask_rcnn,
    load_movenet_trunk,
)
from training.model import LiveNetwork
from training.movenet_weights import load_movenet
from training.resnet_weights import load_resnet
from training.rois import build_rois
from training.settings import SCHEDULES, TrainSettings, settings_from_json, with_changes

NORM_SCENES = 48  # that tell the statistics of norm layers which an export has folded away
PERSON_SCORE = 0.2  # people found with less are not there for each other, about as in serving
JOINT_THRESHOLD = 0.15  # a decoded joint below it counts as not found


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message names step and samples."""


class SampleOrder(torch.utils.data.Sampler[int]):
    """Sample numbers of one process from a given step on: step s of rank r takes a block of its own."""

    def __init__(self, settings: TrainSettings, first_step: int, rank: int, world: int) -> None:
        self.settings, self.first_step, self.rank, self.world = settings, first_step, rank, world

    def __iter__(self) -> Iterator[int]:
        size = self.settings.batch_size
        for step in range(self.first_step, self.settings.steps):
            start = (step * self.world + self.rank) * size
            yield from range(start, start + size)

    def __len__(self) -> int:
        return (self.settings.steps - self.first_step) * self.settings.batch_size


class _TellingDataset(torch.utils.data.Dataset[Scene | DataError]):
    """Hands on what is wrong with a sample in place of the sample: an error in a worker would lose its type."""

    def __init__(self, dataset: SceneDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Scene | DataError:
        try:
            return self.dataset[index]
        except DataError as error:
            return DataError(f"sample {index} of seed {self.dataset.settings.seed}: {error}")


def sound_scenes(samples: list[Scene | DataError], step: int) -> list[Scene]:
    """The samples of a step.

    Raises:
        DataError: one of them could not be made; names step, sample and file.
    """
    for sample in samples:
        if isinstance(sample, DataError):
            raise DataError(
                f"step {step}, {sample}. The run goes on from its last checkpoint when it is mended and started again"
            )
    return [sample for sample in samples if isinstance(sample, Scene)]


def learning_rate_factor(settings: TrainSettings, step: int) -> float:
    """Multiple of the base rate at a step: warm-up, then the schedule by share of the run."""
    share = step / settings.steps
    if settings.schedule == "cosine":
        warm = min(1.0, (step + 1) / max(settings.warmup_steps, 1))
        return warm * (0.5 + 0.5 * math.cos(math.pi * share))
    warm = 1 / 3 + 2 / 3 * min(1.0, step / max(settings.warmup_steps, 1))  # spec section 7: lr/3 -> lr
    return warm * 0.1 ** sum(share >= drop for drop in SCHEDULES[settings.schedule])


def build_optimiser(network: Network, settings: TrainSettings) -> torch.optim.Optimizer:
    """One parameter group per part and decay; frozen parts (scale 0) lose their gradients.

    Norms, biases and parts with relative rates do not decay.
    """
    groups: list[dict[str, Any]] = []
    held = network.held_parameters() if isinstance(network, MaskRcnnNetwork) else set()
    for part, module in network.named_children():
        scale = settings.rate_scale(part)
        for parameter in module.parameters():
            parameter.requires_grad_(scale > 0 and id(parameter) not in held)
        if scale > 0:
            learning = [p for p in module.parameters() if p.requires_grad]
            decayed = [p for p in learning if p.ndim > 1 and p.shape[1] > 1]
            plain = [p for p in learning if not (p.ndim > 1 and p.shape[1] > 1)]
            rate = settings.learning_rate * scale
            if part in settings.relative_rate_parts:
                for parameter in module.parameters():
                    own = rate * max(float(parameter.detach().square().mean().sqrt()), 1e-6)
                    groups.append({"params": [parameter], "weight_decay": 0.0, "lr": own, "base": own})
                continue
            groups.append({"params": decayed, "weight_decay": settings.weight_decay, "lr": rate, "base": rate})
            groups.append({"params": plain, "weight_decay": 0.0, "lr": rate, "base": rate})
    if not groups:
        raise ValueError("every part of the network is frozen: set an lr_scale above 0")
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9)
    kind = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, betas=(0.9, 0.999), eps=1e-8)


def found_poses(
    maps: dict[str, Tensor], parameters: GroupingParameters, keypoints: str = "centre", *, least_score: float = 0.0
) -> list[F32]:
    """Poses the network itself finds in each picture of the batch, (M, 17, 3) with v in {0, 2}; none in broken maps.

    People whose score is below ``least_score`` are left out.
    """
    pictures = len(maps["heatmaps"])
    finite = (bool(torch.isfinite(read).all()) for name, read in maps.items() if name != "features")
    if not all(finite):  # the loss will say so, with the samples
        return [np.zeros((0, 17, 3), np.float32)] * pictures
    with torch.no_grad():
        names = (spec.name for spec in KEYPOINT_OUTPUTS[keypoints])
        tensors = {n: t.float().cpu().numpy() for n, t in zip(names, TENSORS_OF[keypoints](maps), strict=False)}
    poses = []
    for image in range(pictures):
        found, scores = group_people({name: tensors[name][image] for name in READS[type(parameters)]}, parameters)
        found = found[scores >= least_score]
        pose = found.copy()
        pose[..., 2] = np.where(found[..., 2] > JOINT_THRESHOLD, 2, 0)
        pose[pose[..., 2] == 0] = 0
        poses.append(pose[(pose[..., 2] > 0).sum(1) >= 3])
    return poses


class Trainer(torch.nn.Module):
    """One forward pass with all losses; a module so that DistributedDataParallel sees a single call."""

    def __init__(self, network: Network, settings: TrainSettings) -> None:
        super().__init__()
        self.network, self.settings = network, settings
        self.templates = settings.model.templates.prepared()
        self.learns_keypoints = settings.keypoint_loss_weight > 0 and any(
            settings.lr_scale.get(part, 0) > 0 for part in ("backbone", "top_down", "keypoint_heads", "grouping_heads")
        )
        if settings.mask_loss_weight == 0 and not self.learns_keypoints:
            raise ValueError(
                "nothing is taught: mask_loss_weight and keypoint_loss_weight are 0, or their parts frozen"
            )
        self.trunk_frozen = network.finds_people and all(
            settings.lr_scale[part] == 0 for part in ("backbone", "top_down")
        )
        self.decoding = grouping_parameters(settings.model.keypoints, {})
        self.reference: list[LiveNetwork] = []  # in a list: its weights are no part of this module
        if settings.distill_weight > 0 and self.learns_keypoints:
            if settings.init_movenet is None:
                raise ValueError("distill_weight needs init_movenet: the network to stay close to")
            reference = load_movenet(LiveNetwork(settings.model), settings.init_movenet).eval().requires_grad_(False)
            self.reference.append(reference.to(next(network.parameters()).device, memory_format=torch.channels_last))

    def maps(self, image: Tensor) -> dict[str, Tensor]:
        if not self.trunk_frozen:
            return self.network(image)  # type: ignore[no-any-return]
        network = self.network
        with torch.no_grad():
            levels, trunk = network.trunk(image)
        with torch.set_grad_enabled(self.learns_keypoints and torch.is_grad_enabled()):
            maps = network.heads(levels, trunk)
        if self.settings.mask_loss_weight == 0:
            return maps
        return {**maps, "features": network.mask_laterals(levels, trunk)}

    def forward(self, image: Tensor, scenes: list[Scene], rng: np.random.Generator) -> dict[str, Tensor]:
        settings, network = self.settings, self.network
        maps = self.maps(image)
        losses: dict[str, Tensor] = {}
        if self.learns_keypoints:
            if settings.model.keypoints == "centre":
                targets = keypoint_targets(scenes).to(image.device)
                taught = keypoint_losses(maps, targets)
            else:
                taught = grouping_losses(settings.model.keypoints, maps, scenes, kind=settings.heatmap_loss)
            for name, loss in taught.items():
                losses[name] = settings.keypoint_loss_weight * loss
            for reference in self.reference:
                with torch.no_grad():
                    theirs = reference.keypoint_maps(image)
                incomplete = torch.tensor(
                    [not scene.complete for scene in scenes], device=image.device, dtype=torch.float32
                )
                losses["distilled"] = settings.distill_weight * distillation_loss(maps, theirs, targets, incomplete)
        if settings.mask_loss_weight == 0:
            return losses
        neighbours = settings.model.skeleton.neighbours
        found = None
        if settings.predicted_pose_share > 0:
            least = PERSON_SCORE if neighbours else 0.0
            found = found_poses(maps, self.decoding, settings.model.keypoints, least_score=least)
        rois = build_rois(
            rng,
            scenes,
            found,
            self.templates,
            size=settings.model.roi_size,
            max_rois=settings.max_rois,
            predicted_share=settings.predicted_pose_share,
            augmented_share=settings.roi_augmentation_share,
            jitter=settings.pose_jitter,
            align=settings.model.align,
            fallback=whole_input_window(network, *image.shape[-2:]),
            feature_from_input=network.feature_from_input,
            neighbours=neighbours,
        )
        if rois is not None:
            rois = rois.to(image.device)
            logits = network.segment(
                maps["features"], rois.feature_from_roi, rois.roi_image, rois.roi_keypoints, rois.present
            )
            losses["mask"] = settings.mask_loss_weight * mask_loss(
                logits.float(),
                rois.targets,
                dice_weight=settings.dice_weight,
                strangers=rois.strangers,
                stranger_weight=settings.stranger_weight,
            )
        else:
            losses["mask"] = 0.0 * maps["features"].sum()
            # Replicas exchange the gradient of every parameter, or all of them wait: zero where nothing was learned.
            for parameter in network.seg_module.parameters():
                if parameter.requires_grad:
                    losses["mask"] = losses["mask"] + 0.0 * parameter.sum()
        return losses


@torch.no_grad()
def update_average(average: Network, network: Network, decay: float, step: int) -> None:
    """Exponential moving average of weights and batch-norm statistics, with a short memory at the start."""
    move_towards(average, network, 1 - min(decay, (1 + step) / (10 + step)))


@torch.no_grad()
def move_towards(network: Network, goal: Network, share: float) -> None:
    """Move every weight and statistic of a network by ``share`` of the way to those of another of its kind."""
    source = goal.state_dict()
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.lerp_(source[name], share)
        else:
            value.copy_(source[name])


def set_mode(network: Network, settings: TrainSettings) -> None:
    """Training mode for what learns; frozen parts stay as they serve."""
    network.train()
    for part, module in network.named_children():
        if settings.rate_scale(part) == 0:
            module.eval()


def new_network(settings: TrainSettings) -> Network:
    """The network a run starts with.

    Raises:
        ValueError: the initial weights are another network's. CheckpointError: they cannot be read.
    """
    torch.manual_seed(settings.seed)
    network = new_network_of(settings.model)
    if settings.init_checkpoint is not None:
        start = load_weights(settings.init_checkpoint)
        try:
            network.load_state_dict(start.state_dict())
        except RuntimeError as error:
            raise CheckpointError(f"{settings.init_checkpoint} holds another network: {error}") from error
    elif settings.init_artifact is not None:
        load_artifact_weights(network, settings.init_artifact)
    elif isinstance(network, MaskRcnnNetwork):
        if settings.model.detector.backbone == "movenet":
            if settings.init_movenet is None:
                raise ValueError("MoveNet's trunk never learns here and needs weights: give init_movenet")
            load_movenet_trunk(network, settings.init_movenet)
        elif settings.init_mask_rcnn is not None:
            load_mask_rcnn(network, settings.init_mask_rcnn)
        elif settings.init_resnet is not None:
            load_detector_trunk(network, settings.init_resnet)
        elif settings.model.detector.norm == "frozen":
            raise ValueError(
                "norm layers that never learn need weights: give init_mask_rcnn or init_resnet, or set "
                "model.detector.norm to batch and model.detector.trained_stages to 5"
            )
    elif settings.init_movenet is not None:
        load_movenet(network, settings.init_movenet)
    elif settings.init_resnet is not None:
        load_resnet(network.backbone.trunk, settings.init_resnet)
    return network


def start_of(settings: TrainSettings) -> Network:
    """The network before the first step of a run, with the statistics that its norm layers begin with.

    Raises:
        DataError, CheckpointError: the data, or what the run starts from, cannot be read. ValueError: as `new_network`.
    """
    network = new_network(settings)
    if settings.init_artifact is not None:
        dataset = SceneDataset(settings)
        restore_norms(Trainer(network, settings), network, [dataset[index] for index in range(NORM_SCENES)])
    return network


def train(settings: TrainSettings, *, stop_after: int | None = None) -> Path:
    """Run or resume training to ``settings.steps``; returns the last checkpoint.

    Args:
        settings: the run. A folder that already holds checkpoints is resumed, and must hold the same settings but for
            length, paths and intervals (`training.settings.MAY_CHANGE`).
        stop_after: end early after this step, as an interruption would.

    Raises:
        NonFiniteLoss: the loss is not finite. DataError, CheckpointError: inputs cannot be read, or the folder holds
            another run. ValueError: settings contradict each other.
    """
    newest = latest_checkpoint(settings.output)
    if newest is not None:
        require_same_settings(newest, settings)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    own_group = world > 1 and not distributed.is_initialized()
    if own_group:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    network = new_network(settings).to(device, memory_format=torch.channels_last)
    average = copy.deepcopy(network).eval().requires_grad_(False)
    optimiser = build_optimiser(network, settings)
    history: list[dict[str, Any]] = []
    first_step = 0
    scaler = torch.amp.GradScaler(enabled=settings.amp and device.type == "cuda")
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    if newest is not None:
        state = restore(newest, network=network, ema=average, optimiser=optimiser)
        first_step, history = state["step"], state["history"]
        if scaler.is_enabled() and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
    trainer = MaskRcnnTrainer if isinstance(network, MaskRcnnNetwork) else Trainer
    model: torch.nn.Module = trainer(network, settings)
    if world > 1:
        model = torch.nn.parallel.DistributedDataParallel(
            model, device_ids=[device.index] if device.type == "cuda" else None
        )

    cv2.setNumThreads(1)  # before the data is touched: OpenCV's thread pool does not survive the fork of the workers
    dataset = SceneDataset(settings)
    loader = torch.utils.data.DataLoader(
        _TellingDataset(dataset),
        batch_size=settings.batch_size,
        sampler=SampleOrder(settings, first_step, rank, world),
        num_workers=settings.workers,
        collate_fn=list,
        prefetch_factor=4 if settings.workers else None,
        worker_init_fn=_single_thread,
    )
    quiet = rank > 0
    progress = Progress(
        TextColumn("train"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=quiet,
    )
    if newest is None and settings.init_artifact is not None:
        restore_norms(model, network, [dataset[index] for index in range(NORM_SCENES)])
        average.load_state_dict(network.state_dict())
    set_mode(network, settings)
    sums: dict[str, float] = {}
    started, pictures, summed = time.monotonic(), 0, 0
    with progress:
        task = progress.add_task("train", total=settings.steps, completed=first_step, loss="")
        for step, batch in enumerate(loader, start=first_step):
            scenes = sound_scenes(batch, step)
            factor = learning_rate_factor(settings, step)
            for group in optimiser.param_groups:
                group["lr"] = group["base"] * factor
            image = torch.from_numpy(np.stack([s.image for s in scenes])).to(device).permute(0, 3, 1, 2)
            rng = np.random.default_rng((settings.seed, 1, step, rank))
            with torch.autocast(device.type, half, enabled=settings.amp if device.type == "cuda" else settings.amp_cpu):
                losses = model(image, scenes, rng)
            total = torch.stack(list(losses.values())).sum()
            values = ", ".join(f"{name} {float(value.detach()):.3g}" for name, value in losses.items())
            first = (step * world + rank) * settings.batch_size
            samples = f"({values}); samples {first} to {first + settings.batch_size - 1} of seed {settings.seed}"
            if not torch.isfinite(total):
                raise NonFiniteLoss(f"step {step}: loss is not finite {samples}")
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(total).backward()
            scaler.unscale_(optimiser)
            learning = [p for p in network.parameters() if p.requires_grad]
            norm = torch.nn.utils.clip_grad_norm_(learning, settings.gradient_clip)
            if not scaler.is_enabled() and not torch.isfinite(norm):  # before it reaches a checkpoint
                raise NonFiniteLoss(f"step {step}: gradient is not finite {samples}")
            scaler.step(optimiser)
            scaler.update()
            update_average(average, network, settings.ema, step)
            done = step + 1
            pictures += settings.batch_size * world
            summed += 1
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            if done % settings.log_every == 0 or done == settings.steps:
                entry = {"step": done, **{name: round(value / summed, 5) for name, value in sums.items()}}
                entry["pictures_per_s"] = round(pictures / (time.monotonic() - started), 2)
                history.append(entry)
                sums, summed = {}, 0
                text = " ".join(f"{name}={value}" for name, value in entry.items() if name != "step")
                progress.update(task, completed=done, loss=text)
                if not quiet and not progress.console.is_terminal:
                    print(f"step={done}/{settings.steps} {text}", flush=True)
            if rank == 0 and (done % settings.validate_every == 0 or done == settings.steps):
                from training.evaluate import validate

                entry = {"step": done, "validation": validate(average, settings)}
                history.append(entry)
                print(json.dumps(entry), flush=True)
            stopping = stop_after is not None and done >= stop_after
            if rank == 0 and (done % settings.checkpoint_every == 0 or done == settings.steps or stopping):
                save_checkpoint(
                    settings.output,
                    step=done,
                    network=network,
                    ema=average,
                    optimiser=optimiser,
                    state={"settings": settings.to_json(), "history": history, "scaler": scaler.state_dict()},
                )
                plot_history(history, settings.output / "history.png")
            if stopping:
                break
    if world > 1:
        distributed.barrier()  # until the first process has written the last checkpoint
    if own_group:
        distributed.destroy_process_group()
    checkpoint = latest_checkpoint(settings.output)
    if checkpoint is None:
        raise CheckpointError(f"{settings.output} holds no checkpoint and no step was run")
    return checkpoint


def _single_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def plot_history(history: list[dict[str, Any]], path: Path) -> None:
    """Losses and validation figures over the steps, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    logged = [entry for entry in history if "validation" not in entry]
    for name in sorted({key for entry in logged for key in entry} - {"step", "pictures_per_s"}):
        points = [(entry["step"], entry[name]) for entry in logged if name in entry]
        left.plot(*zip(*points, strict=True), label=name, linewidth=1)
    validated = [entry for entry in history if "validation" in entry]
    for name in sorted({key for entry in validated for key in entry["validation"]}):
        points = [
            (entry["step"], entry["validation"][name])
            for entry in validated
            if entry["validation"].get(name) is not None
        ]
        right.plot(*zip(*points, strict=True), marker="o", label=name)
    for axis, title in ((left, "training loss"), (right, "held-out people")):
        axis.set(title=title, xlabel="step")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse_arguments(arguments: list[str] | None = None) -> TrainSettings:
    parser = argparse.ArgumentParser(
        prog="python -m training.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, required=True, help="JSON file of settings, such as training/live.json")
    parser.add_argument("--data", type=Path, required=True, help="folder the recipe's sources are relative to")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for checkpoints and plots; resumed if it holds some"
    )
    parser.add_argument("--init-movenet", type=Path, help="ONNX file of MoveNet MultiPose Lightning to start from")
    parser.add_argument(
        "--init-resnet",
        type=Path,
        help="ImageNet weights of ResNet-50: of the paper's backbone or Mask R-CNN's",
    )
    parser.add_argument("--init-mask-rcnn", type=Path, help="weights of torchvision's Mask R-CNN, 2 or 91 classes")
    parser.add_argument("--init-checkpoint", type=Path, help="checkpoint folder to start from")
    parser.add_argument(
        "--init-artifact", type=Path, help="model folder to start from, such as the installed engines/artifacts/live"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change any setting of the recipe, such as model.align.mode=roi; may be given again",
    )
    for name, kind in (("steps", int), ("batch-size", int), ("workers", int), ("seed", int), ("learning-rate", float)):
        parser.add_argument(f"--{name}", type=kind, help="overrides the recipe")
    options = parser.parse_args(arguments)
    recipe = with_changes(json.loads(options.recipe.read_text()), options.set)
    overrides = {key: value for key, value in vars(options).items() if key not in {"recipe", "set"}}
    return settings_from_json(recipe, **overrides)


def main(arguments: list[str] | None = None) -> int:
    try:
        settings = parse_arguments(arguments)
        path = train(settings)
    except (DataError, CheckpointError, NonFiniteLoss, ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"finished: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
