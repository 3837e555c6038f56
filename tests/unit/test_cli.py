"""The command line: `--help`, removed commands, and mistakes that end in one line."""

from __future__ import annotations

import re

import pytest

from cda.cli import REMOVED, main
from cda.command import COMMANDS

GROUPS = ["stages", "tables and figures", "running", "DVC", "configuration"]
BANNED = (
    "told tell tells asked ask asks said say says kept shown given whole aside mend mended reckon "
    "ours theirs amid"
)


def printed_help(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_command_in_its_group(capsys):
    page = printed_help(capsys=capsys)
    heads = re.findall(r"^(\w[\w ]*):$", page, re.MULTILINE)
    assert heads == ["options", *GROUPS]
    listed = re.findall(r"^  ([a-z]+) +[A-Z].*[^.]$", page, re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    assert all(len(line) <= 100 for line in page.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_describes_itself_and_its_options(name, capsys):
    page = printed_help(name, capsys=capsys)
    assert page.startswith(f"usage: cda {name} [-h]")
    assert re.search(r"^[A-Z].*", page, re.MULTILINE)
    assert not set(re.findall(r"[a-z]+", page.lower())) & set(BANNED.split())
    assert all(settings.get("help") for _flags, settings in COMMANDS[name].options)


@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_command_names_its_successor_in_one_line(name, capsys):
    assert main([name, "table1", "--minutes", "5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cda: {name} was removed; ")
    assert name not in COMMANDS
    for successor in re.findall(r"cda ([a-z]+)", line):
        assert successor in COMMANDS


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["table", "table1", "--nope"], "cda table: error: unrecognized arguments: --nope"),
        (["validate"], "cda validate: error: the following arguments are required: --run"),
        (["plan", "--gpus", "many"], "cda plan: error: argument --gpus: invalid int value: 'many'"),
        (["nothing"], "cda: error: argument COMMAND: invalid choice: 'nothing' (choose from "),
        ([], "cda: error: the following arguments are required: COMMAND"),
    ],
)
def test_a_wrong_command_line_ends_with_its_problem_and_status_2(words, problem, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(problem)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["table", "tinny"], "there is no table 'tinny' at scale paper"),
        (["figure", "nothing"], "there is no figure 'nothing' at scale paper; there is none"),
        (["list", "tinny"], "there is no table or figure 'tinny' at scale paper (nearest: tiny); "),
        (["list", "tiny", "--config", "datasets=[digit]"], "not declared (nearest: digits); use"),
        (["plan", "tiny", "--gpu", "h9000"], "--gpu h9000: is not in config/devices.yaml; use one"),
        (["config", "show", "nothing"], "no run 'nothing' at scale paper"),
        (["list", "tiny", "--config", "sedes=3"], "sedes"),
        (["run", "tiny", "--minutes", "0.1"], "--minutes 0.1: too few"),
        (["track"], ".dvc: does not exist; work in the top folder of a git clone"),
    ],
)
def test_a_user_s_mistake_is_one_line_with_status_1(words, problem, tree, capsys):
    assert tree.cda(*words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cda: ")
    assert problem in line


def test_several_seeds_have_no_single_output(tree, capsys):
    run = tree.runs()["validate"].id
    assert tree.cda("validate", "--run", run, "--seeds", "1", "2", "--out", "seed.json") == 1
    assert capsys.readouterr().err.startswith("cda: --out: is one file; leave it out")


def test_list_prints_runs_upstream_first_and_paths_of_what_exists(tree, capsys):
    assert tree.cda("list", "tiny") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(tree.experiments().runs(("tiny",)))
    stages = [line.split()[0] for line in lines]
    assert stages[:4] == ["squeeze", "recover", "relabel", "validate"]
    assert all(re.search(r" \d/\d done  [a-z0-9, ]+$", line) for line in lines)
    assert [line.split()[-1] for line in lines if line.startswith("recover")] == [
        "cda",
        "sre2l",
        "random",
    ]
    assert tree.cda("list", "tiny", "--files") == 0
    assert capsys.readouterr().out.strip() == ""
    layout, runs = tree.experiments().layout, tree.runs()
    for path in (layout.model(runs["squeeze"]), layout.run_json(runs["validate"], 0)):
        tree.write(f"../{path}", "{}")
    tree.write(f"../{layout.run_folder(runs['squeeze'])}/squeeze.json", "{}")
    assert tree.cda("list", "results/tiny.csv", "--files") == 0
    paths = capsys.readouterr().out.splitlines()
    assert paths == [layout.run_folder(runs["squeeze"]), layout.run_json(runs["validate"], 0)]


@pytest.mark.parametrize(("word", "near"), [("tabel", "table"), ("valdate", "validate")])
def test_a_misspelt_command_is_one_line_with_the_nearest(word, near, capsys):
    assert main([word, "table1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"cda: there is no command '{word}' (nearest: {near}); `cda --help`"


def test_cells_that_cannot_run_are_named_on_the_screen(tree, capsys):
    layout = {"rows": ["dataset"], "columns": ["method"]}
    tree.experiment("tiny", {"ipc": [1]}, {"dataset": "digit", "ipc": [1]}, layout=layout)
    assert tree.cda("table", "tiny") == 0
    line = "tiny: 3 of 6 cells cannot run: data set digit is not declared in config/datasets/"
    assert f"{line} (nearest: digits)\n" in capsys.readouterr().err
    assert tree.cda("run", "tiny", "--dry-run") == 0
    assert line in capsys.readouterr().err
    assert tree.cda("list", "tiny") == 0
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("command", ["table", "list", "plan", "run", "check"])
def test_a_table_without_a_cell_that_can_run_is_refused(command, tree, capsys):
    tree.experiment("wrong", {"dataset": "digit"})
    assert tree.cda(command, "wrong") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "config/experiments/wrong.yaml: no cell of this table can run: data set digit" in line
    assert line.endswith("(nearest: digits); data sets are digits")


def test_figures_are_found_by_name_and_by_their_own_path(tree, capsys):
    group = (tree.folder / "experiments/tiny.yaml").read_text().split("groups:")[1]
    lines = f"title: Seen\nkind: grid\nscales: [paper]\ngroups:{group}"
    tree.write("experiments/seen.yaml", lines)
    for name in ("seen", "results/seen.png"):
        assert tree.cda("list", name) == 0
        assert "0/1 done" in capsys.readouterr().out
    for name, message in {
        "sen": "there is no table or figure 'sen' at scale paper (nearest: seen); there is tiny, s",
        "results/demo/seen.png": "no table or figure of scale paper; use results/seen.png",
    }.items():
        assert tree.cda("list", name) == 1
        assert message in capsys.readouterr().err


def test_a_figure_of_a_misspelt_data_set_names_the_nearest(tree, capsys):
    group = (tree.folder / "experiments/tiny.yaml").read_text().split("groups:")[1]
    group = group.replace("dataset: digits", "dataset: digit")
    tree.write("experiments/seen.yaml", f"title: S\nkind: grid\nscales: [paper]\ngroups:{group}")
    assert tree.cda("run", "seen") == 1
    line = capsys.readouterr().err
    assert "config/experiments/seen.yaml: groups give no run whose images it could draw: " in line
    assert line.endswith("config/datasets/ (nearest: digits); data sets are digits\n")


def test_a_table_of_another_scale_names_that_scale(tree, capsys):
    tree.scale("small")
    tree.experiment("shrunk", scales=["small"])
    for command in ("list", "table"):
        assert tree.cda(command, "shrunk") == 1
        line = "'shrunk' at scale paper, it is of scale small; add --config scale=small"
        assert line in capsys.readouterr().err
    assert tree.cda("list", "shrunk", "--config", "scale=small") == 0


def test_a_plan_is_for_the_device_of_this_machine_by_default(tree, capsys):
    assert tree.cda("plan", "tiny") == 0  # the tree's runtime.device is cpu
    page = capsys.readouterr().out
    assert "on 1 × cpu\n" in page
    assert page.endswith("For the device of this machine; for another: --gpu a100\n")
    assert tree.cda("plan", "tiny", "--gpu", "h100") == 0
    page = capsys.readouterr().out
    assert "on 1 × h100\n" in page
    assert "this machine" not in page
