"""Artifacts that travel: tracked, pushed and pulled on another machine, from a folder and from S3.

The runs are those of a small table. Their files are made up, since no test here reads them.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tests.dvc.programs import KEYS, ROOT, Gate, damage, dry_run, dvc, git, planned, program

from cda.cli import main
from cda.config.load import load_settings
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import graph_of
from cda.experiments.runs import MEASURING
from cda.pipeline import dvc as cda_dvc

TABLE = "results/tiny.csv"
NOTHING = "No changes.\n"


def make(paths):
    """Write made-up files in the places of some jobs' outputs; a folder gets a few."""
    for path in map(Path, paths):
        draws = random.Random(str(path))
        names, part = ["file-0", "file-1", "file-2"], path.name.partition("part-")[2]
        if part:  # two shards a part
            names[1:] = [f"ipc-{2 * int(part) + index:03d}.tar" for index in range(2)]
        files = [path] if path.suffix else [path / name for name in names]
        if path.suffix == ".safetensors":
            files.append(path.parent / "squeeze.json")
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(draws.randbytes(3000))


def outputs(experiments, stage):
    """The outputs of every job of a stage: two parts a recover run, two seeds a measuring run."""
    graph = graph_of(experiments)
    runs = [run for run in experiments.runs().values() if run.stage == stage]
    indices = range(2 if stage in ("recover", *MEASURING) else 1)
    return [graph.job(run, index).output for run in runs for index in indices]


def configure(url, cache="hardlink", **more):
    """Name a remote, as `dvc remote add --local --default` does, and a kind of link."""
    lines = ["[cache]", f"type = {cache}", "[core]", "remote = box", "['remote \"box\"']"]
    lines += [f"{key} = {value}" for key, value in {"url": url, **more}.items()]
    Path(".dvc/config.local").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def origin(tmp_path_factory, config_tree):
    """A finished project, tracked, pushed to a folder and committed: what others clone."""
    home = tmp_path_factory.mktemp("origin")
    os.chdir(home)
    tree = config_tree()
    tree.experiment("tiny", {"methods": ["cda", "random"], "ipc": [2, 4]})
    experiments = tree.experiments()
    for stage in ("squeeze", "recover", "relabel"):
        make(outputs(experiments, stage))
    for run in experiments.runs().values():
        for seed in range(2 if run.stage in MEASURING else 0):
            path = Path(experiments.layout.run_json(run, seed))
            path.parent.mkdir(parents=True, exist_ok=True)
            measured = {"run": run.id, "seed": seed, "top1": 40.0 + seed}
            path.write_text(json.dumps(measured), encoding="utf-8")
    for name in (".dvcignore", ".gitignore", "dvc.yaml"):
        shutil.copy(ROOT / name, name)
    Path("workflow").symlink_to(ROOT / "workflow")
    for room in ("src/cda/results", "src/cda/experiments"):
        shutil.copytree(ROOT / room, room, ignore=shutil.ignore_patterns("__pycache__"))
    git("init", "-q")
    Path(".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, f".dvc/{name}")
    remote = tmp_path_factory.mktemp("remote")
    configure(remote)
    assert tree.cda("track") == 0
    dvc("push")
    git("add", ".")
    git("commit", "-q", "-m", "A finished project")
    os.chdir(ROOT)
    return home, remote


@pytest.fixture
def clone(origin, tmp_path, monkeypatch):
    """Another machine: a clone that knows the remote, without artifacts; the tests are in it."""
    home, remote = origin
    git("clone", "-q", str(home), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    for name in ("CDA_CONFIG", "CDA_DATA"):
        monkeypatch.delenv(name, raising=False)
    configure(remote)
    return tmp_path / "clone"


@pytest.fixture
def copy(origin, tmp_path, monkeypatch):
    """The origin itself, to change at will."""
    shutil.copytree(origin[0], tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    for name in ("CDA_CONFIG", "CDA_DATA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def declared():
    """Everything declared in the project that the test is in."""
    return ExperimentSet(load_settings({}))


def cda(*arguments):
    return main(arguments)


def artifacts_here():
    files = (path for path in Path("artifacts").rglob("*") if path.is_file())
    return {
        str(path): path.read_bytes()
        for path in files
        if path.suffix != ".dvc" and not path.name.startswith(".")
    }


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_pull_brings_what_missing_cells_need_and_nothing_else_is_planned(clone, capsys):
    for path in Path("results/runs").rglob("seed-1.json"):
        path.unlink()
    assert cda("pull", TABLE, "--dry-run") == 0
    assert not artifacts_here()
    assert cda("pull", TABLE) == 0
    # Two parts and two label stores of either method; no model, which no validate job reads.
    assert capsys.readouterr().out == 2 * "8 outputs to bring, 72 kB; 0 are here.\n"
    assert not list(Path("artifacts/squeeze").rglob("model.safetensors"))
    assert planned(dry_run(TABLE, "datasets=[digits]")) == {"validate": 4, "table": 1}
    assert cda("pull", TABLE, "--dry-run") == 0
    assert capsys.readouterr().out == "0 outputs to bring, 0 B; 8 are here.\n"


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_after_a_plain_dvc_pull_no_stage_is_planned_that_it_brought(link, clone, origin):
    configure(origin[1], cache=link)
    dvc("pull")
    model = next(Path("artifacts/squeeze").rglob("model.safetensors"))
    assert model.is_symlink() == (link == "symlink")
    links = (os.lstat(model).st_nlink, model.stat().st_nlink)
    assert links == ((2, 2) if link == "hardlink" else (1, 1))
    assert planned(dry_run(TABLE, "datasets=[digits]")) == {"table": 1}
    for path in Path("results/runs").rglob("seed-1.json"):
        path.unlink()
    assert planned(dry_run(TABLE, "datasets=[digits]")) == {"validate": 4, "table": 1}
    assert dvc("data", "status").startswith(NOTHING)  # git knows of the JSONs that are gone


def test_times_in_the_future_are_lowered_by_the_documented_line(copy):
    lower = "find -L artifacts results -newermt now -exec touch {} +"
    assert lower in (ROOT / "docs/artifacts.md").read_text(encoding="utf-8")
    for path in [*Path("artifacts").rglob("*"), *Path("results").rglob("*")]:
        os.utime(path, (4e9, 4e9))
    make_table = (sys.executable, "-m", "snakemake", "--cores", "1", TABLE)
    config = ("--config", "datasets=[digits]")
    assert "has older modification time" in program(*make_table, *config, ok=False)
    program(lower, shell=True)
    assert planned(program(*make_table, *config)) == {"table": 1}
    assert ",measured,own," in Path(TABLE).read_text()


def test_a_model_trained_again_here_is_tracked_again(copy, declared, capsys):
    model = Path(outputs(declared, "squeeze")[0])
    model.unlink()
    model.write_bytes(b"trained once more, here")
    assert cda("track") == 0
    assert f"tracked {model.parent}: model.safetensors (23 B)" in capsys.readouterr().out
    recorded = cda_dvc.tracked(str(model.parent))
    assert recorded.entries == {"model.safetensors": 23, "squeeze.json": 3000}
    assert recorded.size == 3023


def test_with_the_run_jsons_nothing_is_needed(clone, capsys):
    assert cda("pull", TABLE) == 0
    assert "All measurements are here, so nothing else is needed" in capsys.readouterr().out
    assert not artifacts_here()


def test_tracking_again_changes_nothing_and_half_a_model_is_not_tracked(copy, declared, capsys):
    before = artifacts_here()
    half = Path(outputs(declared, "squeeze")[0])
    dvc_file = Path(f"{half.parent}.dvc")
    dvc_file.unlink()
    (half.parent / "squeeze.json").unlink()
    other = Path(f"{Path(outputs(declared, 'recover')[0]).parent}.dvc")
    content = yaml.safe_load(other.read_text())
    assert sum(content.pop("meta")["bytes"].values()) == content["outs"][0]["size"] == 18000
    # As a kill leaves it, or a plain `dvc add`:
    other.write_text(yaml.safe_dump(content, sort_keys=False))
    assert cda("track") == 0
    assert "0 runs tracked, 0 B; 6 were already." in capsys.readouterr().out
    assert not dvc_file.exists()
    after = artifacts_here()
    assert after == {path: before[path] for path in after}
    assert git("status", "--short") == f" D {dvc_file}\n"


def test_a_part_made_later_is_added_and_none_that_was_not_pulled_is_dropped(
    clone, origin, declared, tmp_path, capsys
):
    os.chdir(origin[0])
    complete = artifacts_here()
    os.chdir(clone)
    parts = [part for part in outputs(declared, "recover") if "curriculum" in part]
    folder = str(Path(parts[0]).parent)
    remote = tmp_path / "remote"
    shutil.copytree(origin[1], remote)
    configure(remote)
    dvc("pull", parts[0])
    make([f"{folder}/part-2"])
    assert cda("track") == 0
    assert f"tracked {folder}: part-2 (9 kB)" in capsys.readouterr().out
    recorded = cda_dvc.tracked(folder).entries
    assert recorded == {"part-0": 9000, "part-1": 9000, "part-2": 9000}
    before = set(remote.rglob("*"))
    dvc("push")
    new = [path for path in remote.rglob("*") if path.is_file() and path not in before]
    assert len(new) == 3 + 1  # its files, and the new list of the run's files
    git("commit", "-q", "-a", "-m", "A further part")
    git("clone", "-q", ".", str(tmp_path / "third"))
    shutil.copy(".dvc/config.local", tmp_path / "third/.dvc/config.local")
    os.chdir(tmp_path / "third")
    # From a machine without any artifact, only the run's former list of files is unused:
    printed = dvc("gc", "--workspace", "--all-branches", "--all-tags", "--cloud", "--force")
    assert "Removed 1 objects from remote" in printed
    dvc("pull")
    here = artifacts_here()
    assert {path for path in here if path.startswith(folder)} == {
        f"{folder}/part-{index // 2}/{name}"
        for index in range(6)
        for name in ("file-0", f"ipc-{index:03d}.tar")
    }
    assert {path: here[path] for path in complete} == complete


def test_a_changed_part_that_lacks_files_is_refused(clone, declared, capsys):
    part = Path(outputs(declared, "recover")[0])
    dvc("pull", str(part))
    file = part / "file-0"
    file.unlink()
    file.write_bytes(b"other")
    (part / "ipc-000.tar").unlink()
    before = Path(f"{part.parent}.dvc").read_bytes()
    for command in (["track"], ["pull", TABLE, "--all"]):
        assert cda(*command) == 1
        refusal = f"cda: {part}: lacks tracked files and has others; remove it, then pull it"
        assert last_line(capsys).startswith(refusal)
    assert Path(f"{part.parent}.dvc").read_bytes() == before
    assert file.read_bytes() == b"other"


def test_pull_never_overwrites_what_differs_here(clone, declared, capsys):
    assert cda("pull", TABLE, "--all") == 0
    shard = Path(outputs(declared, "recover")[0]) / "file-0"
    shard.unlink()
    shard.write_bytes(b"my own")
    assert cda("pull", TABLE, "--all") == 0
    assert shard.read_bytes() == b"my own"


def test_a_pull_needs_room_on_the_disk(clone, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=100))
    assert cda("pull", TABLE, "--all") == 1
    assert re.search(r"^cda: /.*: 100 B free, 78 kB to come; make room, or", last_line(capsys))
    assert not artifacts_here()


@pytest.mark.parametrize("link", ["hardlink", "copy"])
def test_a_damaged_file_is_replaced_by_the_documented_commands(link, clone, origin, declared):
    page = (ROOT / "docs/artifacts.md").read_text(encoding="utf-8")
    configure(origin[1], cache=link)
    dvc("pull")
    before = artifacts_here()
    victim = Path(outputs(declared, "relabel")[0]) / "file-1"
    damage(victim)
    assert dvc("data", "status") == NOTHING  # DVC looks at sizes and times
    lines = ["find .dvc/cache -samefile FILE -delete", "rm -f FILE", "dvc pull RUN"]
    for line in lines:
        assert line in page
        program(
            line.replace("FILE", str(victim)).replace("RUN", str(victim.parents[1])), shell=True
        )
    assert artifacts_here() == before
    assert dvc("data", "status") == NOTHING


def test_the_documented_line_names_damaged_files_of_the_cache(clone):
    dvc("pull")
    page = (ROOT / "docs/artifacts.md").read_text(encoding="utf-8")
    check = re.search(r"^\(cd \.dvc/cache/files/md5 .*$", page, re.MULTILINE)[0]
    assert program(check, shell=True) == ""
    cached = sorted(Path(".dvc/cache/files/md5").glob("*/*"))
    victims = [cached[0], next(path for path in cached if path.suffix == ".dir")]
    for path in victims:
        damage(path)
    found = re.findall(r"^(.*): FAILED$", program(check, shell=True, ok=False), re.MULTILINE)
    assert sorted(found) == sorted({f"{path.parent.name}/{path.name}" for path in victims})


@pytest.fixture
def s3(monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    gate = Gate()
    import boto3

    boto3.client("s3", endpoint_url=gate.url).create_bucket(Bucket="bucket")
    yield gate
    gate.server.shutdown()


def test_s3_round_trip_through_kills(copy, s3, declared, tmp_path):
    configure("s3://bucket/cda", endpointurl=s3.url)
    before_all = artifacts_here()
    total = len(set(before_all.values())) + 7  # and 7 lists of files

    before = s3.killed_at("PUT", 5, "push")
    assert len(before) == 5
    dvc("push")
    after = s3.transferred("PUT")
    assert len(after) == total - 5
    assert not set(before) & set(after)
    dvc("push")
    assert s3.transferred("PUT") == []

    shard = Path(outputs(declared, "recover")[0]) / "file-0"
    shard.unlink()
    shard.write_bytes(b"another shard")
    assert cda("track") == 0
    dvc("push")
    assert len(s3.transferred("PUT")) == 2  # the shard, and the list of the run's files
    before_all[str(shard)] = b"another shard"

    git("commit", "-q", "-a", "-m", "Another shard")
    git("clone", "-q", ".", str(tmp_path / "third"))
    shutil.copy(".dvc/config.local", tmp_path / "third/.dvc/config.local")
    os.chdir(tmp_path / "third")
    s3.transferred("GET")
    before = s3.killed_at("GET", 6, "pull")
    assert cda("pull", TABLE, "--all") == 0
    after = s3.transferred("GET")
    assert len(before) == 6
    assert len(set(before) & set(after)) <= 1  # one may have arrived and not been put in its place
    assert artifacts_here() == before_all


def test_repro_makes_the_tables_again_and_no_run(copy):
    printed = dvc("repro", "results@paper")
    assert not re.search(r"^rule (squeeze|recover|relabel|validate):", printed, re.MULTILINE)
    assert ",measured,own," in Path(TABLE).read_text()
    printed = json.loads(dvc("metrics", "show", "--json", "results/metrics.json"))
    numbers = printed[""]["data"]["results/metrics.json"]["data"]["tiny"]
    assert numbers["measured"] == 4
    assert numbers["digits cda resnet18 2 6 resnet18 top1"] == 40.5
    assert "results@paper" not in dvc("status", "results@paper")


def remove_remote():
    Path(".dvc/config.local").unlink()


def remove_dvc():
    shutil.rmtree(".dvc")


def damage_dvc_file():
    next(Path("artifacts/squeeze").rglob("*.dvc")).write_text("{")


ALL = ["pull", TABLE, "--all"]


@pytest.mark.parametrize(
    ("spoil", "command", "line"),
    [
        (remove_remote, ALL, "dvc pull: failed (failed to pull data from the cloud"),
        (remove_dvc, ALL, ".dvc: does not exist; work in the top folder of a git clone"),
        (damage_dvc_file, ALL, "is no DVC file of a run; take it from git: git checkout artifacts"),
        (damage_dvc_file, ["track"], "is no DVC file of a run; take it from git: git checkout art"),
        (None, ["pull", "results/table77.csv"], "there is no table or figure 'table77' at scale"),
        (None, ["track", "--config", "scale=small"], "config key scale: artifacts of scale small"),
    ],
    ids=["no remote", "no clone", "damaged", "damaged, track", "no table", "scale"],
)
def test_a_mistake_ends_in_one_line(spoil, command, line, clone, declared, capsys):
    Path("config/scales").mkdir()
    Path("config/scales/small.yaml").write_text("datasets: {digits: {}}\n")
    make(outputs(declared, "squeeze"))
    if spoil:
        spoil()
    assert cda(*command) == 1
    printed = last_line(capsys)
    assert printed.startswith("cda: ")
    assert line in printed


def test_without_a_remote_a_run_that_was_not_pulled_is_not_tracked_anew(clone, declared, capsys):
    Path(".dvc/config.local").unlink()
    part = outputs(declared, "recover")[0]
    make([part])
    assert cda("track") == 1
    refusal = f"cda: {Path(part).parent}.dvc: its list of files is neither in DVC's cache nor on a"
    assert last_line(capsys).startswith(refusal)


def test_without_dvc_one_line_prints_how_to_install_it(clone, monkeypatch, capsys):
    monkeypatch.setattr(cda_dvc.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", "")
    assert cda("pull", TABLE, "--all") == 1
    assert "cda: DVC is not installed; `make setup`, or pip install" in capsys.readouterr().err


def test_a_second_cda_is_refused_while_one_tracks(clone, capsys):
    lock = Path(".dvc/tmp/cda.lock")
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert cda("track") == 1
    assert last_line(capsys).startswith(f"cda: {lock}: another cda track or cda pull runs here;")


def test_runs_that_are_not_tracked_are_named_and_what_they_need_is_brought(clone, declared, capsys):
    labels = [path for path in outputs(declared, "relabel") if "curriculum" in path]
    parts = [path for path in outputs(declared, "recover") if "curriculum" in path]
    for folder in (*(Path(path).parent for path in labels), Path(parts[0]).parent):
        Path(f"{folder}.dvc").unlink()
    shutil.rmtree("results/runs")
    assert cda("pull", TABLE, "--dry-run") == 0
    printed = capsys.readouterr().out
    name = "not tracked, would be computed: {} digits {} ({})"
    assert name.format("recover", Path(parts[0]).parent.name, "2 jobs") in printed
    assert name.format("relabel", Path(labels[0]).parent.name, "1 job") in printed
    # The parts and labels of random images, and the model that CDA's parts need:
    assert printed.startswith("5 outputs to bring, 42 kB; 0 are here.\n")
