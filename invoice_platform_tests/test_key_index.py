"""The index of keys agrees with counting rows, whatever is done to the table and to the index."""

import shutil
from collections import defaultdict
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from invoice_platform.streaming import key_index
from invoice_platform.streaming.key_index import KeyIndex, Repeats, repeats

Rows = list[tuple[str | None, int | None]]
SCHEMA = pa.schema([("number", pa.string()), ("content", pa.int64())])


def put(table: Path, rows: Rows, **options: object) -> None:
    numbers, contents = zip(*rows, strict=True)
    data = pa.table({"number": pa.array(numbers, pa.string()), "content": pa.array(contents, pa.int64())})
    write_deltalake(str(table), data, **({"mode": "append"} | options))  # pyright: ignore[reportArgumentType, reportCallIssue]


def index(table: Path) -> KeyIndex:
    return KeyIndex(table.with_name(f"{table.name}-keys"), table, "number", "content")


def look_up(tables: list[Path], keys: list[str]) -> Repeats:
    return repeats([index(table) for table in tables], pa.chunked_array([pa.array(keys, pa.string())]))


def counted(rows: Rows, keys: list[str]) -> Repeats:
    contents: dict[str | None, list[int | None]] = defaultdict(list)
    for number, content in rows:
        contents[number].append(content)
    several = sorted({key for key in keys if len(contents[key]) > 1})
    return Repeats(several, [key for key in several if len({*contents[key]} - {None}) > 1])


def test_keys_are_found_in_all_tables_with_their_contents(tmp_path: Path) -> None:
    put(tmp_path / "a", [("1", 5), ("2", -6), ("3", 7), (None, None), ("4", None), ("ä", 1), ("5", 8)])
    put(tmp_path / "b", [("1", 5), ("2", 6), ("4", 9), ("ä", None)])
    tables = [tmp_path / "a", tmp_path / "b", tmp_path / "none"]
    assert look_up(tables, ["1", "2", "3", "4", "ä", "6"]) == Repeats(["1", "2", "4", "ä"], ["2"])
    assert look_up(tables, []) == Repeats([], [])
    put(tmp_path / "b", [("3", 7), ("3", 8)])
    assert look_up(tables, ["3", "3", "2"]) == Repeats(["2", "3"], ["2", "3"])


@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_counting_while_the_table_grows(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_index, "FILE_ENTRIES", 100)
    monkeypatch.setattr(key_index, "READ_ROWS", 30)
    chance, rows = Random(seed), Rows()
    keys = [str(number) for number in range(400)]
    for commit in range(25):
        new: Rows = [
            (chance.choice(keys), chance.choice([None, 1, -1, 2])) for _ in range(chance.choice([1, 5, 40, 250]))
        ]
        put(tmp_path / "t", new)
        rows += new
        if commit % 3 == 0:
            assert look_up([tmp_path / "t"], keys) == counted(rows, keys)
    files = list((tmp_path / "t-keys").glob("*.npy"))
    assert len(files) < len(rows) / 100 * 2 + 8, "small files are merged"


def test_what_happens_to_the_table_is_followed(tmp_path: Path) -> None:
    table = tmp_path / "t"
    put(table, [("1", 1)])
    put(table, [("2", 1)])
    assert look_up([table], ["1", "2"]).keys == []
    made = (tmp_path / "t-keys" / "index.json").stat().st_ino

    DeltaTable(str(table)).optimize.compact()
    put(table, [("1", 1)])
    assert look_up([table], ["1", "2"]).keys == ["1"], "merged files hold no new rows"

    put(table, [("2", 1), ("3", 1)], mode="overwrite")
    assert look_up([table], ["1", "2", "3"]).keys == [], "what was replaced is gone"
    assert (tmp_path / "t-keys" / "index.json").stat().st_ino != made

    put(table, [("2", 2)])
    DeltaTable(str(table)).optimize.compact()
    DeltaTable(str(table)).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert look_up([table], ["2", "3"]) == Repeats(["2"], ["2"]), "files that came and went since are not missed"

    put(table, [("3", 1)])
    DeltaTable(str(table)).create_checkpoint()
    put(table, [("4", 1)])
    for version in range(DeltaTable(str(table)).version()):
        (table / "_delta_log" / f"{version:020d}.json").unlink(missing_ok=True)
    assert look_up([table], ["2", "3", "4"]).keys == ["2", "3"], "nor are commits of a log that was cut"


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "no state", "cut state"])
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: str) -> None:
    put(tmp_path / "t", [("1", 1), ("1", 2)])
    assert look_up([tmp_path / "t"], ["1"]).keys == ["1"]
    folder = tmp_path / "t-keys"
    (file,) = folder.glob("*.npy")
    state = folder / "index.json"
    if damage == "missing":
        file.unlink()
    elif damage == "no state":
        state.unlink()
    elif damage == "cut state":
        state.write_bytes(state.read_bytes()[:-3])
    else:
        file.write_bytes(file.read_bytes()[:-9] if damage == "cut" else b"")
    put(tmp_path / "t", [("2", 1), ("2", 1)])
    assert look_up([tmp_path / "t"], ["1", "2"]) == Repeats(["1", "2"], ["1"])
    assert len(list(folder.glob("*.npy"))) == 1, "what nobody names any more is removed"


def test_another_table_in_the_same_place_is_noticed(tmp_path: Path) -> None:
    put(tmp_path / "t", [("1", 1)])
    shutil.copytree(tmp_path / "t", tmp_path / "backup")
    put(tmp_path / "t", [("1", 1)])
    assert look_up([tmp_path / "t"], ["1"]).keys == ["1"]
    (tmp_path / "t").rename(tmp_path / "old")
    (tmp_path / "backup").rename(tmp_path / "t")
    assert look_up([tmp_path / "t"], ["1"]).keys == [], "the same one, as it was before"
    (tmp_path / "t").rename(tmp_path / "older")
    put(tmp_path / "t", [("1", 1)])
    assert look_up([tmp_path / "t"], ["1"]).keys == [], "one of its own"
