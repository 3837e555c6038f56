"""What the docs name exists: paths of the index, links between pages, the README's limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "config/README.md", *sorted((ROOT / "docs").glob("*.md"))]
TOP = ("src/", "config/", "docs/", "workflow/", "tests/", "tools/", "benchmarks/", "results/")


def test_the_index_answers_ten_questions_with_paths_that_exist():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    questions = index.split("## Ten questions")[1].split("\n## ")[0]
    rows = [line for line in questions.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 10
    for row in rows:
        paths = [path for path in re.findall(r"`([^`]+)`", row) if path.startswith(TOP)]
        assert paths, row
        assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_index_lists_every_page():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    names = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert names == {Path(link).name for link in re.findall(r"\]\((\w+\.md)\)", index)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_no_file_of_the_project_that_is_gone(page):
    """Paths in backquotes; a folder's own patterns and placeholders are left out."""
    named = re.findall(
        r"`((?:src|docs|tools|benchmarks|workflow)/[\w./-]+)`", page.read_text("utf-8")
    )
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_readme_fits_on_a_few_screens():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    assert [line for line in lines if len(line) > 120] == []
