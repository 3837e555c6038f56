"""The graph of jobs: what each job reads and writes, and which jobs are missing.

A job is one process: a part of a recover run, a seed of a measuring run, or all of another run.
`cda run` alone gives several jobs, later validation seeds of a run, to one process.
Snakemake's input functions, `cda plan`, `cda run`, `cda pull` and `cda list` all walk this graph.
It imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cda.config.settings import Settings
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.paths import Layout
from cda.experiments.runs import (
    MAKING,
    MEASURING,
    Run,
    decode_run,
    expert_parts,
    images_run_of,
    label_mode,
    part_experts,
    part_shards,
    parts,
    seeds_of,
)
from cda.files import is_complete_json

# stages of several jobs a run
NUMBERED = {"recover": "part", "expert": "part", "validate": "seed", "continual": "seed"}


@dataclass(frozen=True)
class Job:
    """One process of a run; two jobs are equal if they write the same output."""

    run: Run = field(compare=False)
    index: int = field(compare=False)  # of the part or the seed; 0 if the run is one job
    output: str
    files: Mapping[int, str] = field(default_factory=dict, compare=False)  # of a part, by number

    def is_done(self) -> bool:
        """Whether its output exists; a squeezed model's description is written last.

        Measurements that are no complete JSON, as after a crash of the disk, are not done, nor is
        a part that lacks a shard or an expert.
        """
        path = Path(self.output)
        if self.files:
            return path.exists() and not self.missing_files()
        if self.run.stage in MEASURING:
            return is_complete_json(path)
        described = self.run.stage != "squeeze" or path.with_name("squeeze.json").exists()
        return path.exists() and described

    def missing_files(self) -> list[int]:
        """The shards or experts that a part lacks, by number."""
        return [index for index, path in self.files.items() if not Path(path).is_file()]

    @property
    def target(self) -> str:
        """What Snakemake makes for who reads its output: that, or the last file that it lacks."""
        missing = self.missing_files() if Path(self.output).exists() else ()
        return self.files[missing[-1]] if missing else self.output

    @property
    def share(self) -> float:
        """Its work as a share of a job's that makes a complete part; 1 at other stages."""
        if self.run.stage == "expert":
            return len(part_experts(self.run, self.index)) / len(part_experts(self.run, 0))
        if self.run.stage != "recover":
            return 1.0
        return len(self.missing_files() or self.files) / self.run.data.shards_per_job

    def is_damaged(self) -> bool:
        """Whether its output is there and is no complete JSON of measurements."""
        measured = self.run.stage in MEASURING and Path(self.output).is_file()
        return measured and not self.is_done()

    @property
    def arguments(self) -> list[str]:
        """Its command line after `cda`."""
        option = NUMBERED.get(self.run.stage)
        numbered = [f"--{option}", str(self.index)] if option else []
        return [self.run.stage, "--run", self.run.id, *numbered]

    @property
    def name(self) -> str:
        """Stage, data set, run, and part or seed."""
        return " ".join([self.run.stage, self.run.dataset, self.run.id, *self.arguments[3:]])


class JobGraph:
    """The jobs of one scale's runs; labels above `max_gb` (`labels.max_gb`) are made online.

    A recover job makes those shards of its part that are among the first `required` of its run.
    """

    def __init__(self, layout: Layout, max_gb: float, required: Callable[[Run], int]) -> None:
        self.layout, self.max_gb, self.required = layout, max_gb, required

    def job(self, run: Run, index: int = 0) -> Job:
        """The job of `run` for its part or seed `index`, or for all of it."""
        layout = self.layout
        if run.stage == "recover":
            shards = part_shards(run, index, self.required(run))
        elif run.stage == "distill":
            shards = range(run.ipc)
        elif run.stage == "expert":
            files = {
                expert: layout.expert(run, index, expert) for expert in part_experts(run, index)
            }
            return Job(run, index, layout.part(run, index), files)
        if run.stage in MAKING:
            files = {shard: layout.shard(run, index, shard) for shard in shards}
            return Job(run, index, layout.part(run, index), files)
        if run.stage in MEASURING:
            return Job(run, index, layout.run_json(run, index))
        one = {"decode": layout.decoded, "squeeze": layout.model, "relabel": layout.labels}
        return Job(run, 0, one[run.stage](run))

    def jobs(self, run: Run, ipc: int) -> list[Job]:
        """A run's jobs; for a run of images those that make its first `ipc` shards."""
        indices = parts(run, ipc) if run.stage in MAKING else range(1)
        indices = expert_parts(run) if run.stage == "expert" else indices
        return [self.job(run, index) for index in indices]

    def inputs(self, job: Job) -> list[Job]:
        """The jobs whose outputs `job` reads."""
        return [one for run in self._read(job.run) for one in self.jobs(run, job.run.ipc)]

    def _read(self, run: Run) -> Iterator[Run]:
        """The runs whose outputs a job of `run` reads."""
        images, labels = images_run_of(run), run.upstream.get("labels")
        if images is not None and images is not run:
            yield images
        if labels is not None:
            yield labels
        if "experts" in run.upstream:
            yield run.upstream["experts"]
        labelled = labels or (run if run.stage == "relabel" else None)
        used = "online" if labels else "stored"
        model = (labels or run).upstream.get("model")
        if model is not None and (labelled is None or label_mode(labelled, self.max_gb) == used):
            yield model
        trained = run.stage == "squeeze" and not run.recipe.squeeze.weights
        tested = run.stage in ("validate", "continual") or (run.stage == "score" and not images)
        if run.data.stream and (trained or tested):
            yield decode_run(run.data, run.recipe)

    def walk(self, targets: Iterable[Job], below: Callable[[Job], bool]) -> list[Job]:
        """`targets` and, under each job that `below` is true of, its inputs; inputs come first."""
        found: dict[Job, None] = {}

        def visit(job: Job) -> None:
            if job not in seen:
                seen.add(job)
                for one in self.inputs(job) if below(job) else ():
                    visit(one)
                found[job] = None

        seen: set[Job] = set()
        for target in targets:
            visit(target)
        return list(found)

    def all(self, targets: Iterable[Job]) -> list[Job]:
        """Everything that `targets` are made from, inputs first."""
        return self.walk(targets, lambda _job: True)

    def missing(self, targets: Iterable[Job]) -> list[Job]:
        """The jobs that have to run, inputs first.

        They are the targets without output, and inputs without output of such jobs. What an
        existing output was made from is not needed.
        """
        reached = self.walk(targets, lambda job: not job.is_done())
        return [job for job in reached if not job.is_done()]


def graph_of(experiments: ExperimentSet) -> JobGraph:
    """The job graph of a scale."""
    max_gb = experiments.settings.labels.max_gb
    return JobGraph(experiments.layout, max_gb, experiments.required_shards)


def table_jobs(experiments: ExperimentSet, *tables: str) -> list[Job]:
    """The measuring jobs of the tables, cell by cell; raises ConfigError for an unknown table."""
    graph, settings = graph_of(experiments), experiments.settings
    runs = [run for table in tables for run in experiments.requested_runs(table)]
    return list(
        dict.fromkeys(
            graph.job(run, seed) for run in runs for seed in range(seeds_of(run, settings.seeds))
        )
    )


def figure_jobs(experiments: ExperimentSet, name: str) -> list[Job]:
    """The jobs whose outputs a figure draws: its tables' measurements, or its runs' first parts."""
    figure, graph = experiments.figures[name], graph_of(experiments)
    if figure.plot:
        return table_jobs(experiments, *(t for t in figure.tables if t in experiments.tables))
    return [graph.job(run, 0) for _, run in experiments.pictured(name)]


def gpu_count(run: Run, settings: Settings) -> int:
    """GPUs of a job; 0 if it computes no network."""
    if run.stage == "squeeze":
        return 0 if run.recipe.squeeze.weights else process_count(run, settings)
    if run.stage == "relabel":
        return int(label_mode(run, settings.labels.max_gb) == "stored")
    return int(run.stage != "decode" and (run.stage != "recover" or run.recipe.recover.synthetic))


def process_count(run: Run, settings: Settings) -> int:
    """GPUs and processes of a squeeze run's training; one process fetches published weights."""
    return 1 if run.recipe.squeeze.weights else min(run.data.gpus, settings.runtime.gpus)
