"""What the subcommands that move data and artifacts do: DVC, packs, parcels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cda.commands import Arguments, experiments_of
from cda.errors import ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.runs import Run


def _whole_scale(experiments: ExperimentSet) -> ExperimentSet:
    """Every data set and control, whatever this call is narrowed to."""
    return ExperimentSet(
        experiments.settings.model_copy(update={"datasets": "all", "controls": "all"})
    )


def _asked(experiments: ExperimentSet, targets: Sequence[str]) -> list[Run]:
    """The runs of the tables `targets`, by default all of the scale."""
    names = tuple(experiments.table_of(target) for target in targets)
    return list((experiments.runs(names) if names else _whole_scale(experiments).runs()).values())


def track(arguments: Arguments) -> None:
    """Hand finished runs to DVC."""
    from cda.artifacts.track import track

    experiments = experiments_of(arguments)
    track(experiments, _asked(experiments, arguments.targets))


def pull(arguments: Arguments) -> None:
    """Bring what a table or figure needs."""
    from cda.artifacts.pull import pull

    experiments = experiments_of(arguments)
    options = {"everything": arguments.all, "verify": arguments.verify, "dry": arguments.dry_run}
    pull(experiments, _whole_scale(experiments), arguments.targets, **options)


def order(arguments: Arguments) -> None:
    """Put the times of what is here in order."""
    from cda.artifacts.order import order

    print(f"{order(_whole_scale(experiments_of(arguments)))} times set.")


def _bytes(megabytes: int) -> int:
    if not 1 <= megabytes <= 4000:
        raise ConfigError(f"--megabytes {megabytes}: must be from 1 to 4000")
    return megabytes * 10**6


def pack(arguments: Arguments) -> None:
    """Pack a data set into a few files."""
    from cda.data import sources
    from cda.experiments.paths import data_root

    experiments, limit = experiments_of(arguments), _bytes(arguments.megabytes)
    root = data_root(experiments.settings, arguments.dataset)
    print(sources.pack(experiments.dataset(arguments.dataset), root, Path(arguments.out), limit))


def parcel(arguments: Arguments) -> None:
    """Pack what is worth bringing back."""
    from cda.artifacts.parcels import write_parcels

    if arguments.files < 0:
        raise ConfigError(f"--files {arguments.files}: must be at least 0, which is any number")
    experiments, limit = experiments_of(arguments), _bytes(arguments.megabytes)
    runs = _asked(experiments, arguments.targets)
    write_parcels(experiments, runs, Path(arguments.out), limit, arguments.files)


def unpack(arguments: Arguments) -> None:
    """Put what came in parcels in place."""
    from cda.artifacts.parcels import unpack

    unpack(_whole_scale(experiments_of(arguments)), Path(arguments.folder))
