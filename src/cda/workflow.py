"""What the rules ask: input functions and parameters as plain, tested Python. Imports neither snakemake nor torch."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cda.errors import ConfigError
from cda.experiments import ExperimentSet, from_environment, load_settings
from cda.paths import Layout
from cda.runs import Run, label_mode, parts


class Wildcards(Protocol):
    """The wildcards that rules use; a rule has some of them."""

    artifacts: str
    results: str
    run: str
    part: str
    seed: str
    table: str


class Plan:
    """The experiments of one snakemake call and what each job of it needs."""

    def __init__(self, overrides: Mapping[str, Any], arguments: Sequence[str] = ()) -> None:
        given = from_environment() | dict(overrides)
        self.experiments = ExperimentSet(load_settings(given))
        self.settings = self.experiments.settings
        self.layout = Layout(self.settings.scale)
        exported = f"export CDA_CONFIG={shlex.quote(json.dumps(given, sort_keys=True))}; "
        self.prefix = exported.replace("{", "{{").replace("}", "}}")  # snakemake formats it
        self.threads = self.settings.runtime.cpu_threads
        self._check_targets(arguments)

    def _check_targets(self, arguments: Sequence[str]) -> None:
        """Raises ConfigError for a result on the command line that is another scale's, or no table's."""
        known = {"paper", *(path.stem for path in (self.experiments.config / "scales").glob("*.yaml"))}
        if "demo" in arguments and "demo" not in self.experiments.tables:
            raise ConfigError(f"demo is no target of scale {self.settings.scale}; add --config scale=demo")
        for target in arguments:
            match = re.fullmatch(r"results/(?:([\w-]+)/)?([\w-]+?)(\.csv|\.md|-(?:distilled|progress)\.png)", target)
            if not match or (match[1] and match[1] not in known):
                continue
            asked, scale = match[1] or "paper", self.settings.scale
            if asked != scale:
                mend = f"add --config scale={asked}, or ask for {self.layout.results}/{match[2]}{match[3]}"
                raise ConfigError(f"{target} is of scale {asked}, but this is scale {scale}; {mend}")
            if match[2] not in self.experiments.tables:
                there = ", ".join(self.experiments.tables)
                raise ConfigError(f"{target}: there is no table {match[2]} at scale {scale}; there is {there}")

    def summary(self) -> str:
        """What is there already, in a line; and which data sets of its tables are not declared."""
        wanted = self._seeds(self._validate_runs())
        done = sum(Path(path).is_file() for path in wanted)
        left = "all done already: nothing is computed again" if done == len(wanted) else f"{done} of {len(wanted)} done"
        if self.settings.cells == "present":
            left = f"{done} of {len(wanted)} present, the others stay not_run"
        tables = self.experiments.tables
        notes = sorted({cell.note for table in tables for cell in self.experiments.cells(table) if cell.note})
        lines = [f"Scale {self.settings.scale}, measurements of all its tables: {left}."]
        return "\n".join(lines + [f"Not run: {note}." for note in notes if "not declared" in note])

    def _run(self, wildcards: Wildcards, stage: str) -> Run:
        return self.experiments.run(wildcards.run, stage)

    def tables(self) -> list[str]:
        """Every table of the scale."""
        return [self.layout.table(name) for name in self.experiments.tables]

    def recovery_model(self, wildcards: Wildcards) -> list[str]:
        """A recover job's model; none for real and imported images."""
        return [
            self.layout.model(run) for name, run in self._run(wildcards, "recover").upstream.items() if name == "model"
        ]

    def shards(self, wildcards: Wildcards) -> list[str]:
        """The part folders that a relabel or validate job reads."""
        run = self.experiments.run(wildcards.run)
        labels = run.upstream["labels"] if run.stage == "validate" else run
        images = labels.upstream["images"]
        return [self.layout.part(images, part) for part in parts(images, labels.ipc)]

    def _teacher(self, labels: Run, mode: str) -> list[str]:
        used = label_mode(labels, self.settings.labels.max_gb) == mode
        return [self.layout.model(labels.upstream["model"])] if used else []

    def relabel_model(self, wildcards: Wildcards) -> list[str]:
        """A relabel job's model, if it stores logits."""
        return self._teacher(self._run(wildcards, "relabel"), "fp16")

    def labels(self, wildcards: Wildcards) -> str:
        """A validate job's label store."""
        return self.layout.labels(self._run(wildcards, "validate").upstream["labels"])

    def online_model(self, wildcards: Wildcards) -> list[str]:
        """A validate job's relabel model, if it runs while validating."""
        return self._teacher(self._run(wildcards, "validate").upstream["labels"], "online")

    def recipe(self, wildcards: Wildcards) -> dict[str, Any]:
        """What a run's result depends on: Snakemake re-runs what it was changed for."""
        return dict(self.experiments.run(wildcards.run).spec)

    def _validate_runs(self) -> list[Run]:
        """Every validate run of the scale's tables."""
        return [run for run in self.experiments.runs().values() if run.stage == "validate"]

    def _seeds(self, runs: Iterable[Run]) -> list[str]:
        """The JSONs of validate runs."""
        return [self.layout.run_json(run, seed) for run in runs for seed in range(self.settings.seeds)]

    def _wanted(self, runs: Iterable[Run]) -> list[str]:
        """The JSONs that a table reads: all of its runs', or with `cells=present` those that exist."""
        return [path for path in self._seeds(runs) if self.settings.cells == "all" or Path(path).is_file()]

    def measurements(self, wildcards: Wildcards) -> list[str]:
        """The run JSONs a table reads: all of its cells', or with `cells=present` those that exist."""
        return self._wanted(cell.run for cell in self.experiments.cells(wildcards.table) if cell.run)

    def pictured(self, wildcards: Wildcards) -> list[str]:
        """The first part of each recover run of a table: what its pictures show."""
        runs = [
            cell.run.upstream["labels"].upstream["images"]
            for cell in self.experiments.cells(wildcards.table)
            if cell.run
        ]
        return list(dict.fromkeys(self.layout.part(run, 0) for run in runs))

    def pictures(self) -> list[str]:
        """The demo's pictures, at its scale."""
        return [
            self.layout.picture("demo", kind) for kind in ("distilled", "progress") if "demo" in self.experiments.tables
        ]

    def reported(self) -> list[str]:
        """What the report shows: the scale's tables, and the demo's pictures."""
        return self.tables() + self.pictures()

    def report_reasons(self) -> list[str]:
        """What makes the report anew; a table always runs again, so that it is none by itself."""
        return self._wanted(self._validate_runs()) + self.pictures()


def growing(base: int) -> Any:
    """A resource that grows with each attempt: `base` minutes (or MB) times the attempt's number."""

    def grown(_wildcards: Any, attempt: int) -> int:
        return base * attempt

    return grown
