"""What this machine has of what tables need: a line each, and how to get what is missing.

Fetches nothing.
"""

from __future__ import annotations

import configparser
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from cda.config.names import find
from cda.data import sources
from cda.errors import ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.paths import data_root
from cda.experiments.runs import Run

COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class Finding:
    """One thing: whether it is there, what was found or what to do, and whether the tables cannot
    do without it.
    """

    what: str
    there: bool
    told: str
    needed: bool = False

    def line(self) -> str:
        """As one line."""
        state = "ok" if self.there else "missing" if self.needed else "–"
        return f"{state:8s} {self.what}: {self.told}"


def check(experiments: ExperimentSet, names: Sequence[str] = ()) -> tuple[str, bool]:
    """A line for everything that the tables `names` (default: all) need or can use, and whether all
    they need is there.

    They need their data sets and published weights; a GPU, SLURM, DVC and a compiler are told and
    needed by none.
    """
    runs = list(experiments.runs(tuple(names) or tuple(experiments.tables)).values())
    found = [
        *_data_sets(experiments, runs),
        *_weights(experiments, runs),
        _gpu(),
        _slurm(),
        _dvc(Path(".dvc")),
    ]
    found += [_compiler(), _disk(Path(experiments.layout.artifacts))]
    missing = sum(item.needed and not item.there for item in found)
    asked = ", ".join(names) or f"the tables of scale {experiments.settings.scale}"
    end = (
        f"For {asked}: {missing} missing."
        if missing
        else f"For {asked}: everything needed is there."
    )
    return "\n".join([*(item.line() for item in found), "", end]), not missing


def _data_sets(experiments: ExperimentSet, runs: Sequence[Run]) -> Iterator[Finding]:
    for name, data in {run.dataset: run.data for run in runs}.items():
        root = data_root(experiments.settings, name)
        problem = sources.check(data, root)
        told = problem or (str(root) if root.exists() else data.get)
        yield Finding(f"data set {name}", problem is None, told, needed=True)


def _weights(experiments: ExperimentSet, runs: Sequence[Run]) -> Iterator[Finding]:
    """Published weights of runs that are not squeezed yet, each name once."""
    named: list[tuple[str, str]] = []
    for run in runs:
        if run.stage == "squeeze" and not Path(experiments.layout.model(run)).is_file():
            published = run.recipe.squeeze.weights or run.recipe.squeeze.init
            if published:
                named.append((published, run.model))
    for published, model in dict.fromkeys(named):
        mend = (
            "fetched when they are needed; for nodes without internet: cda fetch "
            f"{published} {model}"
        )
        library, _, name = published.partition(":")
        try:
            file = {"torchvision": _torchvision, "timm": _timm, "package": _package}[library](
                model, name
            )
        except ConfigError as problem:  # a ValueError too
            file, mend = None, str(problem)
        except (KeyError, ValueError):
            file, mend = None, f"{library} has no weights of this name; mend it in config/recipes/"
        yield Finding(f"weights {published}", file is not None, str(file or mend), needed=True)


def _torchvision(_model: str, name: str) -> Path | None:
    """The file in torch.hub's folder.

    Raises ValueError or KeyError for a name that torchvision does not know.
    """
    import torch
    from torchvision.models import get_weight

    file = (
        Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(get_weight(name).url).path).name
    )
    return file if file.is_file() else None


def _timm(model: str, tag: str) -> Path | None:
    """The file in Hugging Face's cache."""
    from huggingface_hub import try_to_load_from_cache

    network = find(model)
    for file in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(f"timm/{network.name if network else model}.{tag}", file)
        if isinstance(found, str):
            return Path(found)
    return None


def _package(_model: str, name: str) -> Path:
    """The file in the package; raises ConfigError."""
    from cda.engine.pretrained import shipped

    return shipped(name)


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding(
            "GPU",
            False,
            "torch sees none: jobs run on the CPU; mend the driver if there should be one",
        )
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    half = (
        "bf16"
        if torch.cuda.is_bf16_supported(including_emulation=False)
        else "no bf16: jobs run in fp32"
    )
    return Finding(
        "GPU",
        True,
        "; ".join(f"{card.name}, {card.total_memory / 1e9:.0f} GB" for card in cards) + f"; {half}",
    )


def _slurm() -> Finding:
    answers = []
    for program, options in (("sinfo", ["-h", "-o", "%P"]), ("squeue", ["-h", "--me"])):
        if shutil.which(program) is None:
            return Finding("SLURM", False, f"no {program} on the PATH: jobs run on this machine")
        try:
            done = subprocess.run(
                [program, *options], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return Finding(
                "SLURM", False, f"{program} does not answer; ask your cluster's administrators"
            )
        if done.returncode:
            reason = [*done.stderr.strip().splitlines(), f"exit status {done.returncode}"][0]
            return Finding(
                "SLURM", False, f"{program} says: {reason}; ask your cluster's administrators"
            )
        answers.append(done.stdout)
    partitions = dict.fromkeys(line.strip() for line in answers[0].splitlines())
    return Finding("SLURM", True, f"answers; partitions {', '.join(partitions)}")


def _dvc(folder: Path) -> Finding:
    """Whether DVC is installed and knows a default remote, from its configuration files alone."""
    if importlib.util.find_spec("dvc") is None and shutil.which("dvc") is None:
        return Finding("DVC", False, "not installed: artifacts are made here, none are fetched")
    told = configparser.ConfigParser(interpolation=None)
    try:
        told.read([folder / "config", folder / "config.local"], encoding="utf-8")
    except (configparser.Error, ValueError):
        return Finding(
            "DVC", False, f"{folder}/config is damaged; mend it or take it from the repository"
        )
    remote = told.get("core", "remote", fallback="")
    url = told.get(f"'remote \"{remote}\"'", "url", fallback="")
    if not remote or not url:
        mend = "`dvc remote add --local --default NAME URL`"
        return Finding("DVC", False, f"{folder}/config names no default remote with a url; {mend}")
    return Finding("DVC", True, f"remote {remote}: {url}")


def _compiler() -> Finding:
    found = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    return Finding(
        "C++ compiler",
        found is not None,
        found or "none on the PATH; runtime.compile does nothing on a CPU",
    )


def _disk(folder: Path) -> Finding:
    there = next(
        (path for path in (folder, *folder.absolute().parents) if path.exists()), Path(".")
    )
    free = shutil.disk_usage(there).free / 1e9
    return Finding(
        "disk", True, f"{free:,.0f} GB free at {folder}/; `cda plan` tells what tables take"
    )
