"""The stages' subcommands: `cda STAGE --run ID` does one job of one run.

Stages know no scheduler: inputs and outputs have standard places, or come as options.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cda.command import Arguments, command, option
from cda.config.load import load_settings, read_overrides
from cda.errors import ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import process_count
from cda.experiments.runs import Run, images_run_of, part_shards

if TYPE_CHECKING:
    from cda.stages.context import Context

RUN = option(
    "--run", required=True, metavar="ID", help="the run's id; `cda list TABLE` prints them"
)
OUT = option("--out", metavar="PATH", help="default: the run's standard place")
MODEL = option("--model", metavar="PATH", help="model.safetensors; default: its standard place")
IMAGES = option(
    "--images", metavar="PATH", help="folder of the recover run; default: its standard place"
)
LABELS = option("--labels", metavar="PATH", help="the label store; default: its standard place")
SEED = option("--seed", type=int, default=0, metavar="N", help="of the first weights (default 0)")


def experiments_of(arguments: Arguments) -> ExperimentSet:
    """Every experiment of this call's configuration; raises ConfigError."""
    return ExperimentSet(load_settings(read_overrides(arguments.config)))


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
    images = images_run_of(context.run)
    if arguments.images is not None:
        return Path(arguments.images)
    return Path(context.layout.run_folder(images)) if images is not None else None


@command("stages", RUN, OUT)
def decode(arguments: Arguments) -> None:
    """Decode a streamed data set's validation images once."""
    context = _context(arguments, "decode")
    from cda.stages import decode

    decode.run(context, Path(arguments.out or context.layout.decoded(context.run)))


@command(
    "stages",
    RUN,
    OUT,
    option(
        "--gpus",
        type=int,
        metavar="N",
        help="GPUs and processes; default: the data set's and runtime.gpus",
    ),
)
def squeeze(arguments: Arguments) -> None:
    """Train the recovery model, or fetch its published weights.

    Several GPUs have a process each, started by torchrun.
    """
    experiments = experiments_of(arguments)
    run = experiments.run(arguments.run, "squeeze")
    gpus = arguments.gpus or process_count(run, experiments.settings)
    if gpus > 1 and "LOCAL_RANK" not in os.environ:
        _start_torchrun(experiments, gpus)
    recovered = any(
        other.stage == "recover" and other.upstream.get("model", other).id == run.id
        for other in experiments.runs().values()
    )
    from cda.stages import squeeze
    from cda.stages.context import Context

    context = Context(run, experiments.settings, experiments.layout)
    squeeze.run(context, Path(arguments.out or context.layout.model(run)), recovered=recovered)


def _start_torchrun(experiments: ExperimentSet, gpus: int) -> None:
    """Replace this process by torchrun with `gpus` processes of the same command."""
    if experiments.settings.runtime.device != "cpu":
        from cda.engine.gpus import pass_on_gpus, take_gpus

        take_gpus(gpus)
        pass_on_gpus()
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", str(gpus), "-m", "--", "cda"]
    os.execv(sys.executable, [*torchrun, *sys.argv[1:]])


@command(
    "stages",
    RUN,
    OUT,
    MODEL,
    option("--part", type=int, default=0, metavar="N", help="which part (default 0)"),
)
def recover(arguments: Arguments) -> None:
    """Synthesise one part of a run's shards: those that tables and figures read.

    A part that exists gets the shards that it lacks.
    """
    experiments = experiments_of(arguments)
    run = experiments.run(arguments.run, "recover")
    shards = part_shards(run, arguments.part, experiments.required_shards(run))
    from cda.stages import recover
    from cda.stages.context import Context

    context = Context(run, experiments.settings, experiments.layout)
    out = Path(arguments.out or context.layout.part(context.run, arguments.part))
    model = _model(arguments, context, context.run.upstream.get("model"))
    recover.run(context, arguments.part, model, out, shards)


@command(
    "stages",
    RUN,
    OUT,
    option("--part", type=int, default=0, metavar="N", help="which part (default 0)"),
)
def expert(arguments: Arguments) -> None:
    """Train one part of a run's experts, for trajectory matching."""
    context = _context(arguments, "expert")
    from cda.stages import expert

    out = Path(arguments.out or context.layout.part(context.run, arguments.part))
    expert.run(context, arguments.part, out)


@command(
    "stages",
    RUN,
    OUT,
    option(
        "--experts", metavar="PATH", help="folder of the expert run; default: its standard place"
    ),
)
def distill(arguments: Arguments) -> None:
    """Make a run's images by matching (DC, DSA, DM, MTT, TESLA)."""
    context = _context(arguments, "distill")
    from cda.stages import distill

    read = context.run.upstream.get("experts")
    experts = arguments.experts or (context.layout.run_folder(read) if read else None)
    out = Path(arguments.out or context.layout.part(context.run, 0))
    distill.run(context, Path(experts) if experts else None, out)


@command("stages", RUN, OUT, IMAGES, MODEL)
def relabel(arguments: Arguments) -> None:
    """Store the soft labels of every epoch."""
    context = _context(arguments, "relabel")
    from cda.stages import relabel

    images = _images(arguments, context)
    assert images is not None
    model = _model(arguments, context, context.run.upstream.get("model"))
    relabel.run(context, images, model, Path(arguments.out or context.layout.labels(context.run)))


@command(
    "stages",
    RUN,
    OUT,
    IMAGES,
    LABELS,
    MODEL,
    SEED,
    option(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="several seeds in one process; those whose JSON exists are skipped",
    ),
)
def validate(arguments: Arguments) -> None:
    """Train a fresh model on images and labels, and test it."""
    context = _context(arguments, "validate")
    seeds = arguments.seeds or [arguments.seed]
    if arguments.out and len(seeds) > 1:
        raise ConfigError("--out: is one file; leave it out, several --seeds have standard places")
    outs = {
        seed: Path(arguments.out or context.layout.run_json(context.run, seed)) for seed in seeds
    }
    from cda.stages import validate

    labels, images = context.run.upstream["labels"], _images(arguments, context)
    assert images is not None
    validate.run(
        context,
        images,
        Path(arguments.labels or context.layout.labels(labels)),
        _model(arguments, context, labels.upstream.get("model")),
        outs,
    )


@command("stages", RUN, OUT, IMAGES, MODEL)
def score(arguments: Arguments) -> None:
    """Classify images with a model that did not make them."""
    context = _context(arguments, "score")
    from cda.stages import score

    model = _model(arguments, context, context.run.upstream["model"])
    assert model is not None
    out = Path(arguments.out or context.layout.run_json(context.run, 0))
    score.run(context, _images(arguments, context), model, out)


@command("stages", RUN, OUT, IMAGES, MODEL, SEED)
def continual(arguments: Arguments) -> None:
    """Learn the classes step by step from distilled images."""
    context = _context(arguments, "continual")
    from cda.stages import continual

    model = _model(arguments, context, context.run.upstream["model"])
    images = _images(arguments, context)
    assert model is not None
    assert images is not None
    out = Path(arguments.out or context.layout.run_json(context.run, arguments.seed))
    continual.run(context, images, model, arguments.seed, out)


@command(
    "stages",
    option("weights", help="torchvision:<Weights.NAME>, timm:<tag> or package:<name>"),
    option("model", help="the network, for instance resnet18"),
    option("--out", metavar="JSON", help="file that records the download"),
)
def fetch(arguments: Arguments) -> None:
    """Download published weights, for jobs without internet."""
    from cda.engine import pretrained

    out = Path(arguments.out) if arguments.out else None
    pretrained.fetch(arguments.weights, arguments.model, out)
