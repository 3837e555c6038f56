"""What is worth bringing back from a machine, as a few zip files of a size that any transfer takes.

In the order of their worth: run JSONs, squeezed models, recover's parts, first those that a small
IPC needs. Each is brought whole or not at all; a file that is larger than a volume goes in pieces
(`<path>.piece-000-of-003`). Label stores and checkpoints stay: labels are made again from images
and model.

`parcel.json`, the first member of `parcel-000.zip`, has size and SHA-256 of every file. Unpacking
writes only where runs of the scale have such files, only what has that SHA-256, and never over
anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from zipfile import ZipFile

from pydantic import Field

from cda.artifacts.needs import made
from cda.artifacts.order import order
from cda.artifacts.track import finished
from cda.config.types import Count, Natural, Strict, parse
from cda.data.zips import SHA256, ZIP_DAMAGED, ZIP_END, filled, opened, write_zip, zip_bytes
from cda.errors import ArtifactError, ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.paths import Layout
from cda.experiments.runs import MEASURING, Run
from cda.files import atomic_write, file_digest
from cda.pipeline import dvc
from cda.progress import Progress, log, track

FORMAT: Literal["cda-parcel/1"] = "cda-parcel/1"
MANIFEST, VOLUME = "parcel.json", "parcel-{:03d}.zip"
PIECE = re.compile(r"(.+)\.piece-([0-9]{3,7})-of-([0-9]{3,7})")
LONGEST = ".piece-0000000-of-0000000"


class File(Strict):
    """A file that was packed."""

    path: str
    bytes: Natural
    sha256: SHA256


class Manifest(Strict):
    """What `parcel.json` says."""

    format: Literal["cda-parcel/1"]
    scale: str
    volumes: Annotated[Count, Field(le=10**4)]
    files: tuple[File, ...]


class Piece(NamedTuple):
    """`size` bytes of a file from `start`."""

    path: str
    start: int
    size: int


def _places(layout: Layout) -> re.Pattern[str]:
    """Where the scale has files that travel; `folder` is what appears whole."""
    name, run = r"\w[\w.+-]*", r"\w[\w-]*/\w[\w.+-]*"
    models = rf"(?P<model>{re.escape(layout.artifacts)}/squeeze/{run})/(?:model\.safetensors|squeeze\.json)"
    parts = rf"(?P<part>{re.escape(layout.artifacts)}/recover/{run}/part-[0-9]+)(?:/{name})+"
    return re.compile(rf"{re.escape(layout.results)}/runs/{run}/seed-[0-9]+\.json|{models}|{parts}")


def units_of(experiments: ExperimentSet, runs: Sequence[Run]) -> dict[str, list[str]]:
    """Files of everything finished that travels, by the file or folder that appears whole.

    The worthiest first.
    """
    layout, places = experiments.layout, _places(experiments.layout)
    jsons = [path for run in runs if run.stage in MEASURING for path in made(experiments, run)]
    models = [
        layout.run_folder(run)
        for run in runs
        if run.stage == "squeeze" and finished(experiments, run)
    ]
    parts = [
        (run, path) for run in runs if run.stage == "recover" for path in finished(experiments, run)
    ]
    # Real images come last: they cost nothing. Within that sorting keeps the order of the runs.
    parts.sort(
        key=lambda part: (not part[0].recipe.recover.synthetic, int(part[1].rpartition("-")[2]))
    )
    found = dict[str, list[str]]()
    for unit in (*jsons, *models, *(path for _, path in parts)):
        files = (
            [Path(unit)]
            if Path(unit).is_file()
            else [path for path in Path(unit).rglob("*") if path.is_file()]
        )
        found[unit] = sorted(str(path) for path in files if places.fullmatch(str(path)))
    return {unit: files for unit, files in found.items() if files}


def write_parcels(
    experiments: ExperimentSet, runs: Sequence[Run], folder: Path, limit: int, most: int
) -> None:
    """Pack what is finished of `runs` into at most `most` volumes (0: any number) of at most
    `limit` bytes each.

    What finds no room is named. Raises ConfigError for a folder that holds something or a limit
    that is too low, ArtifactError if nothing is finished or a file changes meanwhile.
    """
    units, scale = units_of(experiments, runs), experiments.settings.scale
    if not units:
        raise ArtifactError(
            f"{experiments.layout.results}/runs: no run of these is finished; run snakemake first"
        )
    paths = [path for unit in units.values() for path in unit]
    with filled(folder, VOLUME.format(0)) as first:
        files = {
            path: _described(path)
            for path in track(paths, total=len(paths), label="hash", unit="files")
        }
        reserved = zip_bytes(MANIFEST) + len(_manifest(scale, 10**4, files.values()))
        volumes = _Volumes(limit, most or 10**4, reserved)
        if volumes.rooms[0] < 0:
            raise ConfigError(
                f"--megabytes: the list of {len(files)} files alone takes {reserved} bytes; "
                "raise it"
            )
        left = {
            unit
            for unit, paths in units.items()
            if not volumes.put([files[path] for path in paths])
        }
        kept = {
            path: files[path] for unit, paths in units.items() if unit not in left for path in paths
        }
        _write(
            folder,
            first,
            volumes.pieces,
            kept,
            _manifest(scale, len(volumes.pieces), kept.values()),
        )
    brought, size = (
        len(units) - len(left),
        dvc.human_bytes(sum(file.bytes for file in kept.values())),
    )
    print(f"{folder}: {brought} of {len(units)} outputs in {len(volumes.pieces)} volumes, {size}.")
    if left:
        size = dvc.human_bytes(sum(file.bytes for path, file in files.items() if path not in kept))
        named = ", ".join(unit for unit in units if unit in left)
        print(f"No room for {len(left)} outputs, {size} (raise --files or --megabytes): {named}")


class _Volumes:
    """What goes where: each file into the first volume that has room for it, or in pieces into what
    room there is.
    """

    def __init__(self, limit: int, most: int, reserved: int) -> None:
        self.empty, self.most = limit - ZIP_END, most
        self.rooms = [self.empty - reserved]
        self.pieces: list[list[Piece]] = [[]]

    def put(self, files: Sequence[File]) -> bool:
        """Find room for all of a few files, or for none."""
        rooms, placed = list(self.rooms), list[tuple[int, Piece]]()
        for file in files:
            found = self._placed(rooms, file)
            if not found:
                return False
            placed += found
        self.rooms = rooms
        self.pieces += [[] for _ in range(len(rooms) - len(self.pieces))]
        for index, piece in placed:
            self.pieces[index].append(piece)
        return True

    def _placed(self, rooms: list[int], file: File) -> list[tuple[int, Piece]]:
        """The volumes and pieces of one file, whose room is taken from `rooms`.

        Nothing if there is too little.
        """
        split = file.bytes + zip_bytes(file.path) > self.empty
        extra = zip_bytes(file.path + LONGEST if split else file.path)
        least = max(1, self.empty // 100) if split else file.bytes  # no slivers
        placed, start = list[tuple[int, Piece]](), 0
        for index in count():
            if index == len(rooms):
                if index == self.most or self.empty - extra < least:
                    break
                rooms.append(self.empty)
            left, room = file.bytes - start, rooms[index] - extra
            if room >= min(least, left):
                taken = min(left, room)
                rooms[index] -= taken + extra
                placed.append((index, Piece(file.path, start, taken)))
                start += taken
                if start == file.bytes:
                    return placed
        return []


def _manifest(scale: str, volumes: int, files: Iterable[File]) -> bytes:
    told = Manifest(format=FORMAT, scale=scale, volumes=volumes, files=tuple(files)).model_dump()
    return (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode()


def _described(path: str) -> File:
    return File(path=path, bytes=Path(path).stat().st_size, sha256=file_digest(Path(path)))


def _write(
    folder: Path,
    first: Path,
    volumes: Sequence[Sequence[Piece]],
    files: dict[str, File],
    manifest: bytes,
) -> None:
    """Write the volumes, the first one at `first`.

    Raises ArtifactError for a file that is no longer what it was.
    """
    numbers = Counter(piece.path for pieces in volumes for piece in pieces)
    done, digests = Counter[str](), {path: hashlib.sha256() for path in files}
    progress = Progress(sum(file.bytes for file in files.values()), "parcel", "B")

    def members(pieces: Sequence[Piece]) -> Iterator[tuple[str, bytes]]:
        for path, start, size in pieces:
            with open(path, "rb") as file:
                file.seek(start)
                content = file.read(size)
            digests[path].update(content)
            yield (
                (
                    path
                    if numbers[path] == 1
                    else f"{path}.piece-{done[path]:03d}-of-{numbers[path]:03d}"
                ),
                content,
            )
            done[path] += 1
            progress.update(size)

    write_zip(first, chain([(MANIFEST, manifest)], members(volumes[0])))
    for index, pieces in enumerate(volumes[1:], start=1):
        with atomic_write(folder / VOLUME.format(index)) as beside:
            write_zip(beside, members(pieces))
    progress.close()
    for path, file in files.items():
        if digests[path].hexdigest() != file.sha256:
            raise ArtifactError(f"{path}: changed while it was packed; the same command again")


def unpack(experiments: ExperimentSet, folder: Path) -> None:
    """Put parcels' files in their places and their times in order; `experiments` is all of the
    scale.

    What is there and equal is left alone. What is there and differs, or did not arrive whole, is
    named, and once the rest is in place ArtifactError is raised. Before anything is written it is
    raised for a parcel that has no list of its files or one of other places, and ConfigError for
    one of another scale.
    """
    parcels = _Parcels(folder, experiments.layout)
    problems, new = parcels.problems, 0
    progress = Progress(sum(file.bytes for file in parcels.files), "unpack", "B")
    for unit, files in parcels.units.items():
        try:
            new += _place(parcels, unit, files)
        except ArtifactError as problem:
            problems.append(str(problem))
        progress.update(sum(file.bytes for file in files))
    progress.close()
    for line in problems:
        log(line)
    log(f"Times put in order: {order(experiments)} set.")
    print(f"{folder}: {new} files unpacked of {len(parcels.files)}.")
    if problems:
        raise ArtifactError(
            f"{folder}: not all is unpacked, as it says above; mend that, then the same "
            "command again"
        )


def _place(parcels: _Parcels, unit: str, files: Sequence[File]) -> int:
    """Put a unit's files where nothing is; how many.

    Raises ArtifactError, before any is written if one differs.
    """
    lacking = [file for file in files if not os.path.lexists(file.path)]
    for file in files:
        if file not in lacking and not _same(Path(file.path), file.sha256):
            raise ArtifactError(
                f"{file.path}: is there and differs from the parcel's; remove it to have that one"
            )
    if unit != files[0].path and not os.path.lexists(unit):
        with atomic_write(Path(unit)) as aside:
            try:
                for file in lacking:
                    parcels.copy(file, aside / Path(file.path).relative_to(unit))
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
    else:
        for file in lacking:
            with atomic_write(Path(file.path)) as aside:
                parcels.copy(file, aside)
    return len(lacking)


def _same(path: Path, sha256: str) -> bool:
    try:
        return path.is_file() and file_digest(path) == sha256
    except OSError:
        return False


class _Parcels:
    """Parcels that arrived: their files by unit, and what is wrong with volumes that are missing or
    damaged.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.problems = folder, list[str]()
        told, places = self._told(layout), _places(layout)
        self.files, self.units = told.files, dict[str, list[File]]()
        for file in self.files:
            place = places.fullmatch(file.path)
            if place is None:
                where = folder / VOLUME.format(0)
                raise ArtifactError(
                    f"{where}: {file.path[:200]!r} is no place of a run's file; nothing is unpacked"
                )
            self.units.setdefault(place["model"] or place["part"] or file.path, []).append(file)
        # Of each file its pieces by number: how many there should be, volume, member.
        self.pieces: dict[str, dict[int, tuple[int, ZipFile, str]]] = {
            file.path: {} for file in self.files
        }
        for index in range(told.volumes):
            try:
                self._index(index)
            except ArtifactError as problem:
                self.problems.append(str(problem))

    def _told(self, layout: Layout) -> Manifest:
        path, volume = self.folder / VOLUME.format(0), self._opened(0)
        try:
            values = json.loads(volume.read(MANIFEST))
            told = parse(Manifest, values if isinstance(values, dict) else {}, MANIFEST)
        except (KeyError, RecursionError, *ZIP_DAMAGED) as error:
            raise ArtifactError(f"{path}: no parcel ({str(error)[:200]}); copy it again") from None
        if told.scale != layout.scale:
            raise ConfigError(
                f"{path}: is of scale {told.scale[:50]}; add --config scale={told.scale[:50]}"
            )
        return told

    def _opened(self, index: int) -> ZipFile:
        path = self.folder / VOLUME.format(index)
        if not path.is_file():
            raise ArtifactError(f"{path}: missing; copy it here, then the same command again")
        try:
            return opened(path)
        except ValueError as error:
            raise ArtifactError(f"{path}: damaged ({str(error)[:200]}); copy it again") from None

    def _index(self, index: int) -> None:
        """Note the pieces in a volume.

        Raises ArtifactError, noting none, if it is missing, damaged or foreign.
        """
        volume, found = self._opened(index), list[tuple[str, int, int, str]]()
        for name in volume.namelist():
            split = PIECE.fullmatch(name)
            path, number, total = (
                (split[1], int(split[2]), int(split[3])) if split else (name, 0, 1)
            )
            if path in self.pieces:
                found.append((path, number, total, name))
            elif name != MANIFEST:
                where = self.folder / VOLUME.format(index)
                raise ArtifactError(
                    f"{where}: member {name[:200]!r} is not in {MANIFEST}; nothing of it is taken"
                )
        for path, number, total, name in found:
            self.pieces[path][number] = (total, volume, name)

    def copy(self, file: File, target: Path) -> None:
        """Write a file at `target`; raises ArtifactError unless all of it arrived and is what was
        packed.
        """
        pieces, sha = self.pieces[file.path], hashlib.sha256()
        total = max((total for total, _, _ in pieces.values()), default=1)
        if len(pieces) != total or max(pieces) != total - 1:
            raise ArtifactError(
                f"{file.path}: {len(pieces)} of {total} pieces arrived; copy the volumes again"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            for _, (_, volume, name) in sorted(pieces.items()):
                try:
                    content = volume.read(name)
                except ZIP_DAMAGED as error:
                    raise ArtifactError(
                        f"{volume.filename}: {name} is damaged ({error}); copy it again"
                    ) from None
                sha.update(content)
                out.write(content)
            out.flush()
            os.fsync(out.fileno())
        if sha.hexdigest() != file.sha256:
            raise ArtifactError(
                f"{file.path}: differs from its SHA-256 in {MANIFEST}; copy the volumes again"
            )
