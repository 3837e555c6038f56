"""Artifacts that travel: tracked, pushed, pulled on another machine, put in order, on a folder and
on S3.

The runs are those of a small table; their files are made up, since nobody here looks into them.
"""

import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from cda.config.load import load_settings
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import inputs, outputs
from cda.experiments.runs import MEASURING
from cda.pipeline import dvc as cda_dvc
from cda.pipeline.rules import Plan

ROOT = Path(__file__).parents[2]
TABLE = "results/tiny.csv"
NOTHING = "No changes.\n"
KEYS = {
    "AWS_ACCESS_KEY_ID": "made-up",
    "AWS_SECRET_ACCESS_KEY": "made-up",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def program(*command, cwd=None, ok=True):
    environment = (
        os.environ | KEYS | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    )
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    told = done.stdout + done.stderr
    assert (done.returncode == 0) == ok, told
    return told


def dvc(*arguments, **more):
    return program(sys.executable, "-m", "dvc", *arguments, **more)


def git(*arguments, **more):
    return program("git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments, **more)


def planned():
    """Jobs per rule of a dry run for the table."""
    told = program(sys.executable, "-m", "snakemake", "-n", TABLE, "--config", "datasets=[digits]")
    table = re.search(
        r"^Job stats:\njob +count\n[- ]+\n(.*?)^total", told, re.MULTILINE | re.DOTALL
    )
    return {
        name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)", table[1], re.MULTILINE)
    }


def make(paths):
    """Made-up files of some jobs' outputs, whole folders of a few."""
    for path in map(Path, paths):
        draws = random.Random(str(path))
        files = [path] if path.suffix else [path / f"file-{index}" for index in range(3)]
        if path.suffix == ".safetensors":
            files.append(path.parent / "squeeze.json")
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(draws.randbytes(3000))


def jobs(experiments, stage):
    return [
        path
        for run in experiments.runs().values()
        if run.stage == stage
        for path in outputs(run, 4, experiments.layout, experiments.settings.seeds)
    ]


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
        make(jobs(experiments, stage))
    for run in experiments.runs().values():
        if run.stage in MEASURING:
            for seed, path in enumerate(outputs(run, 0, experiments.layout, 2)):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_text(
                    json.dumps({"run": run.id, "seed": seed, "top1": 40.0 + seed}), encoding="utf-8"
                )
    for name in (".dvcignore", ".gitignore", "dvc.yaml", "workflow"):
        Path(name).symlink_to(ROOT / name) if name == "workflow" else shutil.copy(ROOT / name, name)
    shutil.copytree(
        ROOT / "src/cda/results", "src/cda/results", ignore=shutil.ignore_patterns("__pycache__")
    )
    git("init", "-q")
    Path(".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", ".dvc/config")
    shutil.copy(ROOT / ".dvc/.gitignore", ".dvc/.gitignore")
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
    from cda.cli import main

    return main(arguments)


def artifacts_here():
    files = (path for path in Path("artifacts").rglob("*") if path.is_file())
    return {
        str(path): path.read_bytes()
        for path in files
        if path.suffix != ".dvc" and not path.name.startswith(".")
    }


def damage(file):
    """Flip a byte and keep size, time and mode."""
    before = file.stat()
    file.chmod(0o644)
    with file.open("r+b") as opened:
        opened.seek(2)
        first = opened.read(1)[0]
        opened.seek(2)
        opened.write(bytes([first ^ 1]))
    file.chmod(stat.S_IMODE(before.st_mode))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def told_of(capsys):
    captured = capsys.readouterr()
    return captured.out + captured.err


def in_order(experiments):
    """Whether no run is older than what it reads, by the times that Snakemake takes."""

    def moment(path):
        stamp = Path(path, ".snakemake_timestamp")
        file = stamp if stamp.exists() else Path(path)
        return max(file.stat().st_mtime_ns, os.lstat(file).st_mtime_ns)

    for run in experiments.runs().values():
        made = [moment(path) for path in outputs(run, run.ipc or 4, experiments.layout, 2)]
        read = [
            path
            for one in inputs(run, 30.0)
            for path in outputs(one, run.ipc, experiments.layout, 0)
        ]
        if min(made) < max(map(moment, read), default=0):
            return False
    return True


def shuffle(kind):
    """Give everything another time: any, or the worst, where what was made first is the newest."""
    draws = random.Random(kind)
    order = ["results", "artifacts/relabel", "artifacts/recover", "artifacts/squeeze"]
    for age, top in enumerate(order):
        for path in Path(top).rglob("*"):
            moment = 1_600_000_000 + (age * 1000 if kind == "worst" else draws.randrange(10**8))
            os.utime(path, (moment, moment))


def test_pull_brings_what_missing_cells_need_and_nothing_is_made_again(clone, capsys):
    for path in Path("results/runs").rglob("seed-1.json"):
        path.unlink()
    assert cda("pull", TABLE, "--dry-run") == 0
    assert not artifacts_here()
    assert cda("pull", TABLE) == 0
    # Two parts and two label stores of either method; no model, which no validate job reads.
    assert (
        capsys.readouterr().out.count(f"{TABLE}: 8 outputs to bring, 72.0 kB; 0 here already.") == 2
    )
    assert not Path("artifacts/squeeze/digits").is_dir() or not list(
        Path("artifacts/squeeze/digits").glob("*/*")
    )
    assert planned() == {"validate": 4, "table": 1}
    assert cda("pull", TABLE, "--dry-run") == 0
    assert f"{TABLE}: 0 outputs to bring, 0 B; 8 here already." in capsys.readouterr().out


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_whatever_the_times_are_order_lets_nothing_be_made_again(link, clone, origin, declared):
    configure(origin[1], cache=link)
    dvc("pull")
    model = next(Path("artifacts/squeeze").rglob("model.safetensors"))
    assert model.is_symlink() == (link == "symlink")
    assert (os.lstat(model).st_nlink, model.stat().st_nlink) == (
        (2, 2) if link == "hardlink" else (1, 1)
    )
    for seed in range(2 if link == "hardlink" else 0):
        shuffle(seed)
        assert not in_order(declared)
        assert cda("order") == 0
        assert in_order(declared)
    shuffle("worst")
    assert planned() == {"table": 1}  # what is measured stays, whatever the times
    for path in Path("results/runs").rglob("seed-1.json"):
        path.unlink()
    if link == "hardlink":
        assert set(planned()) == {"recover", "relabel", "validate", "table"}
    assert cda("order") == 0
    assert planned() == {"validate": 4, "table": 1}
    assert dvc("data", "status").startswith(NOTHING)  # git knows of the JSONs that are gone


def test_times_in_the_future_are_lowered(copy, declared):
    for path in Path("artifacts").rglob("*"):
        os.utime(path, (4e9, 4e9))
    assert cda("order") == 0
    assert in_order(declared)
    assert max(path.stat().st_mtime for path in Path("results/runs").rglob("*.json")) < 4e9


def test_what_was_made_from_another_model_is_not_put_in_order(copy, declared, capsys):
    model = Path(jobs(declared, "squeeze")[0])
    model.unlink()
    model.write_bytes(b"trained once more, here")
    shuffle("worst")
    assert cda("order") == 0
    told = capsys.readouterr().err
    assert (
        f"{model}: is not what is tracked, so what was made from it keeps its time; cda track"
        in told
    )
    assert not in_order(declared)
    assert cda("track") == 0
    assert f"tracked {model.parent}: model.safetensors (23 B)" in capsys.readouterr().out
    assert cda("order") == 0
    assert in_order(declared)


def test_a_model_that_came_alone_is_not_trained_again_for_its_test_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config").symlink_to(ROOT / "config")
    plan = Plan({"datasets": ["imagenet21k_p"]})
    run = next(run for run in plan.experiments.runs().values() if run.stage == "squeeze")
    job = SimpleNamespace(run=run.id)
    assert len(plan.decoded(job)) == len(plan.start(job)) == 1
    model = Path(plan.layout.model(run))
    model.parent.mkdir(parents=True)
    model.touch()
    assert plan.decoded(job) == plan.start(job) == []


def test_with_the_run_jsons_nothing_is_needed(clone, capsys):
    assert cda("pull", TABLE) == 0
    assert (
        "Its measurements are all there, so it is made without artifacts" in capsys.readouterr().out
    )
    assert not artifacts_here()


def test_tracking_again_changes_nothing_and_what_is_half_there_is_left(copy, declared, capsys):
    before = artifacts_here()
    half = Path(jobs(declared, "squeeze")[0])
    dvc_file = cda_dvc.file_of(str(half.parent))
    dvc_file.unlink()
    (half.parent / "squeeze.json").unlink()
    other = cda_dvc.file_of(str(Path(jobs(declared, "recover")[0]).parent))
    told = yaml.safe_load(other.read_text())
    assert sum(told.pop("meta")["bytes"].values()) == told["outs"][0]["size"] == 18000
    other.write_text(
        yaml.safe_dump(told, sort_keys=False)
    )  # as a kill leaves it, or a plain `dvc add`
    assert cda("track") == 0
    assert "0 runs tracked, 0 B; 6 were already." in capsys.readouterr().out
    assert not dvc_file.exists()
    assert {
        path: content for path, content in before.items() if path in artifacts_here()
    } == artifacts_here()
    assert git("status", "--short") == f" D {dvc_file}\n"


def test_a_part_made_later_is_added_and_none_that_was_not_pulled_is_dropped(
    clone, origin, declared, tmp_path, capsys
):
    os.chdir(origin[0])
    whole = artifacts_here()
    os.chdir(clone)
    parts = [part for part in jobs(declared, "recover") if "curriculum" in part]
    folder = str(Path(parts[0]).parent)
    remote = tmp_path / "remote"
    shutil.copytree(origin[1], remote)
    configure(remote)
    dvc("pull", parts[0])
    make([f"{folder}/part-2"])
    assert cda("track") == 0
    assert f"tracked {folder}: part-2 (9.0 kB)" in capsys.readouterr().out
    noted = yaml.safe_load(cda_dvc.file_of(folder).read_text())["meta"]["bytes"]
    assert noted == {"part-0": 9000, "part-1": 9000, "part-2": 9000}
    before = set(remote.rglob("*"))
    dvc("push")
    new = [path for path in remote.rglob("*") if path.is_file() and path not in before]
    assert len(new) == 3 + 1  # its files, and the new list of the run's files
    git("commit", "-q", "-a", "-m", "A further part")
    git("clone", "-q", ".", str(tmp_path / "third"))
    shutil.copy(".dvc/config.local", tmp_path / "third/.dvc/config.local")
    os.chdir(tmp_path / "third")
    told = dvc(
        "gc", "--workspace", "--all-branches", "--all-tags", "--cloud", "--force"
    )  # from a machine without any
    assert (
        "Removed 1 objects from remote" in told
    )  # the list of the run's files before there was a further part
    dvc("pull")
    here = artifacts_here()
    assert {path for path in here if path.startswith(folder)} == {
        f"{folder}/part-{part}/file-{index}" for part in range(3) for index in range(3)
    }
    assert {path: here[path] for path in whole} == whole


def test_a_changed_part_that_lacks_files_is_refused(clone, declared, capsys):
    part = Path(jobs(declared, "recover")[0])
    dvc("pull", str(part))
    file = part / "file-0"
    file.unlink()
    file.write_bytes(b"other")
    (part / "file-1").unlink()
    before = cda_dvc.file_of(str(part.parent)).read_bytes()
    for command in (["track"], ["pull", TABLE, "--all"]):
        assert cda(*command) == 1
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith(
            f"cda: {part}: lacks files that are tracked, and has others that are not; remove it"
        )
    assert cda_dvc.file_of(str(part.parent)).read_bytes() == before


def test_a_damaged_cached_file_is_found_and_brought_again(clone, origin, declared, capsys):
    assert cda("pull", TABLE, "--all") == 0
    whole = artifacts_here()
    victim = Path(jobs(declared, "relabel")[0]) / "file-1"
    damage(victim)
    md5 = cda_dvc.tracked(str(Path(jobs(declared, "recover")[0]).parent)).md5
    damage(Path(".dvc/cache/files/md5", md5[:2], md5[2:]))
    assert cda("pull", TABLE, "--all", "--verify") == 0
    told = capsys.readouterr()
    assert "its list of files is damaged in DVC's cache" in told.err
    assert f"{victim}: damaged in DVC's cache; thrown away, to be brought again" in told.err
    assert artifacts_here() == whole
    assert dvc("data", "status") == NOTHING


class Gate:
    """Moto's S3, which counts objects sent and got, and on demand stops at the n-th for as long as
    its client lives.
    """

    def __init__(self):
        self.application = DomainDispatcherApplication(create_backend_app)
        self.asked = {"PUT": [], "GET": []}
        self.stop_at = {}
        self.stopped, self.go_on = threading.Event(), threading.Event()
        self.server = make_server("127.0.0.1", 0, self, threaded=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def __call__(self, environ, start_response):
        method, key = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        listed = method == "GET" and key.endswith(
            ".dir"
        )  # the lists of runs' files are read more than once
        if method in self.asked and "/files/md5/" in key and not listed:
            if len(self.asked[method]) >= self.stop_at.get(method, 10**9):
                self.stopped.set()
                self.go_on.wait(120)
                start_response("503 Killed", [])
                return []
            self.asked[method].append(key)
        return self.application(environ, start_response)

    def killed_at(self, method, count, *command):
        """Run DVC, one transfer at a time, and kill it when it asks for object `count`.

        What it transferred before.
        """
        self.asked[method].clear()
        self.stop_at[method] = count
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", *command, "--jobs", "1"], env=os.environ | KEYS
        )
        assert self.stopped.wait(120)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        self.go_on.set()
        self.stop_at.clear()
        self.stopped.clear()
        done = self.asked[method][:]
        self.go_on.clear()
        self.asked[method].clear()
        return done

    def transferred(self, method):
        done = self.asked[method][:]
        self.asked[method].clear()
        return done


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
    whole = artifacts_here()
    total = len(set(whole.values())) + 7  # and 7 lists of files

    before = s3.killed_at("PUT", 5, "push")
    assert len(before) == 5
    dvc("push")
    after = s3.transferred("PUT")
    assert len(after) == total - 5
    assert not set(before) & set(after)
    dvc("push")
    assert s3.transferred("PUT") == []

    shard = Path(jobs(declared, "recover")[0]) / "file-0"
    shard.unlink()
    shard.write_bytes(b"another shard")
    assert cda("track") == 0
    dvc("push")
    assert len(s3.transferred("PUT")) == 2  # the shard, and the list of the run's files
    whole[str(shard)] = b"another shard"

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
    assert artifacts_here() == whole


def test_repro_makes_the_tables_again_and_no_run(copy):
    shuffle("worst")
    told = dvc("repro", "results@paper")
    assert not re.search(r"^rule (squeeze|recover|relabel|validate):", told, re.MULTILINE)
    assert ",measured,paper," in Path(TABLE).read_text()
    shown = json.loads(dvc("metrics", "show", "--json", "results/metrics.json"))
    numbers = shown[""]["data"]["results/metrics.json"]["data"]["tiny"]
    assert numbers["measured"] == 4
    assert numbers["digits cda resnet18 2 6 resnet18 top1"] == 40.5
    assert "results@paper" not in dvc("status", "results@paper")


@pytest.mark.parametrize(
    ("spoil", "command", "line"),
    [
        (
            lambda: Path(".dvc/config.local").unlink(),
            ["pull", TABLE, "--all"],
            ".dvc/config.local: names no remote",
        ),
        (
            lambda: shutil.rmtree(".dvc"),
            ["pull", TABLE, "--all"],
            ".dvc: there is none here; work in a git clone",
        ),
        (
            lambda: next(Path("artifacts").rglob("*.dvc")).write_text("{"),
            ["pull", TABLE, "--all"],
            "is no DVC file",
        ),
        (
            lambda: None,
            ["pull", "results/table77.csv"],
            "there is no table 'table77' at scale paper",
        ),
        (
            lambda: None,
            ["track", "--config", "scale=small"],
            "config key scale: artifacts of scale small are not",
        ),
    ],
    ids=["no remote", "no clone", "damaged", "no table", "scale"],
)
def test_a_mistake_ends_in_one_line(spoil, command, line, clone, capsys):
    Path("config/scales").mkdir()
    Path("config/scales/small.yaml").write_text("datasets: {digits: {}}\n")
    spoil()
    assert cda(*command) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("cda: ")
    assert line in told


def test_without_dvc_one_line_says_so(clone, monkeypatch, capsys):
    monkeypatch.setattr(cda_dvc.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", "")
    assert cda("pull", TABLE, "--all") == 1
    assert "cda: DVC is not installed; `make setup`, or pip install" in capsys.readouterr().err


def test_a_second_cda_is_refused_while_one_tracks(clone, capsys):
    with cda_dvc.exclusive():
        assert cda("track") == 1
    assert (
        "cda: .dvc/tmp/cda.lock: another cda tracks or pulls here; wait" in capsys.readouterr().err
    )


def test_runs_that_nobody_tracked_are_named_and_what_they_need_is_brought(clone, declared, capsys):
    labels = [path for path in jobs(declared, "relabel") if "curriculum" in path]
    parts = [path for path in jobs(declared, "recover") if "curriculum" in path]
    for folder in (*(Path(path).parent for path in labels), Path(parts[0]).parent):
        cda_dvc.file_of(str(folder)).unlink()
    shutil.rmtree("results/runs")
    assert cda("pull", TABLE, "--dry-run") == 0
    told = capsys.readouterr().out
    assert f"not tracked by anybody: recover digits {Path(parts[0]).parent.name} (2 jobs)" in told
    assert f"not tracked by anybody: relabel digits {Path(labels[0]).parent.name} (1 job)" in told
    assert "--config cells=present makes do with the run JSONs there are" in told
    assert (
        f"{TABLE}: 5 outputs to bring, 42.0 kB" in told
    )  # random's parts and labels; the model that cda's parts need
