"""Data sets, and how and where a call of cda runs; the recipes' values are in `recipe.py`.

Every value has its type, range, default and meaning here. The field descriptions become the
reference page.
"""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from cda.config.types import (
    Count,
    Lines,
    Name,
    Natural,
    Paths,
    Positive,
    Ratio,
    Spread,
    Strict,
    Weight,
)

Computing = Literal[
    "squeeze", "recover", "expert", "distill", "relabel", "validate", "score", "continual"
]
Precision = Literal["auto", "fp32", "tf32", "bf16"]


def _names(value: Any) -> Any:
    if isinstance(value, str) and value != "all":
        raise ValueError("must be all or a list of data sets such as [tiny_imagenet]")
    return value


class Dataset(Strict):
    """A real data set: its classes, its images, and how to find them."""

    name: str = Field(
        pattern=r"^\w[\w-]*$", description="also the folder under data/: letters, digits, _ and -"
    )
    layout: Literal[
        "digits",
        "cifar100",
        "tiny_imagenet",
        "imagenet1k",
        "imagenet21k",
        "image_folder",
        "no_images",
    ] = Field(description="how its files are arranged; no_images: only class_names exist")
    classes: int = Field(ge=2, description="number of classes")
    class_names: tuple[str, ...] = Field(
        (),
        description="no_images: the classes of the published weights to recover, sorted",
    )
    class_map: Lines = Field(
        (),
        description="a file beside this one, or a list: a line each class, in the order of its "
        "labels, with the name of its folder and, after a tab, its name in published weights: a "
        "WordNet id, or its output's number; default: folders sorted by name, numbers by value",
    )
    exclude: Paths = Field(
        (),
        description="a file beside this one, or a list: images that are damaged or missing, a line "
        "each: train/<class>/<file>, as `cda check --deep` prints them (a tab ends the path); "
        "train_images and val_images count them",
    )
    resolution: int = Field(ge=8, description="height and width of an image, in pixels")
    resize: int | None = Field(
        None, ge=8, description="shorter side before the centre crop; default: the resolution"
    )
    fit: Literal["auto", "crop", "squash"] = Field(
        "auto",
        description="how an image is brought to the resolution; crop: its shorter side to resize, "
        "then the centre; squash: both sides, whatever its shape; auto: crop, unless the image has "
        "the resolution",
    )
    mean: tuple[Ratio, Ratio, Ratio] = Field(description="per channel, of values in [0, 1]")
    std: tuple[Spread, Spread, Spread] = Field(description="per channel, of values in [0, 1]")
    train_images: Count | None = Field(
        None, description="number of training images; not checked when absent"
    )
    val_images: Count | None = Field(
        None, description="number of held-out images; not checked when absent"
    )
    shards_per_job: Count = Field(
        10,
        description="consecutive shards of one recover job, which makes those that "
        "tables and figures read",
    )
    stream: bool = Field(
        False,
        description="for images that exceed memory: training images are decoded when a batch "
        "needs them, validation images once into a memory-mapped artifact (stage decode)",
    )
    gpus: Count = Field(
        1, description="GPUs, and processes, of one squeeze job; at most runtime.gpus are used"
    )
    recipe: Name | None = Field(
        None, description="the data set whose recipe it uses; default: its own in config/recipes/"
    )
    compare_ipc: tuple[Count, ...] = Field(
        (),
        description="adds a table results/<name>.csv of compare_methods at these IPCs",
    )
    compare_methods: tuple[Name, ...] = Field(
        ("cda", "sre2l", "random"),
        min_length=1,
        description="methods of that table: names under methods in its recipe",
    )
    get: str = Field(description="one sentence on how to get it; errors end with it")

    @model_validator(mode="after")
    def _cropped(self) -> Dataset:
        if self.resize is not None and self.resize < self.resolution:
            raise ValueError(
                f"resize ({self.resize}) must be at least the resolution ({self.resolution})"
            )
        if self.resize is not None and self.fit == "squash":
            raise ValueError("resize is of a crop, and fit: squash crops nothing; drop one of them")
        return self

    @model_validator(mode="after")
    def _named(self) -> Dataset:
        names = self.class_names
        if bool(names) != (self.layout == "no_images"):
            raise ValueError("class_names go with layout no_images, which needs them")
        if names and (len(names) != self.classes or list(names) != sorted(set(names))):
            raise ValueError(f"class_names must be {self.classes} names, sorted and each once")
        return self

    @model_validator(mode="after")
    def _compared(self) -> Dataset:
        if "compare_methods" in self.model_fields_set and not self.compare_ipc:
            raise ValueError("compare_methods go with compare_ipc, which needs their IPCs")
        return self

    @model_validator(mode="after")
    def _mapped(self) -> Dataset:
        if not self.in_folder and (self.class_map or self.exclude):
            raise ValueError("class_map and exclude go with a layout of image files")
        names = self.published_names()
        outputs = [name for name in names.values() if name]
        if self.class_map and not len(names) == len(self.class_map) == self.classes:
            raise ValueError(f"class_map must have {self.classes} lines, each with another folder")
        if len(set(outputs)) < len(outputs):
            raise ValueError("class_map must give each class another name in published weights")
        return self

    def published_names(self) -> dict[str, str]:
        """Each class of `class_map` with its name in published weights, or none, in order."""
        pairs = (line.partition("\t") for line in self.class_map)
        return {unicodedata.normalize("NFC", folder): name.strip() for folder, _, name in pairs}

    @property
    def in_folder(self) -> bool:
        """Whether its images lie in a folder of its own."""
        return self.layout not in ("digits", "no_images")

    def identity(self) -> dict[str, Any]:
        """The values that change a result; of a list of files a digest."""
        keys = {"name", "classes", "resolution", "resize", "mean", "std"}
        keys |= {"class_names"} if self.class_names else set()
        keys |= {"fit"} if self.fit != "auto" else set()
        own = self.model_dump(mode="json", include=keys)
        for key, lines in (("class_map", self.class_map), ("exclude", self.exclude)):
            if lines:
                own[key] = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
        return own


class Runtime(Strict):
    """Where and how fast a job runs; nothing here enters a run's id."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: the GPU if one is present"
    )
    precision: Precision | dict[Computing, Precision] = Field(
        "auto",
        description="of convolutions and linear layers, for all stages or by stage ({recover: "
        "bf16}; the others: auto). auto: tf32 on a GPU, as the authors ran every stage, and fp32 "
        "on a CPU; tf32: float32, convolutions with TF32 products; bf16: autocast",
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="torch.compile of a stage's step; auto: for jobs that are long enough to "
        "repay the compilation",
    )
    cpu_threads: Count = Field(
        2, description="threads of a job; on CPU, bytes of a result depend on it"
    )
    blocks: Literal["auto"] | Count = Field(
        "auto",
        description="class blocks that recover sends through the network together; auto: as many "
        "as fit a GPU's free memory, one on a CPU",
    )
    gpu: str = Field(
        "a100",
        description="GPU of config/devices.yaml for which time limits are estimated",
    )
    max_hours: Positive = Field(
        24.0, description="longest time limit of a job; a longer job continues when resubmitted"
    )
    gpus: Count = Field(8, description="largest number of GPUs, and processes, of one squeeze job")
    workers: Literal["auto"] | Natural = Field(
        "auto",
        description="extra processes that decode a streamed data set's training images, for each "
        "GPU; auto: the job's cores less one, 1 to 16, where Snakemake requests 8 cores for them; "
        "0: the stage's own process decodes them",
    )
    checkpoint_seconds: Weight = Field(
        60.0,
        description="seconds between checkpoints of a long stage; more where saving takes over a "
        "twentieth of them",
    )

    def precision_of(self, stage: str) -> Precision:
        """The precision of a stage."""
        if isinstance(self.precision, str):
            return self.precision
        return next((own for name, own in self.precision.items() if name == stage), "auto")

    @property
    def requested_workers(self) -> int:
        """Decoding processes that a job's cores are requested for, and its time is estimated with.

        With the two cores of `cpu_threads`, 8 make the share of a GPU on common nodes.
        """
        return 8 if self.workers == "auto" else self.workers


class Labels(Strict):
    """The largest soft labels that are stored."""

    max_gb: Positive = Field(
        50.0,
        description="a larger label store is not written; the relabel model runs during validate",
    )


class Settings(Strict):
    """`config/config.yaml`, changed by the scale and then by the command line."""

    scale: str = Field("paper", description="paper, or a file in config/scales/")
    seeds: Count = Field(1, description="validation seeds of every cell: 0, 1, …")
    datasets: Annotated[Literal["all"] | tuple[str, ...], BeforeValidator(_names)] = Field(
        "all", description="data sets to run; the other cells of a table stay not_run"
    )
    cells: Literal["all", "present"] = Field(
        "all", description="present: make tables from the run JSONs that exist"
    )
    controls: Literal["default", "all", "none"] = Field(
        "default",
        description="controls beside the paper's cells; default: those that a table declares; "
        "all: also extra ones, such as random images, in every table",
    )
    data: str = Field("data", description="folder of the real data sets; $CDA_DATA overrides it")
    data_paths: dict[str, str] = Field(
        {},
        description="folder of a single data set, by name; here and in data, ~ and environment "
        "variables such as $SCRATCH are replaced",
    )
    labels: Labels = Field(Labels(), description="the label store")
    runtime: Runtime = Field(Runtime(), description="the machine")
