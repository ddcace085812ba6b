# SPDX-License-Identifier: BSD-2-Clause
"""`valemgr pair`: two guests on one switch, measured.

With a baseline every trial over the switch is followed by the same trial over QEMU's own `stream`
netdevs, back-to-back between the same two guests, so that the figures compare fairly.
"""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from valemgr import environment, provenance
from valemgr.accel import AccelChoice
from valemgr.bench import Trial, TrialSpec, run_trial
from valemgr.errors import StoreError
from valemgr.lifecycle import clear_place
from valemgr.lifecycle import running as lab_running
from valemgr.results import ResultStore
from valemgr.runner import RunningLab, RunOptions, Say
from valemgr.state import LabDir
from valemgr.topology import pair_lab
from valemgr.words import Backend, Engine, NicModel

BASELINE = "stream"


@dataclass(frozen=True, slots=True)
class PairRequest:
    """What the user asked for."""

    switch: str
    frames: tuple[int, ...]
    model: NicModel = NicModel.VIRTIO
    backend: Backend = Backend.AUTO
    seconds: float = 5.0
    rate: int | None = None
    baseline: bool = False
    trials: int = 1
    image: str = "micro"
    engine: Engine = Engine.QEMU
    accel: AccelChoice = AccelChoice.AUTO
    keep: bool = False
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class PairRow:
    """One line of the report: the median trial of a frame size on a path."""

    frame: int
    sent_kpps: float
    received_kpps: float
    mbit_s: float
    loss_percent: float
    backend: str
    provider: str
    accelerator: str
    ready_s: float
    conserved: bool
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class PairReport:
    """What `pair` found."""

    result: int
    store: str
    rows: tuple[PairRow, ...]
    stages: dict[str, dict[str, float]]
    provenance: dict[str, Any]
    trials: tuple[dict[str, Any], ...] = field(default=())

    @property
    def problems(self) -> list[str]:
        """Why a trial is invalid, in words."""
        return [
            f"{trial['spec']['frame']} bytes over {trial['spec']['path']}: {violation}"
            for trial in self.trials
            for violation in trial["violations"]
        ]


async def run(request: PairRequest, say: Say) -> PairReport:
    """Launch the pair, measure, store, clean up."""
    lab = pair_lab(
        request.switch, request.model, request.image, request.backend, request.baseline,
        request.engine,
    )  # fmt: skip
    env = await environment.find(lab, request.accel)
    store = ResultStore()
    lab_dir = LabDir(lab.name)
    try:
        async with lab_dir.lock(f"pair {request.switch}"):
            await clear_place(lab_dir)
            result = store.begin("pair", lab.name, asdict(request))
            try:
                options = RunOptions(keep=request.keep, timeout=request.timeout)
                async with lab_running(lab, env, options, say) as running_lab:
                    report = await _measure(request, running_lab, store, result, say)
                store.finish(result, "done")
                return report
            except BaseException as exc:
                status = "failed" if isinstance(exc, Exception) else "interrupted"
                with suppress(StoreError):  # the first error is the one to tell
                    store.finish(result, status, str(exc))
                raise
    finally:
        store.close()


def specs(request: PairRequest, backend: str) -> Iterator[TrialSpec]:
    """The trials in order: rounds of all sizes, switch and baseline alternating."""
    paths = [(backend, "vale0")] + ([(BASELINE, "vale1")] if request.baseline else [])
    for _ in range(request.trials):
        for frame in request.frames:
            for path, nic in paths:
                yield TrialSpec(path, frame, request.seconds, request.rate, (nic, nic))


async def _measure(
    request: PairRequest, lab: RunningLab, store: ResultStore, result: int, say: Say
) -> PairReport:
    facts = await _provenance(lab)
    store.set_provenance(result, facts)
    trials = []
    backend = str(lab.guests["a"].nics[0].backend)
    for spec in specs(request, backend):
        say(f"trial: {spec.frame} bytes over {spec.path}, {spec.seconds:g} s")
        work = run_trial(spec, lab.guests["a"], lab.guests["b"], lab.switchd)
        trial = await lab.guarded(work)
        store.add_trial(result, trial.as_dict())
        trials.append(trial)
    facts["host"]["load_after"] = provenance.host_facts()["load"]
    store.set_provenance(result, facts)
    ready = max(guest.ready_seconds for guest in lab.guests.values())
    return PairReport(
        result=result,
        store=str(store.path),
        rows=summarize(trials, lab.provider, lab.env.accelerator.name, ready),
        stages={name: guest.stages for name, guest in lab.guests.items()},
        provenance=facts,
        trials=tuple(trial.as_dict() for trial in trials),
    )


def summarize(
    trials: Sequence[Trial], provider: str, accelerator: str, ready: float
) -> tuple[PairRow, ...]:
    """One row per frame size and path, by the median of the received rates."""
    groups: dict[tuple[int, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.spec.frame, trial.spec.path), []).append(trial)

    def received(key: tuple[int, str]) -> float:
        return statistics.median(trial.received_pps for trial in groups[key])

    rows = []
    for (frame, path), group in groups.items():
        pps = received((frame, path))
        base = received((frame, BASELINE)) if (frame, BASELINE) in groups else 0.0
        is_baseline = path == BASELINE
        rows.append(
            PairRow(
                frame=frame,
                sent_kpps=round(statistics.median(t.sent_pps for t in group) / 1e3, 1),
                received_kpps=round(pps / 1e3, 1),
                mbit_s=round(pps * frame * 8 / 1e6, 1),
                loss_percent=round(100 * statistics.median(t.loss for t in group), 2),
                backend=path,
                provider="none" if is_baseline else provider,
                accelerator=accelerator,
                ready_s=round(ready, 1),
                conserved=all(t.conserved for t in group),
                ratio=round(pps / base, 2) if base and not is_baseline else None,
            )
        )
    return tuple(rows)


async def _provenance(lab: RunningLab) -> dict[str, Any]:
    env = lab.env
    valed = lab.switchd.version if lab.switchd else ""
    return {
        "command": provenance.command_line(),
        "host": provenance.host_facts(),
        "versions": await provenance.versions(env.emulators[""].path, valed),
        "accelerator": provenance.accelerator_facts(env.accelerator),
        "images": provenance.image_facts(env.images),
        "topology": lab.state.topology,
        "placement": provenance.placement(lab.state.guests),
        "argv": {name: guest.argv for name, guest in lab.state.guests.items()},
        "stages": {name: guest.stages for name, guest in lab.guests.items()},
        "method": "UDP one way, one flow; rates by the programs in the guests; frame sizes "
        "include the FCS; trials shorter than RFC 2544's 60 s",
    }
