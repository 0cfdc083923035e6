"""Which keys of a Delta table came more than once: an index beside the table, brought up to date commit by commit.

Source: the data files that the table's commits add. Grain: one entry a row that has a key, of two 64-bit numbers: a hash of the
key, and what the table has as hash of the row's content. Entries are in files sorted by key, which are mapped, not read: to look
up 500 keys among 100 M takes 0.02 s, where a query reads a column of every data file. Replay: all of it is made anew from the
table when it is missing, damaged, or of a table that was replaced. Two keys of one hash are taken for one: where 1,000 M keys
are, that befalls a new one with a chance of 1 in 10¹⁰.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote
from uuid import uuid4

from filelock import FileLock

from invoice_platform.errors import writing
from invoice_platform.streaming.state import read_state, write_state
from invoice_platform.streaming.tables import add_actions, commit_path, open_delta

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from deltalake import DeltaTable

FILE_ENTRIES = 4_194_304
"""Entries of a file of the index, at most: 64 MiB. Smaller files are merged as they become more."""
READ_ROWS = 1_000_000
NO_CONTENT = 0


@dataclass(frozen=True)
class Repeats:
    """Of the keys that were asked for, those that came more than once."""

    keys: list[str]
    """Sorted."""
    conflicting: list[str]
    """Those of them that came with more than one content, sorted."""


def repeats(indexes: Sequence[KeyIndex], keys: pa.ChunkedArray) -> Repeats:
    """Look `keys` (texts) up in several tables' indexes at once, each followed up to its table's newest version."""
    import numpy as np

    names = keys.unique().to_numpy(zero_copy_only=False)
    wanted, first = np.unique(hashes(names), return_index=True)
    found = [index.look_up(wanted) for index in indexes]
    counts = sum(f.counts for f in found)
    conflict = np.min([f.lowest for f in found], axis=0) < np.max([f.highest for f in found], axis=0)
    several = counts > 1
    return Repeats(sorted(names[first[several]]), sorted(names[first[several & conflict]]))


@dataclass(frozen=True)
class Found:
    """What an index has of each key: arrays as long as the keys."""

    counts: np.ndarray
    lowest: np.ndarray
    """Least of the known contents; the greatest number there is when none is known."""
    highest: np.ndarray


@dataclass(frozen=True)
class KeyIndex:
    """The index of one table."""

    folder: Path
    """Where it is kept; nothing else is."""
    table: Path
    """The Delta table's folder; rows are only ever added to it, or all replaced."""
    key: str
    """Column: a text."""
    content: str
    """Column: a 64-bit hash of what the row holds, null where that is not known."""

    def look_up(self, wanted: np.ndarray) -> Found:
        """Follow the table, then look for hashes of keys (sorted, each once)."""
        import numpy as np

        unknown = np.iinfo(np.uint64).max
        counts = np.zeros(len(wanted), np.int64)
        lowest, highest = np.full(len(wanted), unknown, np.uint64), np.full(len(wanted), NO_CONTENT, np.uint64)
        for keys, contents in self._up_to_date():
            begin = np.searchsorted(keys, wanted, "left")
            number = np.searchsorted(keys, wanted, "right") - begin
            at = np.flatnonzero(number)
            if not len(at):
                continue
            counts += number
            number = number[at]
            group = np.cumsum(number) - number
            some = contents[np.repeat(begin[at] - group, number) + np.arange(number.sum())]
            known = np.where(some == NO_CONTENT, unknown, some)
            lowest[at] = np.minimum(lowest[at], np.minimum.reduceat(known, group))
            highest[at] = np.maximum(highest[at], np.maximum.reduceat(some, group))
        return Found(counts, lowest, highest)

    def _up_to_date(self) -> list[np.ndarray]:
        """The files of the index, when it has all rows of the table's newest version."""
        table = open_delta(self.table)
        if table is None:
            return []
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):
                try:
                    return self._follow(table)
                except (FileNotFoundError, ValueError, KeyError):
                    # Of another table, or damaged; or what is to be followed is gone (a log that was cut, files that were merged).
                    return self._write(table, [], [unquote(path) for path in add_actions(table, "path")["path"]])

    def _follow(self, table: DeltaTable) -> list[np.ndarray]:
        state = read_state(self._state)
        if state["table"] != str(table.metadata().id) or state["version"] > table.version():
            raise ValueError("of another table")
        files = [self._open(name) for name in state["files"]]
        if state["version"] == table.version():
            return files
        added: list[str] = []
        for version in range(state["version"] + 1, table.version() + 1):
            for line in commit_path(self.table, version).read_bytes().splitlines():
                for kind, action in json.loads(line).items():
                    if kind == "remove" and action["dataChange"]:
                        raise ValueError("rows were taken away")
                    if kind == "add" and action["dataChange"]:
                        added.append(unquote(action["path"]))
        return self._write(table, state["files"], added)

    def _write(self, table: DeltaTable, names: list[str], data_files: Sequence[str]) -> list[np.ndarray]:
        """Add the entries of data files to those of the index's files, and write down what there is then."""
        import numpy as np

        names = list(names)
        waiting: list[np.ndarray] = []

        def add() -> None:
            if waiting:
                self._add(names, np.concatenate(waiting, axis=1))
                waiting.clear()

        for data_file in data_files:
            for entries in self._read(self.table / data_file):
                waiting.append(entries)
                if sum(part.shape[1] for part in waiting) >= FILE_ENTRIES - READ_ROWS:
                    add()
        add()
        write_state(self._state, {"table": str(table.metadata().id), "version": table.version(), "files": names})
        for file in self.folder.glob("*.npy"):
            if file.name not in names:
                file.unlink()
        return [self._open(name) for name in names]

    def _add(self, names: list[str], entries: np.ndarray) -> None:
        """A new file of entries, together with those of the last ones that are no larger: each is rewritten a few times, ever."""
        import numpy as np

        while names:
            last = self._open(names[-1])
            if last.shape[1] > min(entries.shape[1], FILE_ENTRIES - entries.shape[1]):
                break
            entries = np.concatenate([last, entries], axis=1)
            names.pop()
        entries = entries[:, np.argsort(entries[0], kind="stable")]
        name = f"{uuid4().hex}.npy"
        with (self.folder / name).open("xb") as file:
            np.save(file, entries)
            file.flush()
            os.fsync(file.fileno())
        names.append(name)

    def _read(self, data_file: Path) -> Iterator[np.ndarray]:
        """Entries of a data file: keys in the first row, contents in the second."""
        import numpy as np
        import pyarrow.parquet as pq

        with pq.ParquetFile(data_file) as parquet:
            content = self.content in parquet.schema_arrow.names  # one that is older than the column has none
            columns = [self.key, self.content] if content else [self.key]
            for batch in parquet.iter_batches(READ_ROWS, columns=columns):
                rows = batch.filter(batch.column(self.key).is_valid())
                entries = np.full((2, rows.num_rows), NO_CONTENT, np.uint64)
                entries[0] = hashes(rows.column(self.key).to_numpy(zero_copy_only=False))
                if content:
                    entries[1] = rows.column(self.content).fill_null(NO_CONTENT).to_numpy().view(np.uint64)
                yield entries

    def _open(self, name: str) -> np.ndarray:
        import numpy as np

        return np.lib.format.open_memmap(self.folder / name, mode="r")

    @property
    def _state(self) -> Path:
        return self.folder / "index.json"


def hashes(keys: np.ndarray) -> np.ndarray:
    """64-bit hashes of texts, the same in every process and version."""
    import pandas as pd

    return pd.util.hash_array(keys, categorize=False)  # pyright: ignore[reportAttributeAccessIssue]  # not in its stubs
