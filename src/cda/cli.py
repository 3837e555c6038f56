"""The command line: `cda <stage> --run ID` does one run's stage, the rest looks at what there is.

Stages know no scheduler: inputs and outputs have standard places, or are given.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cda import __version__
from cda.errors import CdaError, ConfigError, Interrupted
from cda.experiments import ExperimentSet, from_environment, load_settings
from cda.runs import Run, parts

if TYPE_CHECKING:
    from cda.stages.context import Context

Arguments = argparse.Namespace


def _overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`a.b=value` pairs as nested values."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--config {pair}: must be KEY=VALUE, for instance scale=demo")
        *parents, last = key.split(".")
        branch = values
        try:
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[last] = yaml.safe_load(text)
        except (yaml.YAMLError, TypeError, AttributeError):
            raise ConfigError(f"--config {pair}: cannot be read; must be KEY=VALUE, for instance scale=demo") from None
    return values


def _experiments(arguments: Arguments) -> ExperimentSet:
    return ExperimentSet(load_settings(from_environment() | _overrides(arguments.config)))


def _context(arguments: Arguments, stage: str) -> Context:
    experiments = _experiments(arguments)
    run = experiments.run(arguments.run, stage)
    from cda.stages.context import Context

    return Context(run, experiments.settings, experiments.layout)


def _model(arguments: Arguments, context: Context, run: Run | None) -> Path | None:
    if arguments.model is not None:
        return Path(arguments.model)
    return Path(context.layout.model(run)) if run is not None else None


def _squeeze(arguments: Arguments) -> None:
    context = _context(arguments, "squeeze")
    from cda.stages import squeeze

    squeeze.run(context, Path(arguments.out or context.layout.model(context.run)))


def _recover(arguments: Arguments) -> None:
    context = _context(arguments, "recover")
    from cda.stages import recover

    out = Path(arguments.out or context.layout.part(context.run, arguments.part))
    recover.run(context, arguments.part, _model(arguments, context, context.run.upstream.get("model")), out)


def _images(arguments: Arguments, context: Context, images: Run) -> Path:
    return Path(arguments.images or context.layout.run_folder(images))


def _relabel(arguments: Arguments) -> None:
    context = _context(arguments, "relabel")
    from cda.stages import relabel

    run = context.run
    model = _model(arguments, context, run.upstream.get("model"))
    relabel.run(
        context,
        _images(arguments, context, run.upstream["images"]),
        model,
        Path(arguments.out or context.layout.labels(run)),
    )


def _validate(arguments: Arguments) -> None:
    context = _context(arguments, "validate")
    from cda.stages import validate

    labels = context.run.upstream["labels"]
    validate.run(
        context,
        _images(arguments, context, labels.upstream["images"]),
        Path(arguments.labels or context.layout.labels(labels)),
        _model(arguments, context, labels.upstream.get("model")),
        arguments.seed,
        Path(arguments.out or context.layout.run_json(context.run, arguments.seed)),
    )


def _table(arguments: Arguments) -> None:
    from cda.results import tables

    experiments = _experiments(arguments)
    out = Path(arguments.out or experiments.layout.table(arguments.name))
    tables.write(experiments, arguments.name, out)
    if arguments.show:
        print(out.with_suffix(".md").read_text(encoding="utf-8"))


def _figure(arguments: Arguments) -> None:
    from cda.results import figures

    experiments = _experiments(arguments)
    draw = {"distilled": figures.distilled, "progress": figures.progress}[arguments.kind]
    draw(
        experiments,
        arguments.table,
        Path(arguments.out or experiments.layout.picture(arguments.table, arguments.kind)),
    )


def _show(arguments: Arguments) -> None:
    from cda.results import tables

    print(tables.describe(_experiments(arguments), arguments.run))


def _reference(_arguments: Arguments) -> None:
    from cda import reference

    print(reference.page(), end="")


def _schema(_arguments: Arguments) -> None:
    from cda import reference

    print(reference.schema())


def _outputs(experiments: ExperimentSet, run: Run, ipc: int) -> list[str]:
    layout = experiments.layout
    if run.stage == "squeeze":
        return [layout.model(run)]
    if run.stage == "recover":
        return [layout.part(run, part) for part in parts(run, ipc)]
    if run.stage == "relabel":
        return [layout.labels(run)]
    return [layout.run_json(run, seed) for seed in range(experiments.settings.seeds)]


def _runs(arguments: Arguments) -> None:
    experiments = _experiments(arguments)
    runs = [cell.run for cell in experiments.cells(arguments.table) if cell.run]
    needed: dict[str, int] = {}
    for last in runs:
        for run in last.chain():
            needed[run.id] = max(needed.get(run.id, 0), last.ipc)
    for run_id, run in experiments.runs((arguments.table,)).items():
        outputs = _outputs(experiments, run, needed[run_id])
        done = sum(Path(output).exists() for output in outputs)
        print(f"{run.stage:9s} {run.dataset:14s} {run_id}  {done}/{len(outputs)} done")
    for note in sorted({cell.note for cell in experiments.cells(arguments.table) if "not declared" in cell.note}):
        print(f"not run: {note}")


def _command(commands: Any, name: str, text: str, function: Callable[[Arguments], None]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
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


def _stage(commands: Any, name: str, text: str, function: Callable[[Arguments], None]) -> argparse.ArgumentParser:
    parser = _command(commands, name, text, function)
    parser.add_argument("--run", required=True, metavar="ID", help="the run's id; `cda runs TABLE` lists them")
    parser.add_argument("--out", metavar="PATH", help="default: the run's standard place")
    return parser


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="cda", description="Curriculum data augmentation for dataset distillation, run by run."
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    model = {"metavar": "PATH", "help": "the squeezed model.safetensors; default: its standard place"}
    images = {"metavar": "PATH", "help": "folder of the recover run; default: its standard place"}
    _stage(commands, "squeeze", "train the recovery model, or fetch its published weights", _squeeze)
    recover = _stage(commands, "recover", "synthesise one part of a run's shards", _recover)
    recover.add_argument("--part", type=int, default=0, help="which consecutive shards (default 0)")
    recover.add_argument("--model", **model)  # type: ignore[arg-type]
    relabel = _stage(commands, "relabel", "store soft labels of every epoch", _relabel)
    relabel.add_argument("--images", **images)  # type: ignore[arg-type]
    relabel.add_argument("--model", **model)  # type: ignore[arg-type]
    validate = _stage(commands, "validate", "train a fresh model on distilled images and test it", _validate)
    validate.add_argument("--seed", type=int, default=0, help="of the weights' start (default 0)")
    validate.add_argument("--images", **images)  # type: ignore[arg-type]
    validate.add_argument("--labels", metavar="PATH", help="the label store; default: its standard place")
    validate.add_argument("--model", **model)  # type: ignore[arg-type]
    table = _command(commands, "table", "make a table from the run JSONs that exist", _table)
    table.add_argument("name", help="for instance table4")
    table.add_argument("--out", metavar="CSV")
    table.add_argument("--show", action="store_true", help="print it too")
    figure = _command(commands, "figure", "draw a picture of a table's images", _figure)
    figure.add_argument("kind", choices=("distilled", "progress"))
    figure.add_argument("table")
    figure.add_argument("--out", metavar="PNG")
    _command(commands, "runs", "list the runs of a table and which are done", _runs).add_argument("table")
    config = commands.add_parser("config", help="look at the configuration").add_subparsers(
        required=True, metavar="COMMAND"
    )
    _command(config, "reference", "every key: type, default, meaning (docs/configuration.md)", _reference)
    _command(config, "schema", "the same as JSON schema", _schema)
    _command(config, "show", "a resolved run, each value with its source", _show).add_argument("run", metavar="RUN")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one line and exit status 1, a signal ends with 128 + its number."""
    arguments = parser().parse_args(argv)
    try:
        arguments.function(arguments)
    except Interrupted as error:
        print(f"cda: {error}", file=sys.stderr)
        return 128 + error.number
    except CdaError as error:
        print(f"cda: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
