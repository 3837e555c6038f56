"""Runs: one stage with all its values resolved, under an id that changes whenever its result could.

The id is `<slug>-<8 hex>`; the hex is a SHA-256 of the canonical JSON of the run's `spec`: the
stage and its version, the data set's identity, the stage's own relevant values, and the ids of the
runs it builds on. The slug is for people; no program parses it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cda.config.label_rows import row_parts
from cda.config.recipe import Recipe, Relabel
from cda.config.settings import Dataset
from cda.config.yaml_source import Layer
from cda.errors import ConfigError

# Raised by hand when a change of code changes a stage's results.
VERSIONS = {
    "decode": 1,
    "squeeze": 2,
    "recover": 2,
    "expert": 1,
    "distill": 1,
    "relabel": 1,
    "validate": 1,
    "score": 1,
    "continual": 1,
}
MAKING = ("recover", "distill")  # stages that make images
MEASURING = ("validate", "score", "continual")  # stages that leave the run JSONs which tables read


@dataclass(frozen=True, eq=False)
class Run:
    """One stage, resolved: `upstream` are the runs it reads, `model` the network it trains."""

    stage: str
    slug: str
    spec: Mapping[str, Any]
    data: Dataset
    recipe: Recipe
    model: str = ""
    ipc: int = 0
    upstream: Mapping[str, Run] = field(default_factory=dict)
    values: Layer = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """Name of its data set."""
        return self.data.name

    @cached_property
    def id(self) -> str:
        """Slug and hash."""
        canonical = json.dumps(self.spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return f"{self.slug}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"

    def chain(self) -> Iterator[Run]:
        """Every run below it, upstream first, and itself last; a run may come twice."""
        for run in self.upstream.values():
            yield from run.chain()
        yield self


def _spec(stage: str, data: Dataset, upstream: Mapping[str, Run], **values: Any) -> dict[str, Any]:
    ids = {name: run.id for name, run in upstream.items()}
    return {
        "stage": stage,
        "version": VERSIONS[stage],
        "dataset": data.identity(),
        "upstream": ids,
        **values,
    }


def squeeze_run(data: Dataset, recipe: Recipe, model: str, values: Layer) -> Run:
    """Train (or fetch) `model` on the real data."""
    spec = _spec(
        "squeeze",
        data,
        {},
        model=model,
        architecture=recipe.architecture.identity(),
        recipe=recipe.squeeze.identity(),
    )
    slug = f"published-{model}" if recipe.squeeze.weights else model
    return Run("squeeze", slug, spec, data, recipe, model=model, values=values)


def recover_run(data: Dataset, recipe: Recipe, model: Run, values: Layer) -> Run:
    """Images of every class; real or imported ones need no `model`, which is ignored then."""
    recover = recipe.recover
    upstream = {"model": model} if recover.synthetic else {}
    kind = f"{recover.mode}-{recover.scheduler}" if recover.mode == "curriculum" else recover.mode
    slug = f"{kind}-{model.model}" if recover.synthetic else kind
    spec = _spec(
        "recover", data, upstream, recipe=recover.identity(), shards_per_job=data.shards_per_job
    )
    return Run("recover", slug, spec, data, recipe, upstream=upstream, values=values)


def expert_run(data: Dataset, recipe: Recipe, model: str, values: Layer) -> Run:
    """Networks `model` trained on the real data, whose weights after each epoch are stored."""
    assert recipe.expert is not None
    architecture, own = recipe.architecture.identity(), recipe.expert.identity()
    spec = _spec("expert", data, {}, model=model, architecture=architecture, recipe=own)
    return Run("expert", f"expert-{model}", spec, data, recipe, model=model, values=values)


def distill_run(data: Dataset, recipe: Recipe, model: str, ipc: int, values: Layer) -> Run:
    """`ipc` images of every class by matching, for networks `model`; a trajectory has experts."""
    assert recipe.distill is not None
    architecture = recipe.architecture.identity()
    follows = recipe.distill.match == "trajectory"
    upstream = {"experts": expert_run(data, recipe, model, values)} if follows else {}
    spec = _spec(
        "distill",
        data,
        upstream,
        model=model,
        architecture=architecture,
        recipe=recipe.distill.identity(),
        ipc=ipc,
    )
    kind = [recipe.distill.match, *([recipe.distill.backward.replace("_", "-")] if follows else [])]
    kind += ["dsa"] if recipe.distill.augment == "dsa" else []
    slug = "-".join([*kind, model])
    return Run(
        "distill",
        slug,
        spec,
        data,
        recipe,
        model=model,
        ipc=ipc,
        upstream=upstream,
        values=values,
    )


def relabel_run(
    data: Dataset, recipe: Recipe, images: Run, model: Run, ipc: int, values: Layer
) -> Run:
    """Labels of the first `ipc` shards for every epoch; hard ones need no `model`.

    Raises ConfigError if `relabel.top_k` is not smaller than the number of classes.
    """
    relabel, soft = recipe.relabel, recipe.relabel.labels != "hard"
    upstream = {"images": images} | ({"model": model} if soft else {})
    epochs = relabel.epochs or recipe.validate_.epochs
    further = {}
    if soft and relabel.top_k:
        _require_rest(data, relabel, values)
        # The share of the classes that are not stored is exact at one temperature only.
        further["temperature"] = recipe.validate_.temperature
    spec = _spec(
        "relabel", data, upstream, recipe=relabel.identity(), ipc=ipc, epochs=epochs, **further
    )
    slug = f"{images.slug}-ipc{ipc}" + ("" if soft else "-hard") + _codec_slug(relabel)
    return Run("relabel", slug, spec, data, recipe, ipc=ipc, upstream=upstream, values=values)


def _require_rest(data: Dataset, relabel: Relabel, values: Layer) -> None:
    """Raise ConfigError if `top_k` leaves no class whose logit is not stored."""
    if relabel.top_k >= data.classes:
        where = values["relabel.top_k"].where if "relabel.top_k" in values else "the recipe"
        raise ConfigError(
            f"{where}: relabel.top_k ({relabel.top_k}) must be smaller than the "
            f"{data.classes} classes of {data.name}; "
            "take a smaller one, or 0 to store all"
        )


def _codec_slug(relabel: Relabel) -> str:
    """A slug's part for the label codec; empty for fp16 logits of every class and epoch."""
    soft = relabel.labels != "hard"
    parts = [f"-top{relabel.top_k}"] if relabel.top_k and soft else []
    parts += [f"-q{relabel.bits}"] if relabel.bits != 16 and soft else []
    return "".join([*parts, f"-reuse{relabel.reuse}" if relabel.reuse > 1 else ""])


def validate_run(data: Dataset, recipe: Recipe, labels: Run, model: str, values: Layer) -> Run:
    """A fresh `model` trained on the distilled images; its JSON's name holds the seed."""
    upstream = {"labels": labels}
    architecture = recipe.architecture.identity()
    spec = _spec(
        "validate",
        data,
        upstream,
        model=model,
        architecture=architecture,
        recipe=recipe.validate_.identity(),
    )
    return Run(
        "validate",
        f"{labels.slug}-{model}",
        spec,
        data,
        recipe,
        model=model,
        ipc=labels.ipc,
        upstream=upstream,
        values=values,
    )


def score_run(
    data: Dataset, recipe: Recipe, model: Run, images: Run | None, ipc: int, values: Layer
) -> Run:
    """A squeezed `model` classifies the first `ipc` shards of `images`.

    Without `images` it classifies the real validation images.
    """
    upstream = {"model": model} | ({"images": images} if images else {})
    spec = _spec("score", data, upstream, recipe=recipe.score.identity() if images else {}, ipc=ipc)
    slug = f"score-{images.slug}-ipc{ipc}-{model.model}" if images else f"score-val-{model.model}"
    return Run(
        "score",
        slug,
        spec,
        data,
        recipe,
        model=model.model,
        ipc=ipc,
        upstream=upstream,
        values=values,
    )


def continual_run(
    data: Dataset, recipe: Recipe, images: Run, teacher: Run, model: str, ipc: int, values: Layer
) -> Run:
    """Class-incremental training of fresh `model`s on the first `ipc` shards.

    `teacher` labels the images during training.
    """
    assert recipe.continual is not None
    upstream = {"images": images, "model": teacher}
    architecture, own = recipe.architecture.identity(), recipe.continual.identity()
    spec = _spec(
        "continual", data, upstream, model=model, architecture=architecture, recipe=own, ipc=ipc
    )
    slug = f"continual-{images.slug}-ipc{ipc}-{model}"
    return Run(
        "continual",
        slug,
        spec,
        data,
        recipe,
        model=model,
        ipc=ipc,
        upstream=upstream,
        values=values,
    )


def decode_run(data: Dataset, recipe: Recipe) -> Run:
    """The real validation images of a streamed data set, decoded and resized once."""
    return Run("decode", "val", _spec("decode", data, {}), data, recipe)


def with_upstream(runs: Iterable[Run]) -> dict[str, Run]:
    """Some runs and every run below them, upstream first, by id.

    Decode runs of streamed data sets are among them, which no run names as upstream.
    """
    found: dict[str, Run] = {}
    for run in runs:
        for one in run.chain():
            if one.data.stream and one.id not in found:
                decode = decode_run(one.data, one.recipe)
                found.setdefault(decode.id, decode)
            found.setdefault(one.id, one)
    return found


def images_run_of(run: Run) -> Run | None:
    """The recover or distill run whose images a run reads, or itself; None if there is none."""
    images = run.upstream.get("labels", run).upstream.get("images")
    return run if run.stage in MAKING else images


def seeds_of(run: Run, seeds: int) -> int:
    """How many JSONs a measuring run writes: one a seed; of a score, which trains nothing, one."""
    return 1 if run.stage == "score" else seeds


def label_epochs(relabel: Run) -> int:
    """Epochs of labels that a relabel run holds."""
    return relabel.recipe.relabel.label_epochs(served_epochs(relabel))


def served_epochs(relabel: Run) -> int:
    """Epochs of training that a relabel run's labels serve."""
    return int(relabel.spec["epochs"])


def label_bytes(relabel: Run, codec: Relabel | None = None) -> int:
    """Size of its stored logits: images × epochs of labels × bytes a row.

    `codec` replaces the run's own bits, top_k and reuse.
    """
    codec, classes = codec or relabel.recipe.relabel, relabel.data.classes
    rows = relabel.ipc * classes * codec.label_epochs(served_epochs(relabel))
    return rows * row_parts(classes, codec.bits, codec.top_k).bytes


def fp16_bytes(relabel: Run) -> int:
    """Size of the same labels with every logit of every epoch stored as fp16."""
    return label_bytes(relabel, Relabel())


def label_gigabytes(relabel: Run) -> float:
    """Size of its stored logits in GB (1e9 bytes)."""
    return label_bytes(relabel) / 1e9


def label_mode(relabel: Run, max_gb: float) -> str:
    """How a relabel run's labels reach validation: `hard`, `stored` or `online`.

    They are online by recipe, or because a store would be larger than `max_gb`.
    """
    mode = relabel.recipe.relabel.labels
    return "online" if mode == "stored" and label_gigabytes(relabel) > max_gb else mode


def parts(images: Run, ipc: int) -> range:
    """The jobs that make the first `ipc` shards of a recover or distill run."""
    several = images.stage == "recover"
    return range(math.ceil(ipc / images.data.shards_per_job) if several else 1)


def expert_parts(expert: Run) -> range:
    """The jobs that train the experts of a run."""
    recipe = expert.recipe.expert
    assert recipe is not None
    return range(math.ceil(recipe.count / recipe.per_job))


def part_experts(expert: Run, part: int) -> range:
    """The experts that a job trains."""
    recipe = expert.recipe.expert
    assert recipe is not None
    return range(part * recipe.per_job, min(recipe.count, (part + 1) * recipe.per_job))


def part_shards(recover: Run, part: int, required: int) -> range:
    """The shards that a recover job makes: those of its part among the first `required`.

    They are all of its part if nothing requires any of them.
    """
    first, end = (index * recover.data.shards_per_job for index in (part, part + 1))
    return range(first, min(end, required) if required > first else end)
