"""The training loop: it learns, resumes exactly, keeps several processes one network, and stops when numbers break."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from kernels.pose_decoding import DecodeParameters
from kernels.pose_fit import PAPER_TEMPLATES, prepare_templates
from tests.training.drawn_people import TINY_MODEL, drawn_mask, drawn_pose, tiny_settings
from tests.training.published_weights import published
from training.checkpoint import CheckpointError, latest_checkpoint, read_state
from training.dataset import Scene
from training.losses import mask_loss
from training.model import LiveNetwork, SegModule
from training.rois import build_rois
from training.settings import TrainSettings
from training.train import (
    NonFiniteLoss,
    SampleOrder,
    Trainer,
    build_optimiser,
    found_poses,
    learning_rate_factor,
    main,
    new_network,
    set_mode,
    train,
    update_average,
)

FROZEN = dict.fromkeys(LiveNetwork(TINY_MODEL)._modules, 0.0)
ROOT = Path(__file__).resolve().parents[2]


def settings_with(**changes) -> TrainSettings:
    return tiny_settings(Path("data"), Path("out"), **changes)


# The learning rate


def test_cosine_warms_up_and_falls_to_nothing() -> None:
    settings = settings_with(schedule="cosine", steps=1000, warmup_steps=100)
    factors = [learning_rate_factor(settings, step) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01) and factors[49] == pytest.approx(0.5, abs=0.01)
    assert max(factors) == pytest.approx(0.976, abs=0.003)  # the cosine has begun when the warm-up ends
    assert factors[500] == pytest.approx(0.5) and factors[-1] < 1e-5
    assert all(a > b for a, b in pairwise(factors[100:]))


@pytest.mark.parametrize(
    ("schedule", "levels"),
    [
        ("paper", {0.5: 1.0, 0.82: 1.0, 0.825: 0.1, 0.999: 0.1}),  # after 33 of 40 epochs
        ("release", {0.59: 1.0, 0.6: 0.1, 0.79: 0.1, 0.8: 0.01, 0.999: 0.01}),  # after 15 and 20 of 25 epochs
    ],
)
def test_stepped_schedules(schedule: str, levels: dict[float, float]) -> None:
    settings = settings_with(schedule=schedule, steps=10_000, warmup_steps=1000)
    assert learning_rate_factor(settings, 0) == pytest.approx(1 / 3)
    assert learning_rate_factor(settings, 500) == pytest.approx(2 / 3)
    for share, level in levels.items():
        assert learning_rate_factor(settings, round(share * 10_000)) == pytest.approx(level)


# What learns


def test_frozen_parts_have_no_gradient_and_no_group() -> None:
    settings = settings_with(
        lr_scale={
            **dict.fromkeys(("backbone", "top_down", "keypoint_heads"), 0.0),
            "mask_laterals": 0.5,
            "seg_module": 1.0,
        }
    )
    network = LiveNetwork(TINY_MODEL)
    optimiser = build_optimiser(network, settings)
    learning = {p for group in optimiser.param_groups for p in group["params"]}
    for part, module in network.named_children():
        for parameter in module.parameters():
            assert parameter.requires_grad == (part in {"mask_laterals", "seg_module"}) == (parameter in learning)
    assert {group["base"] for group in optimiser.param_groups} == {1e-3, 5e-4}
    for group in optimiser.param_groups:  # norms and biases do not decay
        assert all(
            (p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"] if p.ndim == 1 or p.shape[1] > 1
        )
    set_mode(network, settings)
    assert network.seg_module.training and not network.backbone.training


def test_relative_rates_are_shares_of_each_tensor() -> None:
    network = LiveNetwork(TINY_MODEL)
    optimiser = build_optimiser(network, settings_with(relative_rate_parts=("backbone",)))
    rates = {id(p): group["base"] for group in optimiser.param_groups for p in group["params"]}
    stem = network.backbone.stem.weight
    assert rates[id(stem)] == pytest.approx(1e-3 * float(stem.detach().square().mean().sqrt()), rel=1e-5)
    assert rates[id(next(network.seg_module.parameters()))] == 1e-3


def test_keypoint_heads_without_a_loss_are_frozen() -> None:
    settings = settings_with(keypoint_loss_weight=0.0, distill_weight=1.0, init_movenet=None)
    network = LiveNetwork(TINY_MODEL)
    build_optimiser(network, settings)
    set_mode(network, settings)
    for part, module in network.named_children():
        assert all(p.requires_grad == (part != "keypoint_heads") for p in module.parameters()), part
        assert module.training == (part != "keypoint_heads"), part
    trainer = Trainer(network, settings)
    assert not trainer.learns_keypoints and not trainer.reference
    only_heads = settings_with(keypoint_loss_weight=0.0, lr_scale={**FROZEN, "keypoint_heads": 1.0})
    with pytest.raises(ValueError, match="every part of the network is frozen"):
        build_optimiser(LiveNetwork(TINY_MODEL), only_heads)


def test_all_frozen_is_an_error_and_so_is_an_unknown_start(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ValueError, match="every part of the network is frozen"):
        build_optimiser(LiveNetwork(TINY_MODEL), settings_with(lr_scale=dict.fromkeys(settings_with().lr_scale, 0.0)))
    with pytest.raises(ValueError, match="distill_weight needs init_movenet"):
        Trainer(LiveNetwork(TINY_MODEL), settings_with(distill_weight=1.0))


def test_the_average_has_a_short_memory_at_the_start() -> None:
    average, network = LiveNetwork(TINY_MODEL), LiveNetwork(TINY_MODEL)
    before, now = (net.seg_module.detail.weight.detach().clone() for net in (average, network))
    network.seg_module.stem[1].num_batches_tracked += 3
    update_average(average, network, 0.99, 0)
    torch.testing.assert_close(average.seg_module.detail.weight, 0.1 * before + 0.9 * now)
    assert int(average.seg_module.stem[1].num_batches_tracked) == 3
    before = average.seg_module.detail.weight.detach().clone()
    update_average(average, network, 0.99, 10_000)
    torch.testing.assert_close(average.seg_module.detail.weight, 0.99 * before + 0.01 * now)


def test_every_process_and_step_has_samples_of_its_own() -> None:
    settings = settings_with(steps=5, batch_size=3)
    orders = [list(SampleOrder(settings, 0, rank, 2)) for rank in range(2)]
    assert sorted(orders[0] + orders[1]) == list(range(30))
    assert orders[1][:3] == [3, 4, 5] and orders[0][3:6] == [6, 7, 8]
    resumed = SampleOrder(settings, 2, 1, 2)
    assert list(resumed) == orders[1][6:] and len(resumed) == 9


# It learns


def people_scene(*lefts: int) -> Scene:
    poses = [drawn_pose(left, 2, 90) for left in lefts]
    labels = np.zeros((96, 128), np.uint8)
    image = np.full((96, 128, 3), 70, np.uint8)
    for number, pose in enumerate(poses, 1):
        labels[drawn_mask(pose) > 0] = number
    image[labels > 0] = (200, 160, 130)
    return Scene(
        image=image,
        labels=labels,
        keypoints=np.stack(poses) if poses else np.zeros((0, 17, 3), np.float32),
        has_mask=np.ones(len(poses), np.uint8),
        complete=True,
        max_iou=np.zeros(len(poses), np.float32),
    )


def test_the_mask_head_over_fits_one_batch() -> None:
    torch.manual_seed(0)
    rois = build_rois(
        np.random.default_rng(0),
        [people_scene(10), people_scene(30, 60)],
        None,
        prepare_templates(PAPER_TEMPLATES),
        size=32,
        max_rois=9,
        predicted_share=0,
        augmented=False,
    )
    assert rois is not None
    module = SegModule(4 + 55, 16, (1, 2))
    from kernels.torch_skeleton import skeleton_features

    inputs = torch.cat((torch.randn(3, 4, 32, 32), skeleton_features(rois.roi_keypoints, 32)), dim=1)
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = mask_loss(module(inputs), rois.targets)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.6 and losses[-1] < 0.1 * losses[0]
    predicted = module(inputs).detach() > 0
    overlap = (predicted & (rois.targets > 0)).sum() / (predicted | (rois.targets > 0)).sum()
    assert float(overlap) > 0.9


def test_the_whole_network_over_fits_one_batch() -> None:
    torch.manual_seed(0)
    settings = settings_with(learning_rate=2e-3, relative_rate_parts=(), predicted_pose_share=0.0)
    network = LiveNetwork(settings.model)
    optimiser = build_optimiser(network, settings)
    trainer = Trainer(network, settings)
    scenes = [people_scene(20)]
    image = torch.from_numpy(scenes[0].image).permute(2, 0, 1)[None]
    totals = []
    for _ in range(25):
        losses = trainer(image, scenes, np.random.default_rng(0))
        assert set(losses) == {"centre", "heatmaps", "regression", "offsets", "mask"}
        total = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        totals.append(float(total.detach()))
    assert np.mean(totals[-3:]) < 0.5 * totals[0]


def test_found_poses_are_the_decoded_people() -> None:
    pose = drawn_pose(20, 2, 90)
    maps = {name: torch.full((2, c, 24, 32), -20.0) for name, c in (("centre", 1), ("heatmaps", 17))}
    maps["regression"], maps["offsets"] = torch.zeros(2, 34, 24, 32), torch.full((2, 34, 24, 32), 0.5)
    maps["centre"][1, 0, 12, 16] = 5.0
    cells = ((pose[:, :2] + 0.5) / 4).astype(int)
    for joint, (x, y) in enumerate(cells.tolist()):
        maps["regression"][1, 2 * joint : 2 * joint + 2, 12, 16] = torch.tensor([y - 12.0, x - 16.0])
        if joint != 9:
            maps["heatmaps"][1, joint, y, x] = 5.0
    nobody, somebody = found_poses(maps, DecodeParameters())
    assert nobody.shape == (0, 17, 3)
    assert len(somebody) == 1 and somebody[0, 9].tolist() == [0, 0, 0]  # no peak: not found
    others = np.arange(17) != 9
    assert (somebody[0, others, 2] == 2).all()
    np.testing.assert_allclose(somebody[0, others, :2], pose[others, :2], atol=2.5)


# Runs


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainSettings, Path]:
    settings = tiny_settings(data, tmp_path_factory.mktemp("run"))
    return settings, train(settings)


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name in ("weights", "ema", "optimiser")
        for key, value in load_file(str(checkpoint / f"{name}.safetensors")).items()
    }


def assert_same_bits(one: Path, other: Path) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    different = [name for name, value in first.items() if not torch.equal(value, second[name])]
    assert not different, different[:5]


def test_a_run_trains_and_leaves_its_record(uninterrupted: tuple[TrainSettings, Path]) -> None:
    settings, checkpoint = uninterrupted
    assert checkpoint == latest_checkpoint(settings.output) == settings.output / "step-0000006"
    assert (settings.output / "history.png").stat().st_size > 1000
    state = read_state(checkpoint)
    assert state["settings"] == settings.to_json()
    logged = [entry for entry in state["history"] if "validation" not in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    assert {"centre", "heatmaps", "regression", "offsets", "mask", "pictures_per_s"} < set(logged[0])
    start = new_network(settings).state_dict()
    end = load_file(str(checkpoint / "weights.safetensors"))
    for part, _ in LiveNetwork(settings.model).named_children():
        assert any(not torch.equal(start[name], end[name]) for name in start if name.startswith(part)), part


def test_resuming_equals_not_stopping_bit_for_bit(uninterrupted: tuple[TrainSettings, Path], tmp_path: Path) -> None:
    settings = replace(uninterrupted[0], output=tmp_path / "resumed")
    stopped = train(settings, stop_after=3)
    assert stopped.name == "step-0000003"
    torch.manual_seed(999)  # whatever happened in between
    np.random.default_rng().random()
    resumed = train(settings)
    assert_same_bits(uninterrupted[1], resumed)
    entries = [
        [e for e in read_state(path)["history"] if "validation" not in e] for path in (uninterrupted[1], resumed)
    ]
    assert [e["step"] for e in entries[0]] == [e["step"] for e in entries[1]]
    assert entries[0][-1]["mask"] == entries[1][-1]["mask"]


def test_bfloat16_on_a_cpu_learns_the_same_and_keeps_float32_weights(
    uninterrupted: tuple[TrainSettings, Path], tmp_path: Path
) -> None:
    exact, checkpoint = uninterrupted
    settings = replace(exact, output=tmp_path / "half", amp_cpu=True)
    stopped = train(settings, stop_after=3)
    assert {value.dtype for name, value in tensors(stopped).items() if value.is_floating_point()} == {torch.float32}
    with pytest.raises(CheckpointError, match="amp_cpu was True, now False"):
        train(replace(settings, amp_cpu=False))
    half = train(settings)
    losses = [
        [entry["mask"] for entry in read_state(path)["history"] if "mask" in entry] for path in (checkpoint, half)
    ]
    assert losses[0] != losses[1]  # it did compute in other bits
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)


def test_workers_see_what_the_main_process_sees(uninterrupted: tuple[TrainSettings, Path], tmp_path: Path) -> None:
    settings = replace(uninterrupted[0], output=tmp_path / "workers", workers=1)
    assert_same_bits(uninterrupted[1], train(settings))


def test_a_finished_run_is_not_run_again(uninterrupted: tuple[TrainSettings, Path]) -> None:
    settings, checkpoint = uninterrupted
    before = (checkpoint / "state.json").stat().st_mtime_ns
    assert train(settings) == checkpoint
    assert (checkpoint / "state.json").stat().st_mtime_ns == before


def test_another_network_in_the_same_folder_is_refused(uninterrupted: tuple[TrainSettings, Path]) -> None:
    settings = uninterrupted[0]
    wider = replace(settings, model=replace(settings.model, seg_width=12))
    with pytest.raises(CheckpointError, match=r"step-0000006 does not fit this run: model\.seg_width was 8, now 12"):
        train(wider)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1, "canvas": (64, 96)}, "canvas[1] was 64, now 96; seed was 0, now 1"),
        (
            {"lr_scale": {**dict.fromkeys(LiveNetwork(TINY_MODEL)._modules, 1.0), "backbone": 0.5}},
            "lr_scale.backbone was",
        ),
        ({"sources": ()}, "sources[0].annotations was 'people/annotations.json', now absent"),
        ({"backgrounds": ("backgrounds", "backgrounds")}, "backgrounds[1] was absent, now 'backgrounds'"),
        ({"schedule": "paper"}, "schedule was 'cosine', now 'paper'"),
    ],
    ids=["numbers", "one rate", "no sources", "more backgrounds", "a word"],
)
def test_other_settings_in_the_same_folder_are_refused_by_name(
    uninterrupted: tuple[TrainSettings, Path], changes: dict, said: str
) -> None:
    settings, checkpoint = uninterrupted
    before = (checkpoint / "state.json").read_bytes()
    with pytest.raises(CheckpointError, match="step-0000006 does not fit this run") as caught:
        train(replace(settings, **changes))
    assert said in str(caught.value)
    assert (checkpoint / "state.json").read_bytes() == before


def test_length_paths_workers_and_intervals_may_change(
    uninterrupted: tuple[TrainSettings, Path], tmp_path: Path
) -> None:
    settings, checkpoint = uninterrupted
    (tmp_path / "data").symlink_to(settings.data)
    moved = replace(
        settings,
        steps=5,  # done already: nothing is run
        data=tmp_path / "data",
        output=tmp_path / "moved",
        init_checkpoint=checkpoint,
        workers=1,
        log_every=1,
        validate_every=9,
        checkpoint_every=9,
    )
    shutil.copytree(settings.output, moved.output)
    assert train(moved) == moved.output / "step-0000006"


def test_a_setting_younger_than_the_checkpoint_counts_as_its_default(
    uninterrupted: tuple[TrainSettings, Path], tmp_path: Path
) -> None:
    settings = replace(uninterrupted[0], output=tmp_path / "old")
    shutil.copytree(uninterrupted[0].output, settings.output)
    path = settings.output / "step-0000006" / "state.json"
    state = json.loads(path.read_text())
    del state["settings"]["distill_weight"], state["settings"]["model"]["family"]
    del state["settings"]["sources"][0]["holdout_every"]
    path.write_text(json.dumps(state))
    assert train(settings) == path.parent
    with pytest.raises(CheckpointError, match=r"distill_weight was 0\.0, now 1\.0"):
        train(replace(settings, distill_weight=1.0))
    state["settings"]["of_the_future"] = 3
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="does not fit this run: unknown training settings of_the_future"):
        train(settings)


def test_a_run_can_start_from_a_checkpoint(uninterrupted: tuple[TrainSettings, Path], tmp_path: Path) -> None:
    settings, checkpoint = uninterrupted
    network = new_network(replace(settings, output=tmp_path, init_checkpoint=checkpoint))
    average = load_file(str(checkpoint / "ema.safetensors"))
    assert all(torch.equal(value, average[name]) for name, value in network.state_dict().items())


def test_a_loss_that_is_not_finite_names_step_and_samples(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path / "run", learning_rate=1e30, gradient_clip=1e30, warmup_steps=0, seed=4)
    with pytest.raises(
        NonFiniteLoss, match=r"step [1-9]\d*: (loss|gradient) is not finite \(.*mask.*\); samples \d+ to \d+ of seed 4"
    ) as caught:
        train(settings)
    words = str(caught.value).replace(":", "").split()
    step, first, last = int(words[1]), int(words[words.index("samples") + 1]), int(words[words.index("to") + 1])
    assert (first, last) == (2 * step, 2 * step + 1)


def test_the_command_ends_with_two_and_one_line_on_bad_input(data: Path, tmp_path: Path, capsys) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(
        json.dumps(
            {
                key: value
                for key, value in tiny_settings(data, tmp_path).to_json().items()
                if key not in {"data", "output"}
            }
        )
    )
    cases = {
        "none.json": (["--recipe", str(tmp_path / "none.json"), "--data", str(data)], "none.json"),
        "data": (["--recipe", str(recipe), "--data", str(tmp_path / "elsewhere")], "elsewhere"),
        "start": (
            ["--recipe", str(recipe), "--data", str(data), "--init-checkpoint", str(tmp_path / "gone")],
            "gone is not a checkpoint",
        ),
    }
    for name, (flags, said) in cases.items():
        assert main([*flags, "--output", str(tmp_path / "out")]) == 2, name
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error and len(error.splitlines()) == 1, name


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(data: Path, tmp_path: Path) -> None:
    """A finite loss with an infinite slope: the square root of zero."""
    settings = tiny_settings(data, tmp_path / "run", checkpoint_every=1)
    calls = []

    class Breaking(Trainer):
        def forward(self, image, scenes, rng):
            losses = super().forward(image, scenes, rng)
            calls.append(len(calls))
            if len(calls) == 3:
                losses["mask"] = losses["mask"] + (0 * self.network.seg_module.detail.bias.sum()).sqrt()
            return losses

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.train.Trainer", Breaking)
        with pytest.raises(NonFiniteLoss, match=r"step 2: gradient is not finite \(.*samples 4 to 5 of seed 0"):
            train(settings)
    newest = latest_checkpoint(settings.output)
    assert newest is not None and newest.name == "step-0000002"
    assert all(torch.isfinite(value).all() for value in tensors(newest).values())


def test_the_command_trains_validates_and_says_where(data: Path, tmp_path: Path, capsys) -> None:
    content = tiny_settings(data, tmp_path, steps=2, log_every=1).to_json()
    content["sources"][0]["holdout_every"] = 4
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({key: value for key, value in content.items() if key not in {"data", "output"}}))
    output = tmp_path / "run"
    assert main(["--recipe", str(recipe), "--data", str(data), "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert f"finished: {output / 'step-0000002'}" in text
    assert "step=1/2" in text and "pictures_per_s" in text
    history = read_state(output / "step-0000002")["history"]
    (validation,) = (entry["validation"] for entry in history if "validation" in entry)
    assert 0 <= validation["people mean IoU"] <= 1
    assert {"people mask AP", "people end-to-end AP", "people keypoint AP"} < set(validation)


def test_staying_close_to_the_first_weights_costs_nothing_at_the_start(tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = published(LiveNetwork(TINY_MODEL)).write(tmp_path / "movenet.onnx")
    settings = settings_with(init_movenet=path, distill_weight=2.0)
    network = new_network(settings)
    trainer = Trainer(network, settings)
    assert set(trainer.state_dict()) == {f"network.{name}" for name in network.state_dict()}  # the reference is no part
    scenes = [replace(people_scene(20), complete=False)]
    image = torch.from_numpy(scenes[0].image).permute(2, 0, 1)[None]
    assert float(trainer(image, scenes, np.random.default_rng(0))["distilled"].detach()) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        list(network.keypoint_heads.head["heatmaps"].children())[-1].bias.add_(1.0)
    assert float(trainer(image, scenes, np.random.default_rng(0))["distilled"].detach()) > 1e-3


# Several processes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"keypoint_loss_weight": 0.0},
        {"keypoint_loss_weight": 0.0, "lr_scale": {**FROZEN, "keypoint_heads": 1.0, "mask_laterals": 1.0}},
        {"lr_scale": {**FROZEN, "keypoint_heads": 1.0}},
        {"lr_scale": {**FROZEN, "seg_module": 1.0}},
    ],
    ids=["everything", "no keypoint loss", "no keypoint loss, frozen trunk", "heads alone", "mask module alone"],
)
def test_a_step_without_masks_does_not_stop_the_exchange_of_gradients(tmp_path: Path, changes: dict) -> None:
    """A replica that met nobody with a mask must still take part, or the others wait for its gradients forever."""
    settings = settings_with(**changes)
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        network = LiveNetwork(settings.model)
        build_optimiser(network, settings)
        model = torch.nn.parallel.DistributedDataParallel(Trainer(network, settings))
        image = torch.zeros(1, 3, 96, 128, dtype=torch.uint8)
        for scenes in ([people_scene()], [people_scene(20)], [people_scene()]):
            losses = model(image, scenes, np.random.default_rng(0))
            torch.stack(list(losses.values())).sum().backward()  # raises if the step before left gradients open
        assert all((p.grad is not None) == p.requires_grad for p in network.parameters())
    finally:
        distributed.destroy_process_group()


def test_a_step_that_teaches_nothing_has_a_gradient_of_zero() -> None:
    """The mask module learns alone, and nobody in the batch has a mask."""
    settings = settings_with(lr_scale={**FROZEN, "seg_module": 1.0})
    network = LiveNetwork(settings.model)
    build_optimiser(network, settings)
    losses = Trainer(network, settings)(
        torch.zeros(1, 3, 96, 128, dtype=torch.uint8), [people_scene()], np.random.default_rng(0)
    )
    torch.stack(list(losses.values())).sum().backward()
    gradients = [p.grad for p in network.seg_module.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


SCRIPT = """
import hashlib, json, sys
from pathlib import Path
import torch
from torch import distributed
import training.train as loop
from tests.training.drawn_people import tiny_settings

torch.set_num_threads(1)
data, output = map(Path, sys.argv[1:])
made = []
build = loop.new_network
def remembered(settings):
    made.append(build(settings))
    return made[-1]
loop.new_network = remembered
path = loop.train(tiny_settings(data, output, steps=4, log_every=1, checkpoint_every=2))
rank = int(__import__("os").environ["RANK"])
weights = hashlib.sha256(b"".join(p.detach().contiguous().numpy().tobytes() for p in made[0].parameters())).hexdigest()
(output / f"rank{rank}.json").write_text(json.dumps({"weights": weights, "checkpoint": path.name}))
"""


@pytest.mark.slow
def test_two_processes_train_one_network(data: Path, tmp_path: Path, uninterrupted: tuple[TrainSettings, Path]) -> None:
    script, output = tmp_path / "run.py", tmp_path / "run"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*command, str(data), str(output)], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((output / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["checkpoint"] == "step-0000004"
    history = [e for e in read_state(output / "step-0000004")["history"] if "validation" not in e]
    assert [entry["step"] for entry in history] == [1, 2, 3, 4]
    # Both took part: with the samples of one process alone the weights are others.
    alone = train(tiny_settings(data, tmp_path / "alone", steps=4, log_every=1))
    one, two = (load_file(str(path / "weights.safetensors")) for path in (alone, output / "step-0000004"))
    assert not torch.equal(one["seg_module.detail.weight"], two["seg_module.detail.weight"])
