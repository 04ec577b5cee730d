"""Many rows, one after another: what is measured already is not measured again, and nothing that fails stops the rest."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from zoo.errors import ManifestError, ZooError
from zoo.manifest import ModelEntry, load_manifests
from zoo.registry import did_you_mean

from .environment import present_hardware
from .isolation import Outcome, failure
from .runner import Draft, Interrupted, measure, run_row
from .spec import BenchmarkSpec, Run, run_key
from .store import DEFAULT_STORE, read_runs, write_run
from .subject import Sources, identify_data, identify_weights, open_data

Say = Callable[[str], None]


@dataclass
class Sweep:
    """What came of a sweep: new runs, and rows that had been measured already with the run that did it."""

    runs: list[Run] = field(default_factory=list)
    known: list[Run] = field(default_factory=list)
    interrupted: bool = False

    @property
    def failed(self) -> list[Run]:
        """New runs that did not finish."""
        return [run for run in self.runs if run.status != "finished"]

    def summary(self) -> str:
        """One line."""
        finished = len(self.runs) - len(self.failed)
        text = f"{finished} measured, {len(self.failed)} failed, {len(self.known)} measured before"
        return text + ("; stopped by Ctrl-C, the same command goes on from here" if self.interrupted else "")


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep treats rows.

    store: folder of records. again: measure what is measured already. isolate, stall_s, limit_s: see `run_row`.
    """

    store: Path = DEFAULT_STORE
    again: bool = False
    isolate: bool = True
    stall_s: float | None = 600.0
    limit_s: float | None = None

    @property
    def files(self) -> Path:
        """Where files that belong to runs are kept."""
        return self.store.parent / "detections"


def chosen_rows(patterns: Iterable[str]) -> list[ModelEntry]:
    """The rows that names, shell patterns or sources mean, each once.

    Raises:
        ManifestError: a pattern fits no row; says which are near.
    """
    manifests, chosen = load_manifests(), {}
    for pattern in patterns:
        exact = [manifests.entries[pattern]] if pattern in manifests.entries else [e for e in manifests.find(pattern) if _fits(e, pattern)]
        if not exact:
            raise ManifestError(f"no row fits {pattern!r}: {did_you_mean(pattern, manifests.entries)} (bench.py list shows all)")
        chosen |= {entry.name: entry for entry in exact}
    return list(chosen.values())


def _fits(entry: ModelEntry, pattern: str) -> bool:
    """A plain word means a source here, never a part of a name: nobody runs a day of benchmarks by a slip."""
    return any(c in pattern for c in "*?[") or entry.source == pattern


def run_sweep(entries: list[ModelEntry], spec: BenchmarkSpec, sources: Sources, options: SweepOptions, say: Say = lambda text: None,
              work: Callable[..., None] = measure) -> Sweep:
    """Measure rows in order, storing each run as soon as it ends.

    Args:
        entries: the rows.
        spec: what and how.
        sources: data and weights.
        options: store, isolation, limits.
        say: gets a line before and after every row.
        work: what measures a row; a test may plant a fault here.
    """
    sweep = Sweep()
    stored = read_runs(options.store)
    for problem in stored.problems:
        say(f"warning: {problem}")
    finished = {} if options.again else {run.key: run for run in stored.runs if run.status == "finished"}
    for number, entry in enumerate(entries, start=1):
        say(f"[{number}/{len(entries)}] {entry.name}")
        try:
            run = _one(entry, spec.for_task(entry.task), sources, options, finished, sweep, work)
        except Interrupted as stopped:
            run, sweep.interrupted = stopped.run, True
        except KeyboardInterrupt:  # before anything of this row was begun
            sweep.interrupted = True
            break
        if run is None:
            say(f"    measured already in {sweep.known[-1].id}; --again measures anew")
            continue
        write_run(options.store, run)
        sweep.runs.append(run)
        say(f"    {run.status} in {run.duration_s:.0f} s" + (f", while {run.stage}: {run.reason}" if run.reason else ""))
        if sweep.interrupted:
            break
    return sweep


def _one(entry: ModelEntry, spec: BenchmarkSpec, sources: Sources, options: SweepOptions, finished: dict[tuple[str, ...], Run], sweep: Sweep,
         work: Callable[..., None]) -> Run | None:
    """The new run of a row, or None where a finished run of the same kind is known."""
    draft = Draft(entry.name, spec, fields={"stage": "finding weights and data"})
    try:
        if entry.published_only:
            raise ZooError(f"row {entry.name} stands for its numbers alone: {entry.published_only}")
        weights = identify_weights(entry, sources.weights)
        draft.add({"weights": weights[0]})
        if finished:
            data = identify_data(open_data(entry, sources.data, spec.images))
            known = finished.get(run_key(entry.name, spec, data, weights[0], present_hardware(spec.device)))
            if known is not None:
                sweep.known.append(known)
                return None
    except (ZooError, OSError) as error:
        return draft.finish(failure(error))
    except KeyboardInterrupt:
        raise Interrupted(draft.finish(Outcome("failed", "stopped by Ctrl-C"), "interrupted")) from None
    return run_row(entry.name, spec, sources, weights, options.files, isolate=options.isolate, stall_s=options.stall_s, limit_s=options.limit_s,
                   work=work)
