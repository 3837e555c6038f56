"""What a job of a run reads and leaves.

The one place that the workflow, the plan and the lists of runs ask.
"""

from __future__ import annotations

from collections.abc import Iterator

from cda.config.settings import Settings
from cda.experiments.paths import Layout
from cda.experiments.runs import (
    MEASURING,
    Run,
    decode_run,
    recover_run_of,
    label_mode,
    parts,
    seeds_of,
)


def outputs(run: Run, ipc: int, layout: Layout, seeds: int) -> list[str]:
    """What a run leaves, a path for each job; of a recover run what its first `ipc` shards need."""
    if run.stage == "recover":
        return [layout.part(run, part) for part in parts(run, ipc)]
    if run.stage in MEASURING:
        return [layout.run_json(run, seed) for seed in range(seeds_of(run, seeds))]
    return [
        {"decode": layout.decoded, "squeeze": layout.model, "relabel": layout.labels}[run.stage](
            run
        )
    ]


def inputs(run: Run, max_gb: float) -> Iterator[Run]:
    """The runs whose outputs a job of `run` reads; `max_gb` as in the settings' labels."""
    images, labels = recover_run_of(run), run.upstream.get("labels")
    if images is not None and images is not run:
        yield images
    if labels is not None:
        yield labels
    labelled = labels or (run if run.stage == "relabel" else None)
    unused = labelled is not None and label_mode(labelled, max_gb) != (
        "online" if labels else "stored"
    )
    model = (labels or run).upstream.get("model")
    if model is not None and not unused:
        yield model
    trained = run.stage == "squeeze" and not run.recipe.squeeze.weights
    tested = run.stage in ("validate", "continual") or (run.stage == "score" and images is None)
    if run.data.stream and (trained or tested):
        yield decode_run(run.data, run.recipe)


def gpu_count(run: Run, settings: Settings) -> int:
    """GPUs of a job: none where no network computes."""
    if run.stage == "squeeze":
        return 0 if run.recipe.squeeze.weights else process_count(run, settings)
    if run.stage == "relabel":
        return int(label_mode(run, settings.labels.max_gb) == "stored")
    return int(run.stage != "decode" and (run.stage != "recover" or run.recipe.recover.synthetic))


def process_count(run: Run, settings: Settings) -> int:
    """GPUs, and processes, of a squeeze run's training; published weights are fetched by one."""
    return 1 if run.recipe.squeeze.weights else min(run.data.gpus, settings.runtime.gpus)
