"""The image files below a folder: links are followed with care, and what is skipped is counted.

A link that leads nowhere, to itself or back to a folder that contains it is refused, because images
would be missing or come twice. One that leads out of the data set is followed and logged: people
link class folders of one data set into another.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NoReturn

from cda.data.base import is_litter
from cda.data.pixels import is_image
from cda.progress import log

Entry = os.DirEntry[str]
Kind = Literal["image", "folder", "skipped"]

log_once = cache(log)  # each stage lists a split several times


class FolderScan:
    """One walk through the folders of a split.

    `fail(path, expected, found)` raises the data set's error. Files whose names end with one of
    `expected` belong to the data set and are no images; they are not counted.
    """

    def __init__(
        self, root: Path, fail: Callable[[str, str, str], NoReturn], expected: Sequence[str] = ()
    ) -> None:
        self.fail, self.expected = fail, tuple(expected)
        self.skipped, self.linked = Counter[str](), list[str]()
        self._roots = tuple(os.path.join(path, "") for path in _absolute(root))

    def images_under(self, folder: str, entered: tuple[str, ...] = ()) -> list[str]:
        """The image files below `folder` at any depth, unsorted.

        `entered` are the real paths of the folders that links on the way here were found in.
        """
        paths = []
        for entry in self.entries(folder):
            kind = self.kind(entry)
            if kind == "image":
                paths.append(entry.path)
            elif kind == "folder":
                paths += self.images_under(entry.path, self.enter(folder, entry, entered))
        return paths

    def entries(self, folder: str) -> list[Entry]:
        """What a folder holds, without hidden names."""
        try:
            with os.scandir(folder) as found:
                return [entry for entry in found if entry.name[0] != "."]
        except OSError as error:
            self.fail(folder, "a readable folder", str(error.strerror))

    def kind(self, entry: Entry) -> Kind:
        """What an entry is. For a plain file that is known from its folder's listing."""
        try:
            if not entry.is_file(follow_symlinks=False):
                if entry.is_symlink() and not self._leads_somewhere(entry):
                    return self._skip(entry)
                if entry.is_dir():
                    return "skipped" if is_litter(entry.name) else "folder"
                if not entry.is_file():  # opening a pipe would wait for ever
                    self.skipped["pipes and devices"] += 1
                    return "skipped"
            return "image" if is_image(entry.name) else self._skip(entry)
        except OSError as error:
            self.fail(entry.path, "a readable file or folder", str(error.strerror))

    def log_notes(self, folder: Path) -> None:
        """Log, once a process, what was skipped and which links lead out of the data set."""
        if self.skipped:
            kinds = ", ".join(f"{kind} ({n})" for kind, n in self.skipped.most_common(8))
            log_once(f"{folder}: skipped {self.skipped.total()} files not read as images: {kinds}")
        if self.linked:
            one = self.linked[0].encode("unicode_escape").decode()
            log_once(f"{folder}: {len(self.linked)} links lead out of the data set; {one} is one")

    def _skip(self, entry: Entry) -> Kind:
        if not (is_litter(entry.name) or entry.name.endswith(self.expected)):
            ending = os.path.splitext(entry.name)[1].lower()
            usual = ending[1:].isascii() and ending[1:].isalnum() and len(ending) < 9
            self.skipped[ending if usual else "others"] += 1
        return "skipped"

    def _leads_somewhere(self, link: Entry) -> bool:
        """Whether a link leads to something; raises if not and named as data."""
        target = os.readlink(link.path)
        try:
            os.stat(link.path)
        except OSError as error:
            if is_image(link.name) or "." not in link.name:
                self.fail(link.path, "links that lead to files", f"{target} ({error.strerror})")
            return False
        path = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(link.path)), target))
        if not path.startswith(self._roots):
            self.linked.append(link.path)
        return True

    def enter(self, folder: str, entry: Entry, entered: tuple[str, ...]) -> tuple[str, ...]:
        """`entered` below `entry`; raises for a link back to a folder that contains it."""
        if not entry.is_symlink():
            return entered
        target, here = os.path.realpath(entry.path), os.path.realpath(folder)
        if any(
            os.path.join(path, "").startswith(os.path.join(target, "")) for path in (here, *entered)
        ):
            self.fail(entry.path, "links without a loop", f"one to {target}, which contains it")
        return (*entered, here)


def _absolute(root: Path) -> set[str]:
    return {os.path.abspath(root), os.path.realpath(root)}
