"""Records that nobody measured, drawn from a seed, for tests of tables, plots and the page; every one says
that it is made up."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from statistics import median

from records import MACHINE, PHOTOS, RANDOM, TRAINED

from detection_zoo.benchmarks.report.kernel_cases import KernelCase, KernelTimings
from detection_zoo.benchmarks.spec import BenchmarkSpec, Measurement, Run, Telemetry
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests

NOTE = "made up by a test: nobody measured this"
PHASES = {
    "decode_ms": 0.12,
    "resize_ms": 0.1,
    "copy_ms": 0.03,
    "forward_ms": 0.6,
    "postprocess_ms": 0.12,
    "result_copy_ms": 0.03,
}
PARTS = {
    "backbone_ms": 0.35,
    "neck_ms": 0.1,
    "rpn_ms": 0.06,
    "heads_ms": 0.11,
    "forward_rest_ms": 0.02,
}  # passes of their own: a little more than forward
MACHINES = [
    MACHINE.model_copy(update={"device_name": f"{name} (made up)", "cpu": name})
    for name in ("Abacus 9", "Slate 2")
]
SHAPES = PHOTOS.model_copy(
    update={"name": "shapes:val", "digest": "5" * 64, "images": 60, "images_of_split": 60, "made_up": True}
)
SUBSET = PHOTOS.model_copy(update={"digest": "6" * 64, "images": 500})


def made_up_runs(count: int, seed: int = 0) -> list[Run]:
    """`count` runs of detectors of the manifests: finished and failed ones, on two machines, photographs and
    drawings, over several commits."""
    draw = random.Random(seed)
    entries = [
        entry
        for entry in load_manifests().entries.values()
        if entry.detector and entry.task == "detection" and not entry.published_only
    ]
    return [_run(entries[number % len(entries)], number, draw) for number in range(count)]


def made_up_timings(seed: int = 0) -> KernelTimings:
    """Timings of operators that nobody took."""
    draw = random.Random(seed)

    def time_us(value: float) -> Measurement:
        return Measurement(
            value=value, unit="us", statistic="median", n=50, interval=(value * 0.97, value * 1.04)
        )

    cases = [
        KernelCase(
            name=name, ours=time_us(draw.uniform(20, 200)), peer=time_us(peer), correct=True, note=NOTE
        )
        for name, peer in (
            ("nms, 1,000 boxes", 484.0),
            ("nms, 12,000 boxes", 8059.0),
            ("roi_align 7x7, 1,000 RoIs", 60.0),
        )
    ]
    return KernelTimings(
        started="2030-01-01T00:00:00+00:00",
        backend="cuda",
        peer="torchvision (made up)",
        environment=MACHINES[0],
        cases=[
            *cases,
            KernelCase(name="roi_crop", ours=time_us(30.0), correct=False, note="the peer has none; " + NOTE),
        ],
    )


def _run(entry: ModelEntry, number: int, draw: random.Random) -> Run:
    commit = f"{number // 40 + 1:07x}" + "0" * 33
    machine = MACHINES[number % 7 == 0].model_copy(update={"commit": commit})
    data, weights = draw.choice(
        [(PHOTOS, TRAINED), (PHOTOS, TRAINED), (PHOTOS, TRAINED), (SUBSET, TRAINED), (SHAPES, RANDOM)]
    )
    started = datetime(2030, 1, 1, tzinfo=UTC) + timedelta(minutes=17 * number)
    failed = number % 23 == 22
    values = (
        {"parameters_m": Measurement(value=draw.uniform(5, 90), unit="M")}
        if failed
        else _measurements(draw, weights.made_up)
    )
    return Run(
        id=f"{started:%Y%m%dT%H%M%SZ}-{entry.name}-{number:08x}",
        row=entry.name,
        status="failed" if failed else "finished",
        stage="training" if failed else None,
        reason="out of memory: made up by a test" if failed else None,
        started=started.isoformat(),
        duration_s=draw.uniform(10, 400),
        spec=BenchmarkSpec(dtype=draw.choice(["float32", "float32", "float16"])),
        weights=weights,
        data=data,
        environment=machine,
        measurements=values,
        absent={} if failed else {"mask_ap": "the row has no masks"},
        notes=[NOTE],
        telemetry={"inference": Telemetry(verdict=draw.choice(["clean", "clean", "clean", "throttled"]))},
    )


def _measurements(draw: random.Random, untrained: bool) -> dict[str, Measurement]:
    total = draw.uniform(8, 120)
    samples = [total * draw.lognormvariate(0, 0.03) for _ in range(60)]
    ordered = sorted(samples)
    ap = draw.uniform(0, 0.4) if untrained else 18 + 6 * (total / 8) ** 0.5 + draw.uniform(-2, 2)
    values = {
        name: Measurement(value=total * share, unit="ms", statistic="median", n=60)
        for name, share in (PHASES | PARTS).items()
    }
    values["model_ms"] = Measurement(
        value=median(samples),
        unit="ms",
        statistic="median",
        n=60,
        interval=(ordered[21], ordered[38]),
        samples=samples,
        percentiles={"p5": ordered[3], "p95": ordered[56]},
        covers="forward + post-processing; batch 1, an image",
        note=NOTE,
    )
    values["end_to_end_ms"] = Measurement(
        value=median(samples) * 1.4, unit="ms", statistic="median", n=60, covers="file to results on the host"
    )
    values["box_ap"] = Measurement(value=ap, unit="%", interval=(ap - 0.5, ap + 0.5))
    values["train_memory_allocated_mib"] = Measurement(
        value=draw.uniform(1500, 9000), unit="MiB", statistic="peak"
    )
    values["epoch_time_s"] = Measurement(
        value=draw.uniform(2000, 20000), unit="s", statistic="mean", n=50, extrapolated=True
    )
    values["parameters_m"] = Measurement(value=draw.uniform(5, 90), unit="M")
    return values
