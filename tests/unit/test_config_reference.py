"""tools/config_reference.py: the page follows from the typed fields, and is current."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "config_reference.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("config_reference", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_every_key_with_its_range(tool):
    page = tool.page()
    squeeze = page.split("## `squeeze` in")[1].split("\n## ")[0]
    recover = page.split("## `recover` in")[1].split("\n## ")[0]
    assert "| `epochs` | whole number ≥ 1 | required |" in squeeze
    assert "| `milestone` | number ≥ 0, ≤ 1 |" in recover
    assert "`recovery_models`" in page.split("one of its `groups`")[1]


def test_check_compares_with_the_page_in_docs(tool, tmp_path, monkeypatch, capsys):
    assert tool.main(["--check"]) == 0
    assert tool.main([]) == 0
    assert capsys.readouterr().out == tool.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(tool, "PAGE", tmp_path / "configuration.md")
    assert tool.main(["--check"]) == 1
    assert "make docs" in capsys.readouterr().err
    assert tool.main(["--wrong"]) == 2
