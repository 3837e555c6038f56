"""The lines before a snakemake call: how far what it requests is, and what is not here.

It reads the words of the command line, for Snakemake has not parsed its targets yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import Job, figure_jobs, graph_of, table_jobs
from cda.experiments.paths import missing_data
from cda.experiments.runs import MEASURING

# Words that show that a call without the path of a result is no oversight.
OTHER_TARGETS = {"all", "tables", "figures", "demo", "--target-jobs"}


def summary(experiments: ExperimentSet, words: Sequence[str]) -> str:
    """How much of each requested table and figure is done, or of the scale if none is named.

    Then lines for cells that cannot run, and one for data sets that are not here.
    """
    settings, tables = experiments.settings, list(experiments.tables)
    requested = _requested(experiments, words)
    lines = [_progress(experiments, path, jobs) for path, jobs in requested.items()]
    jobs = [job for own in requested.values() for job in own]
    if not requested:
        jobs = table_jobs(experiments, *tables)
        done = sum(job.is_done() for job in jobs)
        state = "all done, nothing is computed again" if done == len(jobs) else f"{done} done"
        lines.append(f"Scale {settings.scale}: {len(jobs)} measurements in its tables, {state}.")
        bare = not any("/" in word or word in OTHER_TARGETS for word in words)
        if bare and len(tables) > 1 and done < len(jobs) and settings.cells == "all":
            lines.append(_hint(experiments, words))
    named = [table for table in tables if experiments.layout.table(table) in requested]
    lines += [f"{line}." for table in named for line in experiments.not_run(table)]
    notes = {cell.note for table in tables for cell in experiments.cells(table) if not named}
    lines += [f"Not run: {n}." for n in sorted(notes) if n.startswith("data set")]
    absent = missing_data(settings, (job.run for job in jobs if not job.is_done()))
    if absent:
        lines.append(f"Not here: data sets {', '.join(absent)}; cda check names what to get.")
    return "\n".join(lines)


def _requested(experiments: ExperimentSet, words: Sequence[str]) -> dict[str, list[Job]]:
    """The jobs whose outputs each named table or figure reads, by its path."""
    found, results = {}, Path(experiments.layout.results)
    for path in map(Path, words):
        if path.parent == results and path.suffix in (".csv", ".md"):
            if path.stem in experiments.tables:
                found[experiments.layout.table(path.stem)] = table_jobs(experiments, path.stem)
        elif path.parent == results and path.stem in experiments.figures:
            found[experiments.layout.figure(path.stem)] = figure_jobs(experiments, path.stem)
    return found


def _progress(experiments: ExperimentSet, path: str, jobs: Sequence[Job]) -> str:
    kind = "measurements" if all(job.run.stage in MEASURING for job in jobs) else "sets of images"
    done = sum(job.is_done() for job in jobs)
    left = len(graph_of(experiments).missing(jobs)) if experiments.settings.cells == "all" else 0
    rest = f"{left} job{'s' * (left != 1)} left to do" if left else "nothing is computed"
    return f"{path}: {done} of {len(jobs)} {kind} done, {rest}."


def _hint(experiments: ExperimentSet, words: Sequence[str]) -> str:
    """How to request one table in place of all."""
    scale, tables = experiments.settings.scale, experiments.tables
    name = next((one for one, table in tables.items() if table.reported), next(iter(tables)))
    path = experiments.layout.table(name)
    dry = "-n " if {"-n", "--dry-run", "--dryrun"} & set(words) else ""
    config = "" if scale == "paper" else f" --config scale={scale}"
    return f"This call plans all tables and figures; for one: snakemake {dry}{path}{config}"
