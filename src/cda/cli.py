"""The `cda` command: each subcommand's parser beside what it does. Heavy imports wait inside.

The stages' subcommands are in `cda.stages.commands`; those here make tables, plan, check and run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from cda import __version__
from cda.command import COMMANDS, Arguments, command, option
from cda.config.load import load_settings, read_overrides
from cda.config.names import LAYOUTS
from cda.errors import AlreadyDone, CdaError, ConfigError, Interrupted
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import Job, figure_jobs, graph_of, table_jobs
from cda.progress import log
from cda.stages.commands import experiments_of
from cda.text import nearest

REMOVED = {
    "campaign": "use cda run TABLE... [--minutes N]",
    "runs": "use cda list TABLE",
    "pack": "use tar and split, as docs/artifacts.md shows",
    "parcel": "use tar on what cda list TABLE --files prints, as docs/artifacts.md shows",
    "unpack": "use tar -x, as docs/artifacts.md shows",
    "order": "not needed: Snakemake compares no times between stages",
    "unlock": "use scancel --name, then snakemake --unlock, as docs/cluster.md shows",
}


# Options of several subcommands

TABLES = option("targets", nargs="*", metavar="TABLE", help="table4 or its path; default: all")
TARGET = "a table or figure: table4, figure8, results/table4.csv"
DRY = option("--dry-run", "-n", action="store_true", help="only print what would happen")
GPU = option(
    "--gpu", metavar="NAME", help="a device in config/devices.yaml; default: this machine's"
)


def _tables(experiments: ExperimentSet, targets: Sequence[str]) -> list[str]:
    """The tables that names or paths name, by default all; raises ConfigError."""
    return [experiments.table_of(target) for target in targets] or list(experiments.tables)


def _target(experiments: ExperimentSet, target: str) -> str:
    """The table or figure that a name or a path names; raises ConfigError."""
    path, figures = Path(target), experiments.figures
    if path.stem in figures:
        experiments.require_own(path)
        experiments.require_pictured(path.stem)
        return path.stem
    if path.stem not in experiments.tables:
        known = [*experiments.tables, *figures]
        raise ConfigError(experiments.absent(path.stem, "table or figure", known))
    return experiments.table_of(target)


def _not_run(experiments: ExperimentSet, target: str) -> list[str]:
    """Why some cells of a table cannot run; nothing for a figure."""
    return experiments.not_run(target) if target in experiments.tables else []


def _jobs(experiments: ExperimentSet, target: str) -> list[Job]:
    """The jobs whose outputs a table or figure reads."""
    if target in experiments.figures:
        return figure_jobs(experiments, target)
    return table_jobs(experiments, target)


# Tables and figures


@command(
    "tables and figures",
    option("name", help="for instance table4"),
    option("--out", metavar="CSV", help="default: the table's standard place"),
    option("--show", action="store_true", help="also print the table"),
)
def table(arguments: Arguments) -> None:
    """Make a table from the run JSONs that exist."""
    from cda.results import tables

    experiments = experiments_of(arguments)
    name = experiments.table_of(arguments.name)
    out = Path(arguments.out or experiments.layout.table(name))
    for line in experiments.not_run(name):
        log(line)
    tables.write(experiments, name, out)
    if arguments.show:
        print(out.with_suffix(".md").read_text(encoding="utf-8"))


@command(
    "tables and figures",
    option("name", help="for instance figure5"),
    option("--out", metavar="PNG", help="default: the figure's standard place"),
)
def figure(arguments: Arguments) -> None:
    """Draw a figure."""
    from cda.results import figures

    experiments = experiments_of(arguments)
    out = Path(arguments.out or experiments.layout.figure(arguments.name))
    figures.draw(experiments, arguments.name, out)


@command(
    "tables and figures",
    option("--out", metavar="JSON", help="default: results/metrics.json"),
)
def metrics(arguments: Arguments) -> None:
    """Write every measured number to one JSON file."""
    from cda.results import metrics

    experiments = experiments_of(arguments)
    default = f"{experiments.layout.results}/metrics.json"
    metrics.write(experiments, Path(arguments.out or default))


@command("tables and figures")
def reproduction(arguments: Arguments) -> None:
    """Print how much of the paper is measured (docs/reproduction.md)."""
    from cda.results.reproduction import page

    print(page(read_overrides(arguments.config)), end="")


# Before a run, and the run itself


@command(
    "running",
    option("name", metavar="NAME", help="of the data set: letters, digits, _ and -"),
    option(
        "--layout",
        choices=LAYOUTS,
        help="how its files are arranged (default: tiny_imagenet if it has "
        "val/val_annotations.txt, else image_folder, a folder for each class)",
    ),
    option("--data", metavar="PATH", help="its folder, which is linked; default: data/NAME"),
    GPU,
)
def init(arguments: Arguments) -> None:
    """Declare a data set of your own: its file, a recipe for this machine, a table.

    Reads the folder and writes config/datasets/NAME.yaml and config/recipes/NAME.yaml, each line
    with its reason. Overwrites nothing. A folder without held-out images is split by links.
    """
    from cda.pipeline import init

    settings = load_settings(read_overrides(arguments.config))
    path = Path(arguments.data) if arguments.data else None
    print(
        init.declare(
            settings, arguments.name, layout=arguments.layout, path=path, gpu=arguments.gpu
        )
    )


@command(
    "running",
    option("target", nargs="?", metavar="TARGET", help=TARGET),
    option("--files", action="store_true", help="print the paths of outputs that exist, for tar"),
    option(
        "--abandoned",
        action="store_true",
        help="instead, of all scales: artifacts that no table, figure or tracked run needs",
    ),
    option("--delete", action="store_true", help="remove the abandoned ones"),
)
def list_(arguments: Arguments) -> None:
    """List the runs of a table or figure, and how many of their jobs are done.

    Inputs come first, each with the methods that read it. Cells of a table that cannot run are
    named after its runs.
    """
    experiments = experiments_of(arguments)
    if arguments.abandoned == bool(arguments.target) or arguments.delete > arguments.abandoned:
        arguments.error("takes a TARGET, or --abandoned with or without --delete")
    if arguments.abandoned:
        from cda.pipeline.abandoned import list_abandoned

        list_abandoned(experiments.config, delete=arguments.delete)
        return
    target = _target(experiments, arguments.target)
    jobs = graph_of(experiments).all(_jobs(experiments, target))
    if arguments.files:
        print("\n".join(_existing_files(experiments, jobs)))
        return
    methods = experiments.methods(target)
    for run in {job.run.id: job.run for job in jobs}.values():
        own = [job for job in jobs if job.run.id == run.id]
        state = f"{sum(job.is_done() for job in own)}/{len(own)} done"
        whose = ", ".join(methods.get(run.id, ()))
        print(f"{run.stage:9s} {run.dataset:14s} {run.id}  {state}  {whose}".rstrip())
    for line in _not_run(experiments, target):
        print(line)


def _existing_files(experiments: ExperimentSet, jobs: Sequence[Job]) -> list[str]:
    """Outputs that exist; for a squeezed model its folder."""
    found = [job for job in jobs if job.is_done()]
    folder = experiments.layout.run_folder
    return [folder(job.run) if job.run.stage == "squeeze" else job.output for job in found]


@command(
    "running",
    TABLES,
    GPU,
    option(
        "--gpus",
        type=int,
        default=1,
        metavar="N",
        help="devices, or jobs of a CPU, at once (default 1)",
    ),
)
def plan(arguments: Arguments) -> None:
    """Estimate what tables cost: GPU-hours, wall time, disk."""
    from cda.pipeline import plan
    from cda.pipeline.rates import device_kind

    experiments = experiments_of(arguments)
    gpu = device_kind(experiments, arguments.gpu)
    print(plan.plan(experiments, _tables(experiments, arguments.targets), gpu, arguments.gpus))
    if arguments.gpu is None:
        other = experiments.settings.runtime.gpu
        print(f"\nFor the device of this machine; for another: --gpu {other}")


@command(
    "running",
    TABLES,
    option("--deep", action="store_true", help="decode every image, and list the damaged ones"),
)
def check(arguments: Arguments) -> int:
    """Check what is here: data, weights, GPU, SLURM, DVC.

    Exit status 1 if data or weights that the tables need are missing.
    """
    from cda.pipeline import check

    experiments = experiments_of(arguments)
    names = [experiments.table_of(target) for target in arguments.targets]
    text, complete = check.check(experiments, names, arguments.deep)
    print(text)
    return int(not complete)


@command(
    "running",
    option("targets", nargs="+", metavar="TARGET", help=TARGET),
    option(
        "--minutes",
        type=float,
        metavar="N",
        help="stop cleanly within this time (default: no limit)",
    ),
    DRY,
    GPU,
)
def run(arguments: Arguments) -> None:
    """Do the missing jobs of tables and figures here, without Snakemake.

    Then make the tables and figures. Jobs run one after another. A stopped job saves its work, and
    the next call continues it.
    """
    from cda.pipeline import local
    from cda.pipeline.limits import rough_multiply_adds
    from cda.pipeline.rates import device_kind, measure, rates_of

    experiments = experiments_of(arguments)
    targets = [_target(experiments, target) for target in arguments.targets]
    rates = rates_of(experiments.config, device_kind(experiments, arguments.gpu))
    everything, settings = experiments.runs().values(), experiments.settings
    measure(rates, everything, settings, experiments.layout, rough_multiply_adds)
    local.run_tables(
        experiments,
        read_overrides(arguments.config),
        targets,
        rates,
        minutes=arguments.minutes,
        dry=arguments.dry_run,
    )
    if arguments.dry_run:
        for line in (line for one in targets for line in _not_run(experiments, one)):
            log(line)
        return
    for target in targets:
        made = figure if target in experiments.figures else table
        if made is table or all(job.is_done() for job in _jobs(experiments, target)):
            made(Arguments(name=target, out=None, show=False, config=arguments.config))
            folder, suffix = experiments.layout.results, "png" if made is figure else "md"
            print(f"{folder}/{target}.{suffix}")


# DVC


def _of_scale(experiments: ExperimentSet) -> ExperimentSet:
    """The same scale with every data set and control."""
    everything = {"datasets": "all", "controls": "all"}
    return ExperimentSet(experiments.settings.model_copy(update=everything))


@command("DVC", TABLES)
def track(arguments: Arguments) -> None:
    """Track the finished runs of tables in DVC."""
    from cda.pipeline import dvc

    experiments = experiments_of(arguments)
    names = tuple(experiments.table_of(target) for target in arguments.targets)
    runs = experiments.runs(names) if names else _of_scale(experiments).runs()
    dvc.track(experiments, list(runs.values()))


@command(
    "DVC",
    option("targets", nargs="+", metavar="TARGET", help=TARGET),
    option("--all", action="store_true", help="bring what finished cells are made from, too"),
    DRY,
)
def pull(arguments: Arguments) -> None:
    """Bring what the missing cells of tables and figures are made from."""
    from cda.pipeline import dvc

    experiments = experiments_of(arguments)
    targets = [_target(experiments, target) for target in arguments.targets]
    jobs = [job for target in targets for job in _jobs(experiments, target)]
    dvc.pull(experiments, jobs, everything=arguments.all, dry=arguments.dry_run)


# Configuration


@command(
    "configuration",
    option("action", choices=["show"], help="the word show"),
    option("run", metavar="RUN", help="the run's id; `cda list TARGET` prints them"),
)
def config(arguments: Arguments) -> None:
    """Print a run's values, each with its source: cda config show RUN."""
    run = experiments_of(arguments).run(arguments.run)
    values = run.recipe.model_dump(mode="json", by_alias=True)
    lines = [f"{run.stage} {run.id}", f"  data set: {json.dumps(run.data.identity())}"]
    lines += [f"  {name}: {other.id}" for name, other in run.upstream.items()]
    lines += [f"  model: {run.model}"] if run.model else []
    counted = set(run.spec.get("recipe", ()))  # decode has none
    for part in ("architecture", run.stage) if run.model else (run.stage,):
        for key, value in values.get(part, {}).items():
            sourced = run.values.get(f"{part}.{key}")
            source = "default"
            if sourced:
                source = f"{sourced.source or 'no source in its comment'} ({sourced.where})"
            unused = part != "architecture" and key not in counted
            note = "  [changes nothing here]" if unused else ""
            lines.append(f"  {part}.{key}: {json.dumps(value)}  # {source}{note}")
    print("\n".join(lines))


# The command line


def build_parser() -> argparse.ArgumentParser:
    """The parser of every subcommand; `--help` lists them by group."""
    groups: dict[str, list[str]] = {}
    for name, one in COMMANDS.items():
        groups.setdefault(one.group, []).append(
            f"  {name:13s} {one.description.splitlines()[0].rstrip('.')}"
        )
    listed = "\n\n".join("\n".join([f"{group}:", *lines]) for group, lines in groups.items())
    top = argparse.ArgumentParser(
        prog="cda",
        usage="cda COMMAND [OPTION ...]; `cda COMMAND --help` prints its options",
        description="Dataset distillation in steps: squeeze, recover, relabel, validate, table.",
        epilog=listed,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=__version__)
    subcommands = top.add_subparsers(
        prog="cda", required=True, metavar="COMMAND", help=argparse.SUPPRESS
    )
    for name, one in COMMANDS.items():
        parser = subcommands.add_parser(name, description=one.description)
        for flags, settings in one.options:
            parser.add_argument(*flags, **settings)
        parser.add_argument(
            "--config",
            nargs="+",
            default=[],
            metavar="KEY=VALUE",
            action="extend",
            help="settings of this call, with dots for nested keys: scale=demo runtime.device=cpu",
        )
        parser.set_defaults(function=one.function, error=parser.error)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    A user's mistake is one line and status 1, a wrong command line status 2; a signal ends with 128
    plus its number.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in REMOVED:
        print(f"cda: {words[0]} was removed; {REMOVED[words[0]]}", file=sys.stderr)
        return 2
    if words and words[0] not in COMMANDS and (near := nearest(words[0], COMMANDS)):
        print(f"cda: there is no command {words[0]!r}{near}; `cda --help`", file=sys.stderr)
        return 2
    arguments, unknown = build_parser().parse_known_args(words)
    if unknown:
        arguments.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        status = arguments.function(arguments)
        sys.stdout.flush()
    except Interrupted as error:
        print(f"cda: {error}", file=sys.stderr)
        return 128 + error.number
    except AlreadyDone as message:
        print(f"cda: {message}", file=sys.stderr)
        return int("RANK" in os.environ)  # torchrun ends a job's other processes only if one fails
    except CdaError as error:
        print(f"cda: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader closed the pipe: cda list table4 | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
