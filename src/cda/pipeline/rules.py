"""What the rules ask: input functions and parameters as plain, tested Python.

Imports neither snakemake nor torch.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from cda.config.load import from_environment, load_settings, merge
from cda.errors import ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import gpu_count, inputs, process_count
from cda.experiments.paths import Layout
from cda.experiments.runs import MEASURING, Run, parts
from cda.pipeline.estimate import works_of
from cda.pipeline.limits import TimeLimits

# snakemake's words for making all or a rule again and for showing what results came from; and for
# what is named alone
WHOLE = re.compile(r"-[nkpqrf]*[FR].*|--(forceall|forcerun|report|rulegraph|dag|filegraph)(=.*)?")
FORCE = re.compile(r"-[nkpqr]*f|--force")
ARRAY = "--slurm-jobstep-array-execs"


class Wildcards(Protocol):
    """The wildcards that rules use; a rule has some of them."""

    artifacts: str
    results: str
    run: str
    part: str
    seed: str
    table: str
    figure: str


class Plan:
    """The experiments of one snakemake call and what each job of it needs."""

    def __init__(self, overrides: Mapping[str, Any], arguments: Sequence[str] = ()) -> None:
        given = merge(from_environment(), overrides)
        self.experiments = ExperimentSet(load_settings(given))
        self.settings = self.experiments.settings
        self.layout = Layout(self.settings.scale)
        exported = f"export CDA_CONFIG={shlex.quote(json.dumps(given, sort_keys=True))}; "
        self.prefix = exported.replace("{", "{{").replace("}", "}}")  # snakemake formats it
        self.threads = self.settings.runtime.cpu_threads
        self._whole = any(map(WHOLE.fullmatch, arguments))
        self._forced = set(arguments if any(map(FORCE.fullmatch, arguments)) else ())
        self._check_targets(arguments)
        self._limits = TimeLimits(self.experiments)
        self._asked = tuple(
            name for name in self.experiments.tables if self.layout.table(name) in arguments
        )

    def _check_targets(self, arguments: Sequence[str]) -> None:
        """Raises ConfigError for a result on the command line that is another scale's, or no
        table's.
        """
        known = {
            "paper",
            *(path.stem for path in (self.experiments.config / "scales").glob("*.yaml")),
        }
        if "demo" in arguments and "demo" not in self.experiments.tables:
            raise ConfigError(
                f"demo is no target of scale {self.settings.scale}; add --config scale=demo"
            )
        kinds = {"csv": self.experiments.tables, "md": self.experiments.tables}
        kinds |= {"png": self.experiments.figures, "svg": self.plots()}  # type: ignore[dict-item]
        for target in arguments:
            match = re.fullmatch(r"results/(?:([\w-]+)/)?([\w-]+)\.(csv|md|png|svg)", target)
            if not match or (match[1] and match[1] not in known):
                continue
            asked, scale = match[1] or "paper", self.settings.scale
            if asked != scale:
                mend = (
                    f"add --config scale={asked}, or ask for "
                    f"{self.layout.results}/{match[2]}.{match[3]}"
                )
                raise ConfigError(
                    f"{target} is of scale {asked}, but this is scale {scale}; {mend}"
                )
            if match[2] not in kinds[match[3]]:
                what = "table" if match[3] in ("csv", "md") else "figure"
                there = ", ".join(kinds[match[3]])
                raise ConfigError(
                    f"{target}: there is no {what} {match[2]} at scale {scale}; there is {there}"
                )

    def summary(self) -> str:
        """What is there already, in a line; and which data sets of its tables are not declared."""
        runs = self._measuring()
        wanted = self._seeds(runs)
        done = sum(Path(path).is_file() for path in wanted)
        left = (
            "all done already: nothing is computed again"
            if done == len(wanted)
            else f"{done} of {len(wanted)} done"
        )
        if self.settings.cells == "present":
            there = sum(bool(self.experiments.seeds(run)) for run in runs)
            left = f"{there} of {len(runs)} present, the others stay not_run"
        tables = self.experiments.tables
        notes = sorted(
            {cell.note for table in tables for cell in self.experiments.cells(table) if cell.note}
        )
        lines = [f"Scale {self.settings.scale}, measurements of all its tables: {left}."]
        return "\n".join(
            lines + [f"Not run: {note}." for note in notes if note.startswith("data set")]
        )

    def _of(self, wildcards: Wildcards) -> Run:
        return self.experiments.run(wildcards.run)

    def tables(self) -> list[str]:
        """Every table of the scale."""
        return [self.layout.table(name) for name in self.experiments.tables]

    def plots(self) -> list[str]:
        """Names of the figures that are plots."""
        return [name for name, figure in self.experiments.figures.items() if figure.plot]

    def pictures(self) -> list[str]:
        """Names of the figures that show images."""
        return [name for name in self.experiments.figures if name not in self.plots()]

    def figures(self) -> list[str]:
        """Every figure of the scale; of pictures those that have images among the settings' data
        sets, or here.
        """
        pictured = [name for name in self.pictures() if self._pictured(name)]
        names = [
            name for name in self.experiments.figures if name in self.plots() or name in pictured
        ]
        return [self.layout.figure(name) for name in names]

    def gpus(self, wildcards: Wildcards) -> int:
        """GPUs of a job: none where no network computes."""
        return gpu_count(self._of(wildcards), self.settings)

    def squeeze_threads(self, wildcards: Wildcards) -> int:
        """Cores of a squeeze job: each of its processes computes, and decodes where images are
        streamed.
        """
        data, runtime = self._of(wildcards).data, self.settings.runtime
        return max(1, self.gpus(wildcards)) * (
            runtime.cpu_threads + (runtime.workers if data.stream else 0)
        )

    def minutes(self, wildcards: Wildcards, attempt: int) -> int:
        """Time limit of a job, more with each attempt."""
        return self._limits.minutes(self._alike(wildcards, self._limits.hours), attempt)

    def memory(self, wildcards: Wildcards, attempt: int) -> int:
        """MB of a job's host memory, more with each attempt."""
        return int(attempt * self._megabytes(self._alike(wildcards, self._megabytes)))

    def _megabytes(self, run: Run) -> float:
        """Of its processes, and of the images it holds."""
        held = (
            run.ipc or int(run.stage == "recover") * 4
        )  # shards; a part is joined and encoded a shard at a time
        pixels = held * run.data.classes * run.data.resolution**2 * 3 / 1e6
        several = process_count(run, self.settings) if run.stage == "squeeze" else 1
        return 8000 * several + 1.2 * pixels

    def _alike(self, wildcards: Wildcards, need: Callable[[Run], float]) -> Run:
        """The run whose `need` a job asks for: its own; of parts, which may meet in a SLURM array,
        the largest one's.

        An array has one time limit and one size of memory for all its jobs.
        """
        run = self._of(wildcards)
        arrayed = run.stage == "recover" and run.recipe.recover.synthetic
        return max(self._recovered or [run], key=need) if arrayed else run

    @cached_property
    def _recovered(self) -> list[Run]:
        """The unfinished runs of the call's tables whose images a model makes."""
        return [
            work.run
            for work in works_of(self.experiments, self._asked or tuple(self.experiments.tables))
            if work.missing and work.run.stage == "recover" and work.run.recipe.recover.synthetic
        ]

    def start(self, wildcards: Wildcards) -> list[str]:
        """The mark that the weights a squeeze job starts from are at hand."""
        run = self._of(wildcards)
        fetched = (
            run.recipe.squeeze.init and not run.recipe.squeeze.weights and not self._squeezed(run)
        )
        return [self.layout.fetched(run)] if fetched else []

    def _squeezed(self, run: Run) -> bool:
        """Whether a model is there: a pulled one comes without what it was trained on, and is not
        trained again.
        """
        return run.stage == "squeeze" and Path(self.layout.model(run)).is_file()

    def _kept(self, run: Run, wildcards: Wildcards) -> bool:
        """Whether a run JSON is there, and so is not made again, whatever became of what it was
        made from.

        No measured number is deleted because its labels are newer, or are made again for another
        seed.
        """
        if self._whole or run.stage not in MEASURING:
            return False
        path = self.layout.run_json(run, int(wildcards.seed))
        return path not in self._forced and Path(path).is_file()

    def _inputs(self, wildcards: Wildcards, stage: str) -> list[Run]:
        run = self._of(wildcards)
        if self._kept(run, wildcards):
            return []
        return [
            needed for needed in inputs(run, self.settings.labels.max_gb) if needed.stage == stage
        ]

    def decoded(self, wildcards: Wildcards) -> list[str]:
        """The decoded validation images that a job of a streamed data set tests on."""
        if self._squeezed(self._of(wildcards)):
            return []
        return [self.layout.decoded(run) for run in self._inputs(wildcards, "decode")]

    def model(self, wildcards: Wildcards) -> list[str]:
        """The squeezed model that a job reads.

        None for real and imported images, and for labels that need none.
        """
        return [self.layout.model(run) for run in self._inputs(wildcards, "squeeze")]

    def shards(self, wildcards: Wildcards) -> list[str]:
        """The part folders that a job reads."""
        ipc = self._of(wildcards).ipc
        return [
            self.layout.part(run, part)
            for run in self._inputs(wildcards, "recover")
            for part in parts(run, ipc)
        ]

    def labels(self, wildcards: Wildcards) -> list[str]:
        """A validate job's label store."""
        return [self.layout.labels(run) for run in self._inputs(wildcards, "relabel")]

    def drawn(self, wildcards: Wildcards) -> dict[str, Any]:
        """What a figure is declared to show: Snakemake draws again what it was changed for."""
        return self.experiments.figures[wildcards.figure].model_dump(mode="json")

    def recipe(self, wildcards: Wildcards) -> dict[str, Any]:
        """What a run's result depends on: Snakemake re-runs what it was changed for."""
        return dict(self._of(wildcards).spec)

    def _measuring(self) -> list[Run]:
        """Every run of the scale's tables that leaves measurements."""
        return [run for run in self.experiments.runs().values() if run.stage in MEASURING]

    def _seeds(self, runs: Iterable[Run]) -> list[str]:
        """The JSONs of measuring runs."""
        return [
            self.layout.run_json(run, seed) for run in runs for seed in self.experiments.seeds(run)
        ]

    def _wanted(self, paths: Iterable[str]) -> list[str]:
        """What a table or figure reads: all of it, or with `cells=present` what exists."""
        return [
            path
            for path in dict.fromkeys(paths)
            if self.settings.cells == "all" or Path(path).exists()
        ]

    def _of_tables(self, tables: Iterable[str]) -> list[str]:
        runs = [run for table in tables for run in self.experiments.requested_runs(table)]
        return self._wanted(self._seeds(runs))

    def measurements(self, wildcards: Wildcards) -> list[str]:
        """The run JSONs a table reads.

        All of its cells', or with `cells=present` those that exist.
        """
        return self._of_tables([wildcards.table])

    def plotted(self, wildcards: Wildcards) -> list[str]:
        """The run JSONs a plot reads."""
        return self._of_tables(self.experiments.figures[wildcards.figure].tables)

    def pictured(self, wildcards: Wildcards) -> list[str]:
        """The first part of each recover run that a figure shows."""
        return self._pictured(wildcards.figure)

    def _pictured(self, name: str) -> list[str]:
        return self._wanted(self.layout.part(run, 0) for _, run in self.experiments.pictured(name))

    def demo(self) -> list[str]:
        """The demo's table and pictures, where there is one."""
        if "demo" not in self.experiments.tables:
            return []
        names = [name for name in self.experiments.figures if name.startswith("demo-")]
        return [self.layout.table("demo"), *(self.layout.figure(name) for name in names)]

    def reported(self) -> list[str]:
        """What the report shows: the demo's table and pictures, or else all of the scale's."""
        return self.demo() or self.tables() + self.figures()

    def report_reasons(self) -> list[str]:
        """What makes the report anew; a table always runs again, so that it is none by itself."""
        tables = ["demo"] if self.demo() else list(self.experiments.tables)
        return self._of_tables(tables) + [path for path in self.reported() if path.endswith(".png")]


def array_task(arguments: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """The command of a SLURM array's later task, which the plugin hands to a snakemake that does
    the first one's job.

    That snakemake would look for the first task's output, and fail while it is missing (issue 447
    of snakemake-executor-plugin-slurm 2.8): it has to give way to the command. None where there is
    nothing to give way to.
    """
    task, first = (environment.get(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN"))
    values = [
        value for flag, _, value in (word.partition("=") for word in arguments) if flag == ARRAY
    ]
    if task is None or task == first or not values:
        return None
    packed = json.loads(base64.b64decode(values[0]))[task]
    return zlib.decompress(bytes.fromhex(packed)).decode()


def one_of(names: Iterable[str]) -> str:
    """A wildcard constraint: one of these names, and nothing if there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"
