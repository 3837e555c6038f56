"""After a run: hand its finished outputs to DVC, once, from the head process.

A run that is tracked already gets what is new, entry by entry (`dvc add` of a part), so that parts
which were never pulled stay in it: adding its whole folder would drop them.
"""

from __future__ import annotations

from pathlib import Path

from cda.artifacts.needs import OUTPUTS, TRAVELLING, made, require_versioned
from cda.artifacts.order import keep_time
from cda.errors import ArtifactError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.runs import Run
from cda.pipeline import dvc
from cda.progress import log


def finished(experiments: ExperimentSet, run: Run) -> list[str]:
    """Outputs of a run's finished jobs; none of a run that is half there."""
    entries = made(experiments, run)
    names = {Path(entry).name for entry in entries}
    if run.stage == "recover":
        return [entry for entry in entries if Path(entry).name.removeprefix("part-").isdigit()]
    return entries if names == set(OUTPUTS[run.stage]) else []


def track(experiments: ExperimentSet, runs: list[Run]) -> None:
    """Track what is finished of `runs` and not tracked yet, and say what.

    Raises ArtifactError, ConfigError.
    """
    require_versioned(experiments)
    with dvc.exclusive():
        travelling = [run for run in runs if run.stage in TRAVELLING]
        there = {
            experiments.layout.run_folder(run): finished(experiments, run) for run in travelling
        }
        there = {folder: entries for folder, entries in there.items() if entries}
        known = {folder: told for folder in there if (told := dvc.tracked(folder)) is not None}
        changes = dvc.changes(list(known))
        new = {
            folder: _new(folder, entries, known.get(folder), changes)
            for folder, entries in there.items()
        }
        new = {folder: entries for folder, entries in new.items() if entries}
        sizes = {entry: dvc.size_of(Path(entry)) for entries in there.values() for entry in entries}
        total = sum(sizes[entry] for entries in new.values() for entry in entries)
        if new:
            for entry in (entry for entries in new.values() for entry in entries):
                keep_time(entry)
            log(f"Hashing {len(new)} runs, {dvc.human_bytes(total)}.")
            dvc.run_dvc(
                "add",
                *(
                    path
                    for folder in new
                    for path in (new[folder] if folder in known else [folder])
                ),
            )
        for folder, entries in there.items():
            if folder in new or not known[folder].noted:
                dvc.note_sizes(folder, {Path(entry).name: sizes[entry] for entry in entries})
    for folder, entries in new.items():
        names = ", ".join(Path(entry).name for entry in entries)
        print(
            f"tracked {folder}: {names} ({dvc.human_bytes(sum(sizes[entry] for entry in entries))})"
        )
    left = len(there) - len(new)
    print(f"{len(new)} runs tracked, {dvc.human_bytes(total)}; {left} were already.")
    if new:
        print(
            f"To publish them: dvc push; git add '{experiments.layout.artifacts}/**/*.dvc'; "
            "git commit"
        )


def _new(
    folder: str, entries: list[str], known: dvc.Tracked | None, changes: dvc.Changes
) -> list[str]:
    """The entries to add; raises ArtifactError where adding would drop something."""
    if known is None:
        return entries
    if folder in changes.unknown:
        raise ArtifactError(
            f"{dvc.file_of(folder)}: what it tracks is neither in DVC's cache nor on a remote "
            "that is configured here; "
            "dvc remote add --local --default NAME URL, then the same command again"
        )
    new = [entry for entry in entries if changes.new(entry)]
    for entry in new:
        if changes.lacks(entry):
            raise ArtifactError(
                f"{entry}: lacks files that are tracked, and has others that are not; remove "
                "it and pull it, or make "
                "it again, before it is tracked"
            )
    return new
