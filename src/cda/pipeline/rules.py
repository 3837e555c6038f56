"""What the Snakemake rules need: input functions and parameters as plain, tested Python.

Nothing here imports snakemake or torch. A run's id names its computation and every stage compares
digests, so file times carry no information: the inputs between stages are `ancient()`. A job whose
output exists names only those inputs that exist, unless the call forces the job. So Snakemake does
not compute again what `dvc pull` brought, in whatever order, and it measures an existing run JSON
again only if the call asks for it (`-f`, `-F`, `-R`).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from cda.config.load import from_environment, load_settings, merge, scale_names
from cda.errors import ArtifactError, ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import (
    NUMBERED,
    Job,
    figure_jobs,
    gpu_count,
    graph_of,
    process_count,
    table_jobs,
)
from cda.experiments.runs import MAKING, Run
from cda.pipeline.limits import TimeLimits
from cda.text import nearest

SUBMITTING = ("--profile", "--workflow-profile", "--executor", "-e")  # options that name SLURM
SOURCE = Path(__file__).parents[2]  # the folder that `cda` is imported from


class Wildcards(Protocol):
    """The wildcards that rules use; a rule has some of them."""

    artifacts: str
    results: str
    run: str
    part: str
    seed: str
    table: str
    figure: str


class Workflow(Protocol):
    """Snakemake's workflow; `dag_settings` is None while the Snakefile is read."""

    dag_settings: Any


class Plan:
    """The experiments of one snakemake call and what each of its jobs needs."""

    def __init__(self, config: Mapping[str, Any], workflow: Workflow, targets: Sequence[str] = ()):
        """`config` is snakemake's, `targets` the words of its command line; raises CdaError."""
        overrides = merge(from_environment(), config)
        self.experiments = ExperimentSet(load_settings(overrides))
        self.settings, self.layout = self.experiments.settings, self.experiments.layout
        self.threads = self.settings.runtime.cpu_threads
        self.prefix = _prefix(overrides)
        self._graph, self._workflow = graph_of(self.experiments), workflow
        self._limits = TimeLimits(self.experiments)
        self._check_targets(targets)
        require_cluster(targets)
        self._check_measurements()

    def __repr__(self) -> str:
        return "Plan()"  # snakemake compares the text of `ancient(PLAN.model)` between calls

    def _check_targets(self, targets: Sequence[str]) -> None:
        """Raise ConfigError for a result of another scale, or of no table or figure."""
        scale, tables = self.settings.scale, self.experiments.tables
        known = scale_names(self.experiments.config)
        if "demo" in targets and "demo" not in tables:
            raise ConfigError(f"demo is no target of scale {scale}; add --config scale=demo")
        paths = {name: self.layout.table(name) for name in tables if name != "demo"}
        paths |= {name: self.layout.figure(name) for name in self.experiments.figures}
        for name in paths.keys() & set(targets):
            raise ConfigError(f"{name} is no target; use {paths[name]}")
        plots = {name for name, figure in self.experiments.figures.items() if figure.plot}
        kinds = {".csv": set(tables), ".md": set(tables)}
        kinds |= {".png": set(self.experiments.figures), ".svg": plots}
        for path in map(Path, targets):
            if path.parts[:1] != ("results",) or path.suffix not in kinds or len(path.parts) > 3:
                continue
            wanted = "paper" if len(path.parts) == 2 else path.parts[1]
            if wanted in known and wanted != scale:
                fix = f"add --config scale={wanted}, or use {self.layout.results}/{path.name}"
                raise ConfigError(f"{path} is of scale {wanted}, but this is scale {scale}; {fix}")
            if wanted in known and path.stem not in kinds[path.suffix]:
                kind = "table" if path.suffix in (".csv", ".md") else "figure"
                names = tables if kind == "table" else self.experiments.figures
                near = nearest(path.stem, names)
                raise ConfigError(
                    f"{path}: there is no {kind} {path.stem}{near}; use one of {', '.join(names)}"
                )
            if wanted == scale and path.stem in tables:
                self.experiments.table_of(path.stem)  # raises ConfigError if no cell can run
            elif wanted == scale:
                self.experiments.require_pictured(path.stem)

    def _check_measurements(self) -> None:
        """Raise ArtifactError for a damaged run JSON, which Snakemake would take for finished."""
        for job in table_jobs(self.experiments, *self.experiments.tables):
            if job.is_damaged():
                raise ArtifactError(
                    f"{job.output}: a run's measurements are damaged (not JSON); delete it, and "
                    "the same call makes it again"
                )

    # Targets

    def tables(self) -> list[str]:
        """Paths of every table of the scale."""
        return [self.layout.table(name) for name in self.experiments.tables]

    def plots(self) -> list[str]:
        """Names of the figures that are plots."""
        return [name for name, figure in self.experiments.figures.items() if figure.plot]

    def pictures(self) -> list[str]:
        """Names of the figures that show images."""
        return [name for name, figure in self.experiments.figures.items() if not figure.plot]

    def figures(self) -> list[str]:
        """Every figure of the scale, except pictures without an image of this call's data sets."""
        names = [name for name in self.experiments.figures if self._has_content(name)]
        return [self.layout.figure(name) for name in names]

    def _has_content(self, figure: str) -> bool:
        return self.experiments.figures[figure].plot or bool(self._pictured(figure))

    def demo(self) -> list[str]:
        """The demo's table and pictures, where there is one."""
        if "demo" not in self.experiments.tables:
            return []
        names = [name for name in self.experiments.figures if name.startswith("demo-")]
        return [self.layout.table("demo"), *(self.layout.figure(name) for name in names)]

    def reported(self) -> list[str]:
        """What the report contains: the demo's table and pictures, or else all of the scale's."""
        return self.demo() or self.tables() + self.figures()

    def report_reasons(self) -> list[str]:
        """The report's inputs: measurements and pictures; not tables, which every call makes."""
        tables = ["demo"] if self.demo() else list(self.experiments.tables)
        pictures = [path for path in self.reported() if path.endswith(".png")]
        return self._outputs(table_jobs(self.experiments, *tables)) + pictures

    # Inputs

    def measurements(self, wildcards: Wildcards) -> list[str]:
        """The run JSONs that a table reads."""
        return self._outputs(table_jobs(self.experiments, wildcards.table))

    def plotted(self, wildcards: Wildcards) -> list[str]:
        """The run JSONs that a plot reads."""
        return self._outputs(figure_jobs(self.experiments, wildcards.figure))

    def pictured(self, wildcards: Wildcards) -> list[str]:
        """The first part of each recover run that a figure shows."""
        return self._pictured(wildcards.figure)

    def _pictured(self, figure: str) -> list[str]:
        return self._outputs(figure_jobs(self.experiments, figure))

    def _outputs(self, jobs: Iterable[Job]) -> list[str]:
        """The jobs' outputs: all, or with `cells=present` those that exist."""
        everything = self.settings.cells == "all"
        return [job.target for job in jobs if everything or job.is_done()]

    def decoded(self, wildcards: Wildcards) -> list[str]:
        """The decoded validation images that a job of a streamed data set tests on."""
        return self._inputs(wildcards, "decode")

    def model(self, wildcards: Wildcards) -> list[str]:
        """The squeezed model that a job reads; none for real images and for hard labels."""
        return self._inputs(wildcards, "squeeze")

    def shards(self, wildcards: Wildcards) -> list[str]:
        """The part folders that a job reads; of one that lacks shards, the last of these."""
        return self._inputs(wildcards, *MAKING)

    def experts(self, wildcards: Wildcards) -> list[str]:
        """The part folders of the experts that a distill job follows."""
        return self._inputs(wildcards, "expert")

    def part_option(self, wildcards: Wildcards) -> str:
        """The option that names a part to a stage which has several."""
        job = self._job(wildcards)
        return f"--part {job.index}" if job.run.stage in NUMBERED else ""

    def labels(self, wildcards: Wildcards) -> list[str]:
        """A validate job's label store."""
        return self._inputs(wildcards, "relabel")

    def weights(self, wildcards: Wildcards) -> list[str]:
        """The file that marks a squeeze job's published initial weights as downloaded."""
        job = self._job(wildcards)
        squeeze = job.run.recipe.squeeze
        fetched = squeeze.init and not squeeze.weights
        return [self.layout.fetched(job.run)] if fetched and self._must_run(job) else []

    def _inputs(self, wildcards: Wildcards, *stages: str) -> list[str]:
        """What a job reads of `stages`; if its output exists, only what exists."""
        job = self._job(wildcards)
        jobs = [one for one in self._graph.inputs(job) if one.run.stage in stages]
        must_run = self._must_run(job)
        return [one.target for one in jobs if must_run or one.is_done()]

    def _job(self, wildcards: Wildcards) -> Job:
        index = getattr(wildcards, "part", getattr(wildcards, "seed", 0))
        return self._graph.job(self._run(wildcards), int(index))

    def _must_run(self, job: Job) -> bool:
        """Whether a job has to run: its output is missing, or the call forces it."""
        forced = self._workflow.dag_settings
        if not job.is_done() or forced is None or forced.forceall:
            return True
        by_name = {job.run.stage, "published", job.output} & set(forced.forcerun)
        return bool(by_name) or (forced.forcetargets and job.output in forced.targets)

    # Resources and parameters

    def gpus(self, wildcards: Wildcards) -> int:
        """GPUs of a job; 0 if it computes no network."""
        return gpu_count(self._run(wildcards), self.settings)

    def squeeze_threads(self, wildcards: Wildcards) -> int:
        """Cores of a squeeze job: each of its processes computes and decodes streamed images."""
        data, runtime = self._run(wildcards).data, self.settings.runtime
        each = runtime.cpu_threads + (runtime.requested_workers if data.stream else 0)
        return max(1, self.gpus(wildcards)) * each

    def minutes(self, wildcards: Wildcards, attempt: int) -> int:
        """Time limit of a job, more with each attempt."""
        job = self._job(wildcards)
        return self._limits.minutes(job.run, attempt, job.share)

    def memory(self, wildcards: Wildcards, attempt: int) -> int:
        """MB of host memory for a job's processes and images; more with each attempt."""
        run = self._run(wildcards)
        shards = run.ipc or int(run.stage == "recover") * 4  # a part is joined shard by shard
        pixels = shards * run.data.classes * run.data.resolution**2 * 3 / 1e6
        processes = process_count(run, self.settings) if run.stage == "squeeze" else 1
        return int(attempt * (8000 * processes + 1.2 * pixels))

    def recipe(self, wildcards: Wildcards) -> dict[str, Any]:
        """What a run's result depends on; Snakemake runs a job again when it changes."""
        return dict(self._run(wildcards).spec)

    def drawn(self, wildcards: Wildcards) -> dict[str, Any]:
        """What a figure contains; Snakemake draws it again when this changes."""
        declared = self.experiments.figures[wildcards.figure].model_dump(mode="json")
        images = [run.id for _, run in self.experiments.pictured(wildcards.figure)]
        return declared | ({"images": images} if images else {})

    def _run(self, wildcards: Wildcards) -> Run:
        return self.experiments.run(wildcards.run)


def _prefix(overrides: Mapping[str, Any]) -> str:
    """The start of every rule's command: the call's configuration and the clone's source."""
    config = shlex.quote(json.dumps(overrides, sort_keys=True))
    source = f"{shlex.quote(str(SOURCE))}${{PYTHONPATH:+:$PYTHONPATH}}"
    line = f"export CDA_CONFIG={config} PYTHONPATH={source}; "
    return line.replace("{", "{{").replace("}", "}}")  # snakemake formats it


def require_cluster(words: Sequence[str]) -> None:
    """Raise ConfigError if a command line submits to SLURM where there is none.

    Every job would fail by itself, each with many lines. A dry run submits nothing.
    """
    pairs = [*pairwise(words), *(word.split("=", 1) for word in words)]
    values = (pair[1] for pair in pairs if pair[0] in SUBMITTING and len(pair) == 2)
    dry = {"-n", "--dry-run", "--dryrun"} & set(words) or "-np" in words
    if "slurm" in map(os.path.basename, values) and not dry and shutil.which("sbatch") is None:
        raise ConfigError(
            "--profile slurm: there is no sbatch on the PATH; start on a login node of the "
            "cluster, or leave the profile out to run here"
        )


def one_of(names: Iterable[str]) -> str:
    """A wildcard constraint: one of these names, and nothing if there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"
