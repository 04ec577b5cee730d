"""Recipes, loop, processes and checkpoints of training; the rates are those that the original training
scripts set."""

from __future__ import annotations

import json
import math
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked
from torch import nn

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.manifest import Schedule
from detection_zoo.zoo.training import checkpoints
from detection_zoo.zoo.training.loop import StepRecord, train_steps
from detection_zoo.zoo.training.recipe import (
    build_optimizer,
    learning_rate,
    parameter_groups,
    scale_schedule,
    set_learning_rate,
    total_iterations,
)

ROOT = Path(__file__).resolve().parents[2]
RATES = json.loads((ROOT / "tests" / "reference" / "training" / "learning_rates.json").read_text())

DETECTRON = {
    "warmup_iterations": 500,
    "warmup_factor": 1 / 3,
    "bias_lr_factor": 2.0,
    "weight_decay_norm": 0.0,
    "rescale_momentum": True,
}
BENCHMARK = {"warmup_iterations": 500, "warmup_factor": 1 / 3, "bias_lr_factor": 2.0, "scheduler_leads": True}


def case(source: str, name: str, shift: int, per_epoch: int | None = None, **schedule: object):
    return pytest.param(
        RATES[source][name].get("lr", RATES[source][name]),
        shift,
        per_epoch,
        Schedule(**schedule),
        id=f"{source}-{name}",
    )


@pytest.mark.parametrize(
    ("recorded", "shift", "per_epoch", "schedule"),
    [
        case(
            "detectron_pytorch",
            "e2e_faster_rcnn_R-50-C4_1x",
            0,
            images_per_batch=8,
            lr=0.01,
            iterations=180000,
            steps=[120000, 160000],
            **DETECTRON,
        ),
        case(
            "detectron_pytorch",
            "e2e_faster_rcnn_R-50-FPN_2x",
            0,
            images_per_batch=16,
            lr=0.02,
            iterations=180000,
            steps=[120000, 160000],
            **DETECTRON,
        ),
        case(
            "detectron_pytorch",
            "e2e_keypoint_rcnn_R-50-FPN_s1x",
            0,
            images_per_batch=16,
            lr=0.02,
            iterations=130000,
            steps=[100000, 120000],
            **DETECTRON,
        ),
        case(
            "maskrcnn_benchmark",
            "e2e_faster_rcnn_V_39_FPN_2x",
            -1,
            images_per_batch=16,
            lr=0.02,
            iterations=180000,
            steps=[120000, 160000],
            **BENCHMARK | {"warmup_factor": 0.01},
        ),
        case(
            "maskrcnn_benchmark",
            "e2e_faster_rcnn_R_50_FPN_2x",
            -1,
            images_per_batch=16,
            lr=0.02,
            iterations=180000,
            steps=[120000, 160000],
            **BENCHMARK,
        ),
        case(
            "maskrcnn_benchmark",
            "e2e_keypoint_rcnn_R_50_FPN_1x",
            -1,
            images_per_batch=16,
            lr=0.02,
            iterations=90000,
            steps=[60000, 80000],
            **BENCHMARK,
        ),
        case(
            "maskrcnn_benchmark",
            "retinanet_R-50-FPN_1x",
            -1,
            images_per_batch=8,
            lr=0.005,
            iterations=180000,
            steps=[120000, 160000],
            **BENCHMARK,
        ),
        case(
            "detnet",
            "README command (lr 1e-3, default step 5, epochs 12)",
            -1,
            1,
            images_per_batch=2,
            lr=1e-3,
            epochs=11,
            steps=[5],
        ),
        case(
            "detnet", "README table (lr_decay 10)", -1, 1, images_per_batch=2, lr=1e-3, epochs=11, steps=[10]
        ),
        case("hardnet", "coco", 0, 3696, images_per_batch=32, lr=4e-3, epochs=150, steps=[90, 120, 140]),
        case("hardnet", "voc", 0, 517, images_per_batch=32, lr=4e-3, epochs=300, steps=[150, 200, 250]),
        case(
            "hardnet",
            "voc_warm_5",
            0,
            517,
            images_per_batch=32,
            lr=4e-3,
            epochs=300,
            steps=[150],
            warmup_iterations=5 * 517,
            warmup_factor=1e-6 / 4e-3,
            warmup_stop=4 * 517,
        ),
        case(
            "hardnet",
            "imagenet",
            0,
            1,
            images_per_batch=256,
            lr=0.05,
            epochs=150,
            policy="cosine",
            nesterov=True,
            weight_decay=6e-5,
        ),
    ],
)
def test_rates_are_those_of_the_original_scripts(
    recorded: dict[str, float], shift: int, per_epoch: int | None, schedule: Schedule
) -> None:
    for position, rate in recorded.items():
        assert learning_rate(schedule, int(position) + shift, per_epoch) == pytest.approx(rate, rel=1e-12), (
            position
        )


def test_schedules_in_epochs_ask_for_the_epoch_length() -> None:
    schedule = Schedule(images_per_batch=2, lr=0.1, epochs=3, steps=[2])
    assert total_iterations(schedule, 10) == 30
    with pytest.raises(ValueError, match="iterations_per_epoch"):
        learning_rate(schedule, 0)
    with pytest.raises(ValueError, match="neither"):
        total_iterations(Schedule(images_per_batch=2, lr=0.1))


@pytest.mark.parametrize(
    ("batch", "accumulate", "rate", "steps", "iterations"),
    [
        (
            8,
            2,
            0.01,
            [60000, 80000],
            90000,
        ),  # the two worked examples of the original's adaptive configuration
        (8, 1, 0.01, [120000, 160000], 180000),
        (16, 1, 0.02, [60000, 80000], 90000),
        (6, 1, 0.0075, [160000, 213333], 240000),  # int(80000 * 16 / 6 + 0.5)
    ],
)
def test_another_batch_scales_rate_and_steps_and_leaves_the_warm_up(
    batch: int, accumulate: int, rate: float, steps: list[int], iterations: int
) -> None:
    schedule = Schedule(images_per_batch=16, lr=0.02, iterations=90000, steps=[60000, 80000], **DETECTRON)
    scaled = scale_schedule(schedule, batch, accumulate)
    assert (scaled.lr, scaled.steps, scaled.iterations, scaled.warmup_iterations) == (
        pytest.approx(rate),
        steps,
        iterations,
        500,
    )


class Small(nn.Module):
    """A conv, a norm and a linear layer with a loss: enough for every rule; noise makes it depend on the
    random state."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor, sizes: torch.Tensor, targets: list) -> dict[str, torch.Tensor]:
        features = self.norm(self.conv(images)).relu().mean((2, 3))
        noise = torch.randn(len(images), 2, device=images.device) if targets == ["noise"] else 0
        logits = self.out(features) + noise
        return {"loss_a": logits.square().sum(), "loss_b": (logits[:, 0] - 1).abs().sum()}


def test_groups_follow_the_rules_of_each_source() -> None:
    def rules(**schedule: object) -> dict[str, tuple[float, float]]:
        groups = parameter_groups(Small(), Schedule(images_per_batch=16, lr=0.02, **schedule))
        return {name: (g["lr_factor"], g["weight_decay"]) for g in groups for name in g["names"]}

    names = [
        "conv.weight",
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "out.weight",
        "out.bias",
    ]  # never the frozen layer
    weight, bias = (1.0, 1e-4), (2.0, 0.0)
    assert rules(**DETECTRON) == dict(zip(names, [weight, bias, (1.0, 0.0), bias, weight, bias], strict=True))
    assert rules(**BENCHMARK) == dict(zip(names, [weight, bias, weight, bias, weight, bias], strict=True))
    assert rules() == dict(
        zip(names, [weight, (1.0, 0.0)] * 3, strict=True)
    )  # DetNet: biases undecayed, at the same rate
    assert set(rules(weight_decay=5e-4, weight_decay_bias=5e-4).values()) == {
        (1.0, 5e-4)
    }  # HarDNet: one group
    assert (
        len(build_optimizer(Small(), Schedule(images_per_batch=16, lr=0.02, **DETECTRON)).param_groups) == 3
    )
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(Small().requires_grad_(False), Schedule(images_per_batch=16, lr=0.02))


@pytest.mark.parametrize("rescale", [True, False])
def test_momentum_is_rescaled_where_the_rate_jumps(rescale: bool) -> None:
    weight = nn.Linear(1, 1, bias=False)
    schedule = Schedule(images_per_batch=1, lr=1.0, weight_decay=0.0, rescale_momentum=rescale)
    optimizer = build_optimizer(weight, schedule)
    nn.init.zeros_(weight.weight)
    positions = []
    for rate in (1.0, 0.95, 0.095):  # a change of 5 %, then a drop by ten
        set_learning_rate(optimizer, rate, rescale)
        weight.weight.grad = torch.ones(1, 1)
        optimizer.step()
        positions.append(weight.weight.item())
    # by hand: buffers 1, 1.9, then 0.9 * (1.9 * 0.1) + 1 = 1.171 with the rule and 0.9 * 1.9 + 1 = 2.71
    # without
    last = 1.171 if rescale else 2.71
    assert positions == pytest.approx([-1.0, -1.0 - 0.95 * 1.9, -1.0 - 0.95 * 1.9 - 0.095 * last], rel=1e-6)


SCHEDULE = Schedule(
    images_per_batch=4,
    lr=0.002,
    iterations=6,
    steps=[4],
    warmup_iterations=3,
    warmup_factor=0.1,
    **{k: v for k, v in DETECTRON.items() if not k.startswith("warmup")},
)


def batches(first: int = 0, images: int = 4, targets: object = ()) -> list:
    made = []
    for number in range(first, 16):
        generator = torch.Generator().manual_seed(number)
        made.append(
            (
                torch.randn(images, 3, 6, 6, generator=generator),
                torch.tensor([[6, 6]] * images),
                list(targets),
            )
        )
    return made


def trained(iterations: int = 6, **options: object) -> tuple[Small, list[StepRecord]]:
    torch.manual_seed(0)
    model = Small().train()
    records = list(
        train_steps(
            model,
            options.pop("batches", batches()),
            build_optimizer(model, SCHEDULE),
            SCHEDULE,
            iterations=iterations,
            **options,
        )
    )
    return model, records


def test_layer_decay_lowers_the_rate_towards_the_images() -> None:
    model = nn.Module()
    model.backbone, model.head = nn.Module(), nn.Linear(2, 2)
    for name in ("stem", "c2", "c3"):
        model.backbone.add_module(name, nn.Linear(2, 2))
    plain = Schedule(images_per_batch=1, lr=0.1, bias_lr_factor=2.0)
    groups = parameter_groups(model, plain.model_copy(update={"layer_decay": 0.5}))
    found = {name: group["lr_factor"] for group in groups for name in group["names"]}
    assert found["backbone.stem.weight"] == 0.125 and found["backbone.stem.bias"] == 0.25
    assert (found["backbone.c2.weight"], found["backbone.c3.weight"], found["head.weight"]) == (
        0.25,
        0.5,
        1.0,
    )
    assert len(parameter_groups(model, plain)) == 2


def test_the_loop_lowers_the_loss_at_the_schedule_rates() -> None:
    stages: list[str] = []
    _, records = trained(mark=stages.append)
    assert [r.learning_rate for r in records] == pytest.approx(
        [0.0002, 0.0008, 0.0014, 0.002, 0.0002, 0.0002]
    )
    assert records[-1].total_loss < records[0].total_loss / 2
    assert {name for r in records for name in r.losses} == {"loss_a", "loss_b"} and all(
        r.images == 4 for r in records
    )
    assert stages == ["data", "forward", "backward", "update"] * 6


def test_accumulated_passes_equal_one_large_batch() -> None:
    halves = [
        (images[part], sizes[part], targets)
        for images, sizes, targets in batches()
        for part in (slice(0, 2), slice(2, 4))
    ]
    whole, whole_records = trained()
    parts, part_records = trained(batches=halves, accumulate=2)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert [r.total_loss for r in part_records] == pytest.approx(
        [r.total_loss for r in whole_records], rel=1e-5
    )
    assert all(r.images == 4 for r in part_records)


def test_mixed_precision_stays_near_full_precision() -> None:
    full, _ = trained()
    mixed, records = trained(amp_dtype=torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in mixed.parameters()) and all(
        math.isfinite(r.total_loss) for r in records
    )
    difference = max(
        (a - b).abs().max().item() for a, b in zip(full.parameters(), mixed.parameters(), strict=True)
    )
    assert 0 < difference < 0.02


def test_a_loss_that_is_not_finite_raises_or_is_left_out() -> None:
    poisoned = batches()
    poisoned[2][0][0, 0, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"update 2 is not finite: loss_a = nan"):
        trained(batches=poisoned)
    model, records = trained(batches=poisoned, on_nonfinite="skip")
    assert [r.skipped for r in records] == [False, False, True, False, False, False]
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_running_out_of_batches_is_said() -> None:
    with pytest.raises(ValueError, match="end before update 2"):
        trained(batches=batches()[:2])


TRAINING = f"""
import sys, torch
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}, {str(ROOT / "tests" / "zoo")!r}]
from pathlib import Path
from test_zoo_training import SCHEDULE, Small, batches
from detection_zoo.zoo.training import checkpoints
from detection_zoo.zoo.training.loop import train_steps
from detection_zoo.zoo.training.recipe import build_optimizer
torch.manual_seed(0)
model = Small().train()
optimizer = build_optimizer(model, SCHEDULE)
"""
SAVING = (
    TRAINING
    + """
for step in range(1, 100000):
    checkpoints.save(Path(sys.argv[1]), model, optimizer, step, entry="small")
    print(step, flush=True)
"""
)
SHARED = (
    TRAINING
    + """
from detection_zoo.zoo.training.distributed import distribute, gather, joined, share
with joined("cpu", timeout_s=60) as process:
    mine = [(images[2 * process.rank:2 * process.rank + 2] , sizes, targets) for images, sizes, targets in batches()]
    wrapped = distribute(model, process)
    records = list(train_steps(wrapped, mine, optimizer, SCHEDULE, iterations=6))
    first, second = gather([next(model.parameters()).detach()], process)
    assert torch.equal(first, second)
    assert gather(list(share(5, process)), process) == [0, 2, 4, 1, 3]
    first, second = gather([records[0].losses], process)
    mean = {name: (first[name] + second[name]) / 2 for name in first}
    if process.main:
        checkpoints.write_whole(Path(sys.argv[1]), {"model": model.state_dict(), "first": mean})
"""
)


def restore(path: Path, *arguments: Any, **options: Any) -> int:
    """Read a checkpoint and restore its state."""
    return checkpoints.apply(checkpoints.read(path), path, *arguments, **options)


def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    script, folder = tmp_path / "saving.py", tmp_path / "run"
    script.write_text(SAVING)
    writer = Forked(script, folder)
    done = 0
    while done < 5:
        done = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    done = max([done, *(int(line) for line in writer.stdout.read().split() if line.isdigit())])
    assert writer.wait() == -signal.SIGKILL
    newest = checkpoints.latest(folder)
    assert checkpoints.read(newest)["iteration"] >= done >= 5
    model = Small()
    restore(newest, model, build_optimizer(model, SCHEDULE), entry="small")
    checkpoints.save(folder, model, build_optimizer(model, SCHEDULE), 10**6)
    assert not list(folder.glob(".*.part")) and len(list(folder.glob("step_*.pth"))) == 2


def test_a_resumed_training_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    noisy = [(images, sizes, ["noise"]) for images, sizes, _ in batches()]
    unbroken, _ = trained(batches=noisy)
    torch.manual_seed(0)
    model = Small().train()
    optimizer = build_optimizer(model, SCHEDULE)
    for _ in train_steps(model, noisy, optimizer, SCHEDULE, iterations=3):
        pass
    path = checkpoints.save(tmp_path, model, optimizer, 3)
    torch.manual_seed(99)
    resumed = Small().train()
    optimizer = build_optimizer(resumed, SCHEDULE)
    start = restore(path, resumed, optimizer)
    for _ in train_steps(resumed, noisy[3:], optimizer, SCHEDULE, iterations=6, start=start):
        pass
    for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_that_do_not_fit_say_so(tmp_path: Path) -> None:
    model = Small()
    optimizer = build_optimizer(model, SCHEDULE)
    path = checkpoints.save(tmp_path, model, optimizer, 7, entry="small.demo")
    with pytest.raises(CheckpointError, match=r"a training of 'small.demo', not of 'other.demo'"):
        restore(path, model, optimizer, entry="other.demo")
    other = nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        restore(path, other, build_optimizer(other, SCHEDULE))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(CheckpointError, match="not a readable training checkpoint"):
        checkpoints.read(path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a training checkpoint of format"):
        checkpoints.read(path)
    assert checkpoints.latest(tmp_path / "nowhere") is None


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    """Two processes of two images each, gradients averaged, against one process with half the summed loss of
    the four images."""
    script, result = tmp_path / "shared.py", tmp_path / "result.pth"
    script.write_text(SHARED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment["OMP_NUM_THREADS"] = "1"
    processes = [
        Forked(script, result, environment={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    assert [code for _, code in ended] == [0, 0], ended
    shared = torch.load(result, weights_only=True)

    class Halved(Small):
        def forward(self, *batch):
            return {name: value / 2 for name, value in super().forward(*batch).items()}

    torch.manual_seed(0)
    single = Halved().train()
    records = list(train_steps(single, batches(), build_optimizer(single, SCHEDULE), SCHEDULE, iterations=6))
    for name, value in single.state_dict().items():
        torch.testing.assert_close(shared["model"][name], value, rtol=1e-5, atol=1e-6)
    assert shared["first"] == pytest.approx(records[0].losses, rel=1e-5)
