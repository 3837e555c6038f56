"""What the files of `config/experiments/` and `config/scales/` may say.

Tables, figures, how a scale shrinks them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import Field, model_validator

from cda.config.types import Count, Name, Strict

Key = Literal[
    "dataset",
    "method",
    "recovery_model",
    "ipc",
    "recovery_iterations",
    "setting",
    "validation_model",
    "metric",
]
KEYS: tuple[str, ...] = get_args(Key)
Metric = Literal["top1", "top5", "top1_global", "top1_10crop", "top1_masked"]
PLOTS = ("bars", "lines", "continual", "bounds", "crops", "schedulers")

T = TypeVar("T")
Several = Annotated[tuple[T, ...], Field(min_length=1)]


class Group(Strict):
    """A grid of cells: every combination of its lists."""

    stage: Literal["validate", "score", "continual"] = Field(
        "validate", description="the stage that measures them"
    )
    dataset: str = Field(
        description="a data set; one that is not declared leaves its cells not_run"
    )
    methods: Several[str] = Field(description="names under methods in the data set's recipe")
    recovery_models: tuple[Name, ...] = Field(
        (), description="networks that are squeezed and recovered from"
    )
    ipc: tuple[Count, ...] = Field((), description="images per class")
    sample: Count | None = Field(
        None, description="images per class where the table names no IPC (real images)"
    )
    validation_models: tuple[Name, ...] = Field(
        (), description="networks trained on the images, or that score them"
    )
    relabel_models: tuple[Name, ...] = Field(
        (),
        description="networks that label; of several the better result counts; default: the "
        "recovery model",
    )
    metrics: Several[Metric] = Field(
        ("top1",), description="what is measured, in percent, of the last epoch"
    )
    setting: str = Field(
        "",
        description="what tells these cells from others with the same keys, as in "
        "reported.csv; {} is what varies",
    )
    vary: dict[str, Several[Any]] = Field(
        {}, description="one key and its values: {recover.min_crop: [0.08, 0.2]}"
    )
    classes: tuple[Count, ...] = Field(
        (), description="of stage continual: how many have been seen, step by step"
    )
    set: dict[str, Any] = Field(
        {}, description="the table's own values, with dots: {validate.epochs: 800}"
    )
    variants: tuple[str, ...] = Field(
        (), description="names under variants in the data set's recipe"
    )
    control: bool = Field(False, description="ours and not the paper's: shown apart")
    extra: bool = Field(False, description="a control that only controls=all asks for")
    quoted: bool = Field(
        False, description="others' numbers, which the paper quotes: nothing is run"
    )

    @model_validator(mode="after")
    def _sensible(self) -> Group:
        if len(self.vary) > 1:
            raise ValueError(
                "vary holds one key and its values; write a group for each value of another"
            )
        if bool(self.vary or self.classes) != ("{}" in self.setting):
            raise ValueError("setting must hold {} where vary or classes is given, and only there")
        if self.stage != "score" and not self.quoted and not (self.recovery_models and self.ipc):
            raise ValueError("recovery_models and ipc must name at least one each")
        if (self.stage == "continual") != bool(self.classes):
            raise ValueError(
                "classes goes with stage continual: how many have been seen after each step"
            )
        return self


class Layout2D(Strict):
    """Which keys become the rows and the columns of the Markdown table.

    `varied` is the value of a group's `vary`.
    """

    rows: tuple[Key | Literal["varied"], ...] = Field(description="keys down the side")
    columns: tuple[Key | Literal["varied"], ...] = Field(description="keys across the top")
    varied: str = Field("{}", description="how a varied value is written: {} epochs")


class Contrast(Strict):
    """Cells that are held against others of their table, which differ in the named keys alone."""

    claim: str = Field(description="what the difference tells: CDA against SRe²L")
    of: dict[Key, str] = Field(description="keys of the cells: {method: cda}")
    against: dict[Key, str] = Field(
        description="the keys in which the others differ: {method: sre2l}"
    )


class Experiment(Strict):
    """A table of the paper (or of ours): `config/experiments/<name>.yaml`."""

    title: str = Field(description="its heading")
    caption: str = Field("", description="what stands below it")
    reported: int | None = Field(None, description="the paper's table, in config/reported.csv")
    scales: tuple[str, ...] = Field(description="scales at which it exists")
    layout: Layout2D = Field(
        Layout2D(rows=(), columns=()), description="how the Markdown table is laid out"
    )
    groups: tuple[Group, ...] = Field((), description="its grids of cells")
    controls: bool = Field(
        False, description="random real images and hard labels beside its distilled sets by default"
    )
    contrasts: tuple[Contrast, ...] = Field(
        (), description="differences shown below it, with intervals over seeds"
    )
    label_sizes: bool = Field(
        False, description="each cell's label store beside it: its size, and fp16's size over it"
    )
    sizes_of: str | None = Field(
        None,
        description="instead of groups: sizes of the scale's label stores under this table's "
        "codecs; runs nothing",
    )

    @model_validator(mode="after")
    def _cells_or_sizes(self) -> Experiment:
        if bool(self.groups) == bool(self.sizes_of):
            raise ValueError(
                "groups must hold grids of cells, or else sizes_of name a table of codecs"
            )
        if self.groups and not (self.layout.rows and self.layout.columns):
            raise ValueError("layout must name rows and columns, at least one key each")
        return self


class Figure(Strict):
    """A figure of the paper (or of ours): a file in `config/experiments/` that has a kind."""

    title: str = Field(description="its heading")
    caption: str = Field("", description="what the report says below it")
    kind: Literal[
        "bars", "lines", "continual", "bounds", "crops", "schedulers", "progress", "grid"
    ] = Field(
        description="bars, lines, continual, bounds: of tables; crops, schedulers: of the "
        "method; others: images"
    )
    scales: tuple[str, ...] = Field(description="scales at which it exists")
    tables: tuple[str, ...] = Field((), description="plots: the tables whose cells are drawn")
    groups: tuple[Group, ...] = Field((), description="images: whose; as a table's groups")
    steps: tuple[Count, ...] = Field(
        (), description="progress: recovery steps, those of them that the runs keep"
    )
    classes: tuple[str, ...] = Field(
        (), description="images: class names, or name=what to call it; default: the first classes"
    )

    @property
    def plot(self) -> bool:
        """Whether it is a plot, which comes as SVG too."""
        return self.kind in PLOTS


class DatasetScale(Strict):
    """How a scale shrinks the runs of one data set."""

    stand_in: str | None = Field(None, description="another data set that is run in its place")
    ipc: dict[int, Count] = Field({}, description="the IPC that is run in place of a table's")
    models: dict[str, Name | None] = Field(
        {}, description="the network run in place of a table's; null: none fits"
    )
    instead: dict[str, dict[Any, Any]] = Field(
        {},
        description="what is run in place of a table's own values: {validate.epochs: {800: 100}}",
    )
    recipe: dict[str, Any] = Field({}, description="recipe values that replace the data set's")


class Scale(Strict):
    """A file of `config/scales/`; data sets that it does not name have no part in the scale."""

    settings: dict[str, Any] = Field({}, description="replaces values of config/config.yaml")
    datasets: dict[str, DatasetScale] = Field({}, description="the data sets of this scale")
