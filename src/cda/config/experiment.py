"""The models of `config/experiments/` (tables, figures) and `config/scales/` (smaller runs)."""

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
        "validate", description="the stage that measures the cells"
    )
    dataset: str = Field(description="a data set; cells of an undeclared data set stay not_run")
    methods: Several[str] = Field(description="names under methods in the data set's recipe")
    recovery_models: tuple[Name, ...] = Field(
        (), description="networks to squeeze and to recover from"
    )
    ipc: tuple[Count, ...] = Field((), description="images per class")
    sample: Count | None = Field(
        None, description="images per class of a table of real images, which names no IPC"
    )
    validation_models: tuple[Name, ...] = Field(
        (), description="networks that are trained on the images, or that score them"
    )
    relabel_models: tuple[Name, ...] = Field(
        (),
        description="networks that label the images; the better result of several counts; "
        "default: the recovery model",
    )
    metrics: Several[Metric] = Field(
        ("top1",), description="what is measured after the last epoch, in percent"
    )
    setting: str = Field(
        "",
        description="distinguishes these cells from others with the same keys, as in "
        "reported.csv; {} stands for the varied value",
    )
    vary: dict[str, Several[Any]] = Field(
        {}, description="one key and its values: {recover.min_crop: [0.08, 0.2]}"
    )
    classes: tuple[Count, ...] = Field(
        (), description="stage continual: number of classes seen after each step"
    )
    set: dict[str, Any] = Field(
        {}, description="recipe values of these cells, with dots: {validate.epochs: 800}"
    )
    variants: tuple[str, ...] = Field(
        (), description="names under variants in the data set's recipe"
    )
    scales: tuple[str, ...] = Field(
        (), description="scales at which these cells exist; default: all of the table's"
    )
    control: bool = Field(False, description="not in the paper: displayed apart")
    extra: bool = Field(False, description="a control that is run only with controls=all")
    quoted: bool = Field(
        False, description="results of other papers that the paper quotes: nothing is run"
    )

    @model_validator(mode="after")
    def _sensible(self) -> Group:
        if len(self.vary) > 1:
            raise ValueError(
                "vary holds one key and its values; write a group for each value of another"
            )
        if bool(self.vary or self.classes) != ("{}" in self.setting):
            raise ValueError("setting must hold {} where vary or classes is set, and only there")
        if self.stage != "score" and not self.quoted and not (self.recovery_models and self.ipc):
            raise ValueError("recovery_models and ipc must name at least one each")
        if (self.stage == "continual") != bool(self.classes):
            raise ValueError(
                "classes goes with stage continual: the number of classes seen after each step"
            )
        return self


class Layout2D(Strict):
    """The keys of the Markdown table's rows and columns; `varied` is a group's varied value."""

    rows: tuple[Key | Literal["varied"], ...] = Field(description="keys down the side")
    columns: tuple[Key | Literal["varied"], ...] = Field(description="keys across the top")
    varied: str = Field("{}", description="text of a varied value: {} epochs")


class Contrast(Strict):
    """Cells compared with others of their table that differ in the named keys only."""

    claim: str = Field(description="what the difference measures: CDA against SRe²L")
    of: dict[Key, str] = Field(description="keys of the cells: {method: cda}")
    against: dict[Key, str] = Field(
        description="keys in which the other cells differ: {method: sre2l}"
    )


class Experiment(Strict):
    """A table, of the paper or in addition to it: `config/experiments/<name>.yaml`."""

    title: str = Field(description="heading")
    caption: str = Field("", description="text below the table")
    reported: int | None = Field(
        None, description="number of the paper's table, as in config/reported.csv"
    )
    scales: tuple[str, ...] = Field(description="scales at which it exists")
    layout: Layout2D = Field(
        Layout2D(rows=(), columns=()), description="rows and columns of the Markdown table"
    )
    groups: tuple[Group, ...] = Field((), description="grids of cells")
    controls: bool = Field(
        False, description="add random real images and hard labels beside each distilled set"
    )
    contrasts: tuple[Contrast, ...] = Field(
        (), description="differences below the table, with intervals over seeds"
    )
    label_sizes: bool = Field(
        False, description="add each cell's label store: its size, and the size of fp16 over it"
    )
    sizes_of: str | None = Field(
        None,
        description="instead of groups: a table of codecs, under which the sizes of the scale's "
        "label stores are listed; nothing is run",
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
    """A figure, of the paper or in addition to it: a file in `config/experiments/` with a kind."""

    title: str = Field(description="heading")
    caption: str = Field("", description="text below the figure in the report")
    kind: Literal[
        "bars", "lines", "continual", "bounds", "crops", "schedulers", "progress", "grid"
    ] = Field(
        description="bars, lines, continual, bounds: plots of tables; crops, schedulers: plots "
        "of the method; progress, grid: images"
    )
    scales: tuple[str, ...] = Field(description="scales at which it exists")
    tables: tuple[str, ...] = Field((), description="plots: the tables whose cells are plotted")
    groups: tuple[Group, ...] = Field(
        (), description="images: the distilled sets, as a table's groups"
    )
    steps: tuple[Count, ...] = Field(
        (), description="progress: recovery steps, of those that the runs save"
    )
    classes: tuple[str, ...] = Field(
        (), description="images: class names, or name=label; default: the first classes"
    )

    @property
    def plot(self) -> bool:
        """Whether it is a plot, which is drawn as SVG too."""
        return self.kind in PLOTS


class DatasetScale(Strict):
    """How a scale makes the runs of one data set smaller."""

    stand_in: str | None = Field(None, description="another data set to run instead")
    ipc: dict[int, Count] = Field({}, description="the IPC to run instead of a table's")
    models: dict[str, Name | None] = Field(
        {}, description="the network to run instead of a table's; null: its cells stay not_run"
    )
    instead: dict[str, dict[Any, Any]] = Field(
        {},
        description="values to run instead of a table's own: {validate.epochs: {800: 100}}",
    )
    recipe: dict[str, Any] = Field({}, description="recipe values that replace the data set's")
    methods: dict[str, dict[str, Any]] = Field(
        {}, description="recipe values that replace a method's: {dm: {distill: {iterations: 400}}}"
    )
    variants: dict[str, dict[str, Any]] = Field(
        {}, description="recipe values that replace a variant's, as in methods"
    )


class Scale(Strict):
    """A file of `config/scales/`; the scale runs only the data sets that it names."""

    settings: dict[str, Any] = Field(
        {}, description="values that replace those of config/config.yaml"
    )
    datasets: dict[str, DatasetScale] = Field({}, description="the data sets of the scale")
