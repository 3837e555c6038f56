"""What the subcommands of stages and results do; heavy imports wait until one needs them.

Those that move data and artifacts are in `cda.artifacts.commands`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cda.config.load import from_environment, load_settings, merge
from cda.errors import ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import outputs, process_count
from cda.experiments.runs import Run, recover_run_of

if TYPE_CHECKING:
    from cda.stages.context import Context

Arguments = argparse.Namespace


def overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`a.b=value` pairs as nested values; raises ConfigError."""
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
            raise ConfigError(
                f"--config {pair}: cannot be read; must be KEY=VALUE, for instance scale=demo"
            ) from None
    return values


def experiments_of(arguments: Arguments) -> ExperimentSet:
    """Everything declared, under the configuration of this call."""
    return ExperimentSet(load_settings(merge(from_environment(), overrides(arguments.config))))


def _context(arguments: Arguments, stage: str) -> Context:
    experiments = experiments_of(arguments)
    run = experiments.run(arguments.run, stage)
    from cda.stages.context import Context

    return Context(run, experiments.settings, experiments.layout)


def _model(arguments: Arguments, context: Context, run: Run | None) -> Path | None:
    if arguments.model is not None:
        return Path(arguments.model)
    return Path(context.layout.model(run)) if run is not None else None


def _images(arguments: Arguments, context: Context) -> Path | None:
    images = recover_run_of(context.run)
    if arguments.images is None and images is None:
        return None
    return Path(arguments.images or context.layout.run_folder(images))  # type: ignore[arg-type]


def decode(arguments: Arguments) -> None:
    """Decode a large data set's validation images."""
    context = _context(arguments, "decode")
    from cda.stages import decode

    decode.run(context, Path(arguments.out or context.layout.decoded(context.run)))


def squeeze(arguments: Arguments) -> None:
    """Train or fetch a recovery model; several processes go through torchrun."""
    experiments = experiments_of(arguments)
    run = experiments.run(arguments.run, "squeeze")
    gpus = arguments.gpus or process_count(run, experiments.settings)
    if gpus > 1 and "LOCAL_RANK" not in os.environ:
        if experiments.settings.runtime.device != "cpu":
            from cda.engine.gpus import pass_on_gpus, take_gpus

            take_gpus(gpus)
            pass_on_gpus()
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
        launched = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(gpus),
        ]
        os.execv(sys.executable, [*launched, "-m", "--", "cda", *sys.argv[1:]])
    recovered = any(
        other.stage == "recover" and other.upstream.get("model", other).id == run.id
        for other in experiments.runs().values()
    )
    from cda.stages import squeeze
    from cda.stages.context import Context

    context = Context(run, experiments.settings, experiments.layout)
    squeeze.run(context, Path(arguments.out or context.layout.model(run)), recovered=recovered)


def fetch(arguments: Arguments) -> None:
    """Download published weights into their library's cache."""
    from cda.engine import pretrained

    pretrained.fetch(
        arguments.weights, arguments.model, Path(arguments.out) if arguments.out else None
    )


def recover(arguments: Arguments) -> None:
    """Make one part of a recover run."""
    context = _context(arguments, "recover")
    from cda.stages import recover

    out = Path(arguments.out or context.layout.part(context.run, arguments.part))
    recover.run(
        context, arguments.part, _model(arguments, context, context.run.upstream.get("model")), out
    )


def relabel(arguments: Arguments) -> None:
    """Write a label store."""
    context = _context(arguments, "relabel")
    from cda.stages import relabel

    images = _images(arguments, context)
    assert images is not None
    model = _model(arguments, context, context.run.upstream.get("model"))
    relabel.run(context, images, model, Path(arguments.out or context.layout.labels(context.run)))


def validate(arguments: Arguments) -> None:
    """Train and test one validation model."""
    context = _context(arguments, "validate")
    from cda.stages import validate

    labels, images = context.run.upstream["labels"], _images(arguments, context)
    assert images is not None
    validate.run(
        context,
        images,
        Path(arguments.labels or context.layout.labels(labels)),
        _model(arguments, context, labels.upstream.get("model")),
        arguments.seed,
        Path(arguments.out or context.layout.run_json(context.run, arguments.seed)),
    )


def score(arguments: Arguments) -> None:
    """Classify images with a model that took no part."""
    context = _context(arguments, "score")
    from cda.stages import score

    model = _model(arguments, context, context.run.upstream["model"])
    assert model is not None
    out = Path(arguments.out or context.layout.run_json(context.run, 0))
    score.run(context, _images(arguments, context), model, out)


def continual(arguments: Arguments) -> None:
    """Class-incremental training."""
    context = _context(arguments, "continual")
    from cda.stages import continual

    model, images = (
        _model(arguments, context, context.run.upstream["model"]),
        _images(arguments, context),
    )
    assert model is not None
    assert images is not None
    out = Path(arguments.out or context.layout.run_json(context.run, arguments.seed))
    continual.run(context, images, model, arguments.seed, out)


def table(arguments: Arguments) -> None:
    """Make a table from the run JSONs that exist."""
    from cda.results import tables

    experiments = experiments_of(arguments)
    name = experiments.table_of(arguments.name)
    out = Path(arguments.out or experiments.layout.table(name))
    tables.write(experiments, name, out)
    if arguments.show:
        print(out.with_suffix(".md").read_text(encoding="utf-8"))


def figure(arguments: Arguments) -> None:
    """Draw a figure."""
    from cda.results import figures

    experiments = experiments_of(arguments)
    if arguments.name not in experiments.figures:
        there = ", ".join(experiments.figures)
        raise ConfigError(
            f"there is no figure {arguments.name!r} at scale {experiments.settings.scale}; "
            f"there is {there}"
        )
    figures.draw(
        experiments,
        arguments.name,
        Path(arguments.out or experiments.layout.figure(arguments.name)),
    )


def plan(arguments: Arguments) -> None:
    """Say what tables would cost."""
    from cda.pipeline import plan

    experiments = experiments_of(arguments)
    names = [experiments.table_of(target) for target in arguments.targets] or list(
        experiments.tables
    )
    print(
        plan.plan(
            experiments, names, arguments.gpu or experiments.settings.runtime.gpu, arguments.gpus
        )
    )


def campaign(arguments: Arguments) -> None:
    """Run the next jobs of the campaign within a time budget."""
    began = time.monotonic()
    from cda.campaign.slices import campaign

    given = merge(from_environment(), overrides(arguments.config))
    campaign(
        ExperimentSet(load_settings(given)),
        given,
        began=began,
        minutes=arguments.minutes,
        grace=arguments.grace,
        dry=arguments.dry_run,
        gpu=arguments.gpu,
    )


def check(arguments: Arguments) -> int:
    """Say what is at hand and what to do about the rest; exit status 1 if something is missing."""
    from cda.pipeline import check

    experiments = experiments_of(arguments)
    text, whole = check.check(
        experiments, [experiments.table_of(target) for target in arguments.targets]
    )
    print(text)
    return int(not whole)


def unlock(_arguments: Arguments) -> None:
    """Make this folder ready for another snakemake after one was killed."""
    from cda.pipeline.unlock import unlock

    print(unlock(Path.cwd()))


def runs(arguments: Arguments) -> None:
    """List the runs of a table and which are done."""
    experiments = experiments_of(arguments)
    table = experiments.table_of(arguments.table)
    cells = experiments.cells(table)
    needed: dict[str, int] = {}
    for last in experiments.requested_runs(table):
        for run in last.chain():
            needed[run.id] = max(needed.get(run.id, 0), last.ipc)
    for run_id, run in experiments.runs((table,)).items():
        paths = outputs(run, needed.get(run_id, 0), experiments.layout, experiments.settings.seeds)
        done = sum(Path(path).exists() for path in paths)
        print(f"{run.stage:9s} {run.dataset:14s} {run_id}  {done}/{len(paths)} done")
    for note in sorted({cell.note for cell in cells if cell.note and not cell.quoted}):
        print(f"not run: {note}")


def metrics(arguments: Arguments) -> None:
    """Write every measured number into one JSON file."""
    from cda.results import metrics

    experiments = experiments_of(arguments)
    metrics.write(experiments, Path(arguments.out or f"{experiments.layout.results}/metrics.json"))


def show(arguments: Arguments) -> None:
    """Print a resolved run, each value with its source."""
    from cda.results import tables

    print(tables.describe(experiments_of(arguments), arguments.run))


def reproduction(arguments: Arguments) -> None:
    """Print docs/reproduction.md."""
    from cda.results.reproduction import page

    print(page(merge(from_environment(), overrides(arguments.config))), end="")
