"""Records that tests store and tabulate: a machine, a model's run, made from what each test cares about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detection_zoo.benchmarks.spec import (
    BenchmarkSpec,
    DataIdentity,
    Environment,
    Measurement,
    Run,
    WeightsIdentity,
)
from detection_zoo.benchmarks.store import new_id

MACHINE = Environment(
    device_name="Abacus 9",
    cpu="Abacus 9",
    cpu_cores=2,
    memory_mib=4096,
    system="Linux",
    python="3.11.9",
    packages={"torch": "2.11.0"},
    threads=1,
    commit="0123456789abcdef0123456789abcdef01234567",
    dirty=False,
)
PHOTOS = DataIdentity(name="coco:val2017", digest="d" * 64, images=5000, images_of_split=5000)
TRAINED = WeightsIdentity(kind="published", digest="a" * 64, file="model.pth")
RANDOM = WeightsIdentity(kind="random", digest="seed:0")


def measured(value: float, unit: str, **more: Any) -> Measurement:
    return Measurement(value=value, unit=unit, **more)


def run_of(
    row: str, values: dict[str, Measurement], started: str = "2030-01-02T03:04:05+00:00", **more: Any
) -> Run:
    return Run(
        **{
            "id": new_id(row),
            "row": row,
            "status": "finished",
            "started": started,
            "duration_s": 1.5,
            "spec": BenchmarkSpec(),
            "weights": TRAINED,
            "data": PHOTOS,
            "environment": MACHINE,
            "measurements": values,
            **more,
        }
    )


def make_small_shapes(home: Path, train: int = 12, val: int = 6) -> Path:
    """A home folder whose `shapes` has a few images only; to be named in DETECTION_ZOO_HOME."""
    from detection_zoo.zoo.data.shapes import VERSION, make_shapes

    make_shapes(home / "data" / f"shapes-{VERSION}-seed0", splits={"train": train, "val": val})
    return home
