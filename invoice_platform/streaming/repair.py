"""Bringing a stream back whose checkpoint or table is damaged, without loss or repeat.

What was committed is proven from the table: from its `txn` (the last micro-batch of a checkpoint that it has), from the files
or the Kafka offsets that its rows name, or by making it anew from what it is made of. A plan says so in figures before
anything is done; what it replaces is moved to `set-aside/<time>/`.

Replay: the plan is written down (`checkpoints/<stream>/repair.json`) before its first step, and each step can be made again.
Until all are made the stream and those that read its table refuse to run; the next repair goes on with what is left.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from invoice_platform.errors import PlatformError
from invoice_platform.streaming.checkpoint import checkpoint_id, damage, numbers
from invoice_platform.streaming.damage import Damage, Damaged, checksum_file, json_file, log_file, parquet_file
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.lock import stream_lock
from invoice_platform.streaming.rebuild import rebuild
from invoice_platform.streaming.session import spark_errors
from invoice_platform.streaming.sinks import FileSink, Query
from invoice_platform.streaming.sources import (
    DeltaTable,
    KafkaTopics,
    LandedFiles,
    checkpoints,
    tells_files,
)
from invoice_platform.streaming.state import read_state, write_state
from invoice_platform.streaming.stream import OpenSession, Stream, find_damage
from invoice_platform.streaming.tables import (
    checkpoints_of,
    commit_path,
    facts,
    last_transaction,
    latest_version,
    open_delta,
    query,
)
from invoice_platform.streaming.tables import damage as table_damage
from invoice_platform.streaming.trigger import Trigger

Action = Literal[
    "set_aside", "new_id", "leave", "undrain", "restart_topics", "empty", "restart_tables", "count_on", "rebuild"
]
MOST_CHECKPOINTS = 1_000
"""Of a stream that reads tables: each rebuild begins a new one."""
NAMED = 5
"""Files or partitions that a plan names, at most."""


@dataclass(frozen=True)
class Step:
    """One thing that a repair does; it can be done again."""

    do: Action
    words: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What was found, what the table proves, and what will be done."""

    stream: str
    found: list[str]
    proof: list[str]
    steps: list[Step]
    goes_on: bool = False
    """Whether it is what an interrupted repair has still to do."""

    @property
    def text(self) -> str:
        """The plan, for a person to judge."""
        parts = {
            "found": self.found,
            "what the table proves": self.proof,
            "an interrupted repair goes on:" if self.goes_on else "what repair does": [s.words for s in self.steps],
        }
        return "\n".join(f"{title}\n{_listed(lines)}" for title, lines in parts.items() if lines)


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"  {number}. {line}" for number, line in enumerate(lines, 1))


@dataclass
class _Draft:
    """A plan in the making."""

    layout: Layout
    found: list[str] = field(default_factory=list)
    proof: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def add(self, do: Action, words: str, **facts: Any) -> None:
        self.steps.append(Step(do, words, facts))

    def set_aside(self, *paths: Path, words: str) -> None:
        self.add("set_aside", words, paths=[str(path.relative_to(self.layout.root)) for path in paths])


def plan(stream: Stream, downstream: Sequence[Stream], layout: Layout) -> Plan | None:
    """How to bring a stream back, or None when nothing of it is damaged; changes nothing.

    Parameters
    ----------
    downstream : sequence of Stream
        The stream and all that it feeds, each after those that feed it.

    Raises
    ------
    PlatformError
        When nothing proves what was committed, or a table that it reads has to be repaired first.
    """
    if note := _read_note(stream, layout):
        return Plan(stream.name, note["found"], note["proof"], [Step(**step) for step in note["steps"]], goes_on=True)
    for name in stream.source.tables_read:
        if found := table_damage(layout.table(name)):
            raise Damaged(f"stream {stream.name!r} reads table {name}", found[0], name)
    draft = _Draft(layout)
    table = layout.table(stream.table.name) if stream.table is not None else None
    if table is not None and (broken := table_damage(table)):
        _mend_table(draft, stream, downstream, table, broken)
    else:
        segments = _segments(stream, layout, draft)
        in_doubt = bool(draft.found)  # which checkpoint is in use, and how far it came
        for segment in segments:
            _mend_checkpoint(draft, stream, downstream, segment, in_doubt=in_doubt)
    return Plan(stream.name, draft.found, draft.proof, draft.steps) if draft.found else None


def _read_note(stream: Stream, layout: Layout) -> dict[str, Any]:
    note = layout.repair_note(stream.name)
    try:
        return read_state(note)
    except ValueError:
        raise PlatformError(
            f"{note} is cut short: delete it, then run `invoice-platform repair {stream.name}` again"
        ) from None


def _segments(stream: Stream, layout: Layout, draft: _Draft) -> list[int]:
    """The checkpoints of a stream that a query may be started with."""
    if isinstance(stream.source, LandedFiles):
        return stream.source.landing(layout, stream.name).ledger.working()
    try:
        return [stream.source.current(layout, stream.name).segment]
    except Damaged as error:
        draft.found.append(str(error.damage))
        draft.set_aside(error.damage.file, words=f"set {error.damage.file.name} aside")
        return [max([1, *checkpoints(layout, stream.name)])]


def _mend_checkpoint(
    draft: _Draft, stream: Stream, downstream: Sequence[Stream], segment: int, *, in_doubt: bool
) -> None:
    layout = draft.layout
    checkpoint = layout.checkpoint(stream.name, segment)
    found = damage(checkpoint)
    if found and not in_doubt and _in_place(draft, stream, segment, found):
        return
    if not found and not in_doubt:
        lost = find_damage(stream, layout, segment)
        found = [lost.damage] if lost is not None else _made_anew(stream, layout, checkpoint)
        if not found:
            return
    draft.found += [str(one) for one in found]
    if checkpoint.exists() and not in_doubt:  # its number shows which one comes next
        draft.set_aside(checkpoint, words=f"set the checkpoint {checkpoint} aside")
    if isinstance(stream.source, DeltaTable) and (in_doubt or not layout.source_state(stream.name).exists()):
        _count_on(draft, stream, segment)
    _begin_after(draft, stream, downstream, segment)


def _count_on(draft: _Draft, stream: Stream, segment: int) -> None:
    """Number the next checkpoint after all that the table knows: under an old number Delta would drop its micro-batches."""
    table = open_delta(draft.layout.table(stream.table.name)) if stream.table is not None else None
    known = [
        n
        for n in range(1, MOST_CHECKPOINTS)
        if table is not None
        and table.transaction_version(Query(stream.name, n, draft.layout, Trigger()).application_id) is not None
    ]
    last = max([segment, *known])
    draft.add("count_on", f"count its checkpoints on from {last}", stream=stream.name, segment=last)


def _made_anew(stream: Stream, layout: Layout, checkpoint: Path) -> list[Damage]:
    """Partitions of a topic that begin again below where the checkpoint stands."""
    if not isinstance(stream.source, KafkaTopics) or not checkpoint.exists():
        return []
    anew = stream.source.made_anew(layout, stream.name)
    return [Damage(checkpoint, f"of a topic that was deleted or made anew ({', '.join(anew)})")] if anew else []


def _in_place(draft: _Draft, stream: Stream, segment: int, found: list[Damage]) -> bool:
    """Mend what the table's `txn`, or a repeat that it drops, makes good; whether that is all that is damaged."""
    layout = draft.layout
    checkpoint = layout.checkpoint(stream.name, segment)
    planned, done = numbers(checkpoint / "offsets"), numbers(checkpoint / "commits")
    last = max(planned, default=-1)
    offsets, broken = checkpoint / "offsets" / str(last), {one.file for one in found}
    steps, own_id = _Draft(layout), checkpoint_id(checkpoint)
    if own_id is None:
        committed = last in done and checkpoint / "commits" / str(last) not in broken
        if last < 0 or offsets in broken or (own_id := _new_id(steps, stream, checkpoint, last, committed)) is None:
            return False
        broken.discard(checkpoint / "metadata")
    written = _written(stream, layout, segment, own_id)
    says = "the table does not number them" if written is None else f"the table's txn {_has(written)}"
    if offsets in broken and last not in done:
        # What was not committed is planned anew; of what was, nobody else knows where it ended.
        if isinstance(stream.sink, FileSink) or (written is not None and written >= last):
            return False
        steps.proof.append(f"micro-batch {last} was never committed: there is no commits/{last}, and {says}")
        steps.set_aside(offsets, words=f"set {offsets} aside: micro-batch {last} is planned anew")
        broken.remove(offsets)
        last -= 1
        if last > 0 and log_file(checkpoint / "offsets" / str(last - 1)) is not None:
            return False
    bad: list[Path] = []
    for number in sorted(done, reverse=True):
        if log_file(commit := checkpoint / "commits" / str(number)) is None:
            break
        bad.append(commit)
    if bad and int(bad[0].name) == last:
        if written is None:
            again = f"a repeat is harmless ({stream.sink.guarantee})"
        else:
            again = "Delta drops the repeat by that txn" if written >= last else "it is not in the table yet"
        steps.proof.append(f"{says}: micro-batch {last} can be run again, {again}")
        steps.set_aside(*bad, words=f"set {bad[0]} aside: micro-batch {last} is run again, from the same offsets")
        broken -= set(bad)
    if broken:
        return False
    draft.found += [str(one) for one in found]
    draft.proof += steps.proof
    draft.steps += steps.steps
    return True


def _has(written: int) -> str:
    return f"has micro-batch {written} and those before" if written >= 0 else "has none of this checkpoint"


def _written(stream: Stream, layout: Layout, segment: int, own_id: str) -> int | None:
    """The last micro-batch of a checkpoint that the table has, -1 for none; None where it does not number them."""
    application = stream.sink.application(Query(stream.name, segment, layout, Trigger()), own_id)
    if stream.table is None or application is None:
        return None
    table = open_delta(layout.table(stream.table.name))
    written = table.transaction_version(application) if table is not None else None
    return -1 if written is None else written


def _new_id(draft: _Draft, stream: Stream, checkpoint: Path, last: int, committed: bool) -> str | None:
    """Give a checkpoint an id again: any, unless its last micro-batch is run again and the table has it; None in doubt."""
    made = str(uuid.uuid4())
    table = draft.layout.table(stream.table.name) if stream.table is not None else None
    newest = last_transaction(table) if table is not None else None
    if committed:
        draft.proof.append(
            f"micro-batch {last} is the last that was planned, and it is committed: nothing is run again, so a new id "
            "repeats nothing"
        )
    elif newest is None or (ago := newest.milliseconds - _planned_at(checkpoint, last)) < 0:
        draft.proof.append(
            f"the table has no txn from after micro-batch {last} was planned: it is not in the table, and can be run under a new id"
        )
    elif newest.number == last:
        made = newest.application
        draft.proof.append(
            f"the table's newest txn is {made} {last}, from {ago} ms after micro-batch {last} was planned: that is the "
            "checkpoint's id, under which Delta drops the repeat"
        )
    else:
        return None
    draft.add("new_id", f"write {checkpoint / 'metadata'} anew", checkpoint=_relative(draft, checkpoint), id=made)
    return made


def _planned_at(checkpoint: Path, batch: int) -> int:
    """When a micro-batch was planned, in milliseconds since 1970."""
    return json.loads((checkpoint / "offsets" / str(batch)).read_text(encoding="utf-8").splitlines()[1])[
        "batchTimestampMs"
    ]


def _relative(draft: _Draft, path: Path) -> str:
    return str(path.relative_to(draft.layout.root))


def _begin_after(
    draft: _Draft, stream: Stream, downstream: Sequence[Stream], segment: int, version: int | None = None
) -> None:
    """Begin a new checkpoint after what the table has, now or at a version: what the source makes possible."""
    source, layout = stream.source, draft.layout
    if isinstance(source, LandedFiles):
        _begin_after_files(draft, stream, segment, version)
    elif isinstance(source, KafkaTopics):
        _begin_after_offsets(draft, stream, version)
    elif isinstance(source, DeltaTable):
        if stream.sends:
            _send_again(draft, stream)
        else:
            _make_anew(draft, [stream], downstream)
    else:
        raise PlatformError(
            f"stream {stream.name!r}: {draft.found[0]}, and nothing proves what it had read of a source such as "
            f"{type(source).__name__}: put {layout.checkpoints / stream.name} back from a copy, or move it "
            "and its table away to begin anew"
        )


def _begin_after_files(draft: _Draft, stream: Stream, segment: int, version: int | None) -> None:
    assert isinstance(stream.source, LandedFiles)
    layout = draft.layout
    ledger = stream.source.landing(layout, stream.name).ledger
    files = ledger.files(segment)
    if stream.stateful:
        if stream.sink.output_mode != "complete":
            raise _unproven(stream, draft, "its state was in its checkpoint")
        draft.proof.append(
            f"the table is the whole result of all accepted files ({len(files)}): it can be computed again"
        )
        draft.add(
            "undrain",
            f"let the next run read all {len(files)} files again and replace the table by what they make",
            stream=stream.name,
            segment=segment,
        )
        return
    table = layout.table(stream.table.name) if stream.table is not None else None
    if table is None or not tells_files(table, version):
        raise _unproven(stream, draft, "its rows do not tell the file that they came in")
    folder = f"{segment:06d}/"
    found = query(
        table,
        f"SELECT source_file, count(*) AS n FROM t WHERE source_file LIKE '{folder}%' GROUP BY source_file",
        version,
    )
    there = {row["source_file"].removeprefix(folder): row["n"] for row in found}
    whole = sum(there.get(name) == records for name, (_, records) in files.items() if name in there)
    left = [file_id for name, (file_id, _) in files.items() if name not in there]
    draft.proof.append(
        f"{len(files) - len(left)} of the {len(files)} files of segment {segment} are in the table, {sum(there.values())} rows "
        f"({whole} of them with exactly the records that were counted at their admission); a file is in one micro-batch, so "
        f"it is there whole or not at all"
    )
    into = max(ledger.segments()) + 1 + sum(step.do == "leave" for step in draft.steps)
    draft.add(
        "leave",
        f"close segment {segment} as read; the {len(left)} files that are not in the table go into segment {into}, which the "
        "next run reads"
        if left
        else f"close segment {segment} as read: all of its files are in the table",
        stream=stream.name,
        segment=segment,
        into=into,
        files=left,
    )


def _unproven(stream: Stream, draft: _Draft, why: str) -> PlatformError:
    return PlatformError(
        f"stream {stream.name!r}: {draft.found[0]}, and nothing proves what was committed ({why}): put "
        f"{draft.layout.checkpoints / stream.name} back from a copy, or run the rebuild job of its table"
    )


def _begin_after_offsets(draft: _Draft, stream: Stream, version: int | None) -> None:
    assert isinstance(stream.source, KafkaTopics)
    layout = draft.layout
    table = layout.table(stream.table.name) if stream.table is not None else None
    opened = open_delta(table, version) if table is not None else None
    if table is not None and opened is not None:
        if not {"topic", "partition", "offset"} <= {column.name for column in opened.schema().fields}:
            raise _unproven(stream, draft, "its rows do not tell the offset that they came from")
    elif stream.sink.keeps is None:
        raise _unproven(stream, draft, "it keeps no table")
    last = 'SELECT topic, "partition", max("offset") AS last, count(*) AS n FROM t GROUP BY topic, "partition" ORDER BY 1, 2'
    held = stream.source.there(layout)
    starting: dict[str, dict[str, int]] = {}
    rows = query(table, last, version) if table is not None and opened is not None else []
    told: list[str] = []
    for row in rows:
        there = held.get(row["topic"], {}).get(row["partition"])
        place = f"{row['topic']}/{row['partition']}"
        if there is not None and there.high <= row["last"]:
            told.append(f"{place} was made anew (it ends at {there.high}), read from its beginning")
            continue
        starting.setdefault(row["topic"], {})[str(row["partition"])] = row["last"] + 1
        told.append(f"{place} {row['n']} rows up to offset {row['last']}")
    draft.proof.append(
        "the table has, of topic/partition, a row a record, and a micro-batch whole or not at all: "
        f"{_some(told) if told else 'nothing'}"
    )
    draft.add(
        "restart_topics",
        f"begin a new checkpoint after these offsets{'' if told else ': at the beginning of the topics'}",
        stream=stream.name,
        segment=max([1, *checkpoints(layout, stream.name)]) + 1,
        starting=starting,
        rows=sum(row["n"] for row in rows),
    )


def _some(told: Sequence[str]) -> str:
    more = len(told) - NAMED
    return ", ".join(told[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _send_again(draft: _Draft, stream: Stream, version: int | None = None) -> None:
    """A stream that sends elsewhere: what was sent is known nowhere, and none may be left out."""
    found = facts(draft.layout.table(stream.table.name), version) if stream.table is not None else None
    draft.proof.append(
        f"{found.rows if found else 'an unknown number of'} rows were written, and nothing tells which of them were sent: "
        "none may be left out"
    )
    if found is not None:
        draft.add(
            "empty", f"take all rows out of table {stream.name} (its older versions keep them)", stream=stream.name
        )
    draft.add(
        "restart_tables",
        "begin a new checkpoint at the beginning of its tables: all of it is SENT AGAIN, each record with the id that it had, by "
        "which a consumer drops the repeat",
        stream=stream.name,
    )


def _make_anew(draft: _Draft, first: Sequence[Stream], downstream: Sequence[Stream]) -> None:
    """Make tables anew from those that they are made of, and all that reads them."""
    names = _fed(first, downstream)
    # One that has never run is left to its first run.
    chain = [
        stream
        for stream in downstream
        if stream.name in names
        and (draft.layout.table(stream.name).exists() or checkpoints(draft.layout, stream.name) or stream in first)
    ]
    senders = [stream for stream in chain if stream.sends]
    anew = [stream for stream in chain if not stream.sends]
    for stream in anew:
        found = (
            facts(draft.layout.table(stream.name), None) if not table_damage(draft.layout.table(stream.name)) else None
        )
        draft.proof.append(
            f"table {stream.name} ({found.rows if found else 'unknown'} rows) can be made anew from "
            f"{', '.join(stream.source.tables_read)}"
        )
    if anew:
        draft.add(
            "rebuild",
            f"make {', '.join(s.name for s in anew)} anew from the tables they are made of; their streams go on after that",
            streams=[s.name for s in anew],
        )
    for stream in senders:
        draft.set_aside(
            *(draft.layout.checkpoint(stream.name, n) for n in checkpoints(draft.layout, stream.name)),
            words=f"set the checkpoints of {stream.name} aside, which has read what is made anew",
        )
        _send_again(draft, stream)


def _fed(first: Sequence[Stream], downstream: Sequence[Stream]) -> set[str]:
    """Names of streams and of all that reads their tables, directly or through others."""
    names = {stream.name for stream in first}
    for stream in downstream:  # each comes after those that feed it
        if names & set(stream.source.tables_read):
            names.add(stream.name)
    return names


def _mend_table(
    draft: _Draft, stream: Stream, downstream: Sequence[Stream], table: Path, broken: Sequence[Damage]
) -> None:
    """Go back to the last version that is whole, then bring back what the others had."""
    layout, log = draft.layout, table / "_delta_log"
    draft.found += [str(one) for one in broken]
    commits = [int(one.file.name[:20]) for one in broken if one.file.suffix == ".json"]
    summaries = [one.file for one in broken if one.file.suffix != ".json"]
    if summaries:
        _without_summary(draft, stream, table, summaries)
    if not commits:
        return
    lost = min(commits)
    if lost == 0:
        raise PlatformError(
            f"stream {stream.name!r}: {broken[0]}, and it is the first of the table's log, without which none of the table can be "
            f"read: move {table} and {layout.checkpoints / stream.name} away, then run the rebuild job of its table"
        )
    gone = {commit_path(table, lost)} | {
        f for n in range(lost, latest_version(table) + 2) for f in log.glob(f"{n:020d}.*")
    }
    before = facts(table, lost - 1)
    draft.proof.append(f"version {lost - 1} is the last that is whole: {before.rows if before else 0} rows")
    draft.set_aside(
        *sorted(gone), words=f"set version {lost} and what follows aside: the table is as at version {lost - 1}"
    )
    source = stream.source
    if isinstance(source, DeltaTable):
        old = [layout.checkpoint(stream.name, n) for n in checkpoints(layout, stream.name)]
        if stream.sends:
            draft.set_aside(*old, words="set its checkpoints aside")
            _send_again(draft, stream, lost - 1)
        else:
            _make_anew(draft, [stream], downstream)
        return
    if isinstance(source, LandedFiles):
        for segment in _segments_of_lost(stream, layout, table, lost - 1):
            checkpoint = layout.checkpoint(stream.name, segment)
            if checkpoint.exists():
                draft.set_aside(checkpoint, words=f"set the checkpoint {checkpoint} aside")
            _begin_after_files(draft, stream, segment, lost - 1)
    else:
        old = [layout.checkpoint(stream.name, n) for n in checkpoints(layout, stream.name)]
        draft.set_aside(*old, words="set its checkpoint aside")
        _begin_after(draft, stream, downstream, 1, lost - 1)
    readers = [s for s in downstream if stream.table is not None and stream.table.name in s.source.tables_read]
    ahead = [s for s in readers if _has_read(s, layout, table.name, lost)]
    if ahead:
        draft.proof.append(f"{', '.join(s.name for s in ahead)} had read of version {lost} or later")
        _make_anew(draft, ahead, downstream)


def _without_summary(draft: _Draft, stream: Stream, table: Path, summaries: Sequence[Path]) -> None:
    """A damaged checkpoint of a Delta log can be done without, as long as all commits are there, from one before it on."""
    earlier = checkpoints_of(table)
    base = max((n for n, file in earlier.items() if file not in summaries and parquet_file(file) is None), default=-1)
    first = next((n for n in range(base + 1, latest_version(table) + 1) if not commit_path(table, n).exists()), None)
    if first is not None:
        raise PlatformError(
            f"stream {stream.name!r}: {draft.found[0]}, and commit {first} is no longer in the table's log, so nothing "
            f"replaces it: put the file back from a copy, or move {table} away and run the rebuild job"
        )
    since = f" since its summary of version {base}" if base >= 0 else ""
    draft.proof.append(
        f"all {latest_version(table) - base} commits{since} are in the log: they say the same as its summary"
    )
    draft.set_aside(
        *summaries,
        table / "_delta_log" / "_last_checkpoint",
        words="set the summary aside; the commits are read instead",
    )


def _segments_of_lost(stream: Stream, layout: Layout, table: Path, version: int) -> list[int]:
    """The segments of which a version of the table lacks files that were worked through, or that are being worked through."""
    assert isinstance(stream.source, LandedFiles)
    ledger = stream.source.landing(layout, stream.name).ledger
    if stream.stateful:
        return ledger.segments()
    there = {row["source_file"] for row in query(table, "SELECT DISTINCT source_file FROM t", version)}
    working, found = set(ledger.working()), []
    for segment in ledger.segments():
        through = max(ledger.drained_through(segment), 0)
        lacks = any(
            f"{segment:06d}/{name}" not in there
            for name, (file_id, records) in ledger.files(segment).items()
            if (records and file_id <= through)
            or (segment in working and layout.checkpoint(stream.name, segment).exists())
        )
        if lacks:
            found.append(segment)
    return found


def _has_read(stream: Stream, layout: Layout, table: str, version: int) -> bool:
    """Whether a stream has read of a version of a table; where its checkpoint does not tell, it may have."""
    assert isinstance(stream.source, DeltaTable)
    try:
        return stream.source.versions_read(layout, stream.name).get(table, -1) >= version
    except Damaged:
        return True


def apply(
    made: Plan, stream: Stream, downstream: Sequence[Stream], spark: OpenSession, layout: Layout, *, run: str = "repair"
) -> Path:
    """Carry out a plan; the folder that what it replaced was moved to.

    Raises
    ------
    StreamLocked
        When a run holds one of the streams.
    PlatformError
        When things are no longer as the plan found them.
    """
    by_name = {one.name: one for one in downstream}
    note = layout.repair_note(stream.name)
    with ExitStack() as held:
        for name in sorted({stream.name, *(s.facts["stream"] for s in made.steps if "stream" in s.facts)}):
            held.enter_context(stream_lock(layout, name, run))
        if isinstance(stream.source, LandedFiles):
            stream.source.landing(layout, stream.name).ledger.recover()
        now = plan(stream, downstream, layout)
        if now is None or (now.found, [s.words for s in now.steps]) != (made.found, [s.words for s in made.steps]):
            raise PlatformError(
                f"stream {stream.name!r}: things have changed since the plan was made: run repair again"
            )
        kept = _read_note(stream, layout).get("set_aside") or datetime.now(timezone.utc).strftime("%Y-%m-%dT%H-%M-%SZ")
        left = list(made.steps)
        context = _Context(layout, by_name, layout.set_aside / kept, spark)

        def write_down() -> None:
            facts = {"set_aside": kept, "found": made.found, "proof": made.proof}
            write_state(note, facts | {"steps": [asdict(step) for step in left]})

        write_down()
        # A rebuild takes the locks itself; until it is through the note keeps the streams from running.
        for step in [s for s in made.steps if s.do != "rebuild"]:
            _DOES[step.do](context, step.facts)
            left.remove(step)
            write_down()
    for step in list(left):
        _DOES[step.do](context, step.facts)
        left.remove(step)
        write_down()
    note.unlink()
    return context.aside


@dataclass(frozen=True)
class _Context:
    layout: Layout
    streams: Mapping[str, Stream]
    aside: Path
    spark: OpenSession


def _set_aside(context: _Context, facts: Mapping[str, Any]) -> None:
    for name in facts["paths"]:
        path, target = context.layout.root / name, context.aside / name
        for old, new in ((checksum_file(path), checksum_file(target)), (path, target)):
            if old.exists():
                new.parent.mkdir(parents=True, exist_ok=True)
                os.rename(old, new)


def _write_id(context: _Context, facts: Mapping[str, Any]) -> None:
    file = context.layout.root / facts["checkpoint"] / "metadata"
    if json_file(file, "id") is not None:
        _set_aside(context, {"paths": [str(file.relative_to(context.layout.root))]})
    write_state(file, {"id": facts["id"]})


def _leave(context: _Context, facts: Mapping[str, Any]) -> None:
    source = context.streams[facts["stream"]].source
    assert isinstance(source, LandedFiles)
    ledger = source.landing(context.layout, facts["stream"]).ledger
    ledger.leave(facts["segment"], facts["into"], facts["files"])


def _undrain(context: _Context, facts: Mapping[str, Any]) -> None:
    source = context.streams[facts["stream"]].source
    assert isinstance(source, LandedFiles)
    source.landing(context.layout, facts["stream"]).ledger.undrain(facts["segment"])


def _restart_topics(context: _Context, facts: Mapping[str, Any]) -> None:
    source = context.streams[facts["stream"]].source
    assert isinstance(source, KafkaTopics)
    source.restart(context.layout, facts["stream"], facts["segment"], facts["starting"], facts["rows"])


def _empty(context: _Context, facts: Mapping[str, Any]) -> None:
    with spark_errors(f"table {facts['stream']} could not be emptied", context.layout):
        context.spark().sql(f"DELETE FROM delta.`{context.layout.table(facts['stream'])}`")


def _restart_tables(context: _Context, facts: Mapping[str, Any]) -> None:
    source = context.streams[facts["stream"]].source
    assert isinstance(source, DeltaTable)
    source.restart(context.layout, facts["stream"], after=None)


def _write_number(context: _Context, facts: Mapping[str, Any]) -> None:
    write_state(context.layout.source_state(facts["stream"]), {"segment": facts["segment"]})


def _rebuild(context: _Context, facts: Mapping[str, Any]) -> None:
    rebuild([context.streams[name] for name in facts["streams"]], context.spark, context.layout, run="repair")


_DOES: Mapping[Action, Callable[[_Context, Mapping[str, Any]], None]] = {
    "set_aside": _set_aside,
    "new_id": _write_id,
    "leave": _leave,
    "undrain": _undrain,
    "restart_topics": _restart_topics,
    "empty": _empty,
    "restart_tables": _restart_tables,
    "count_on": _write_number,
    "rebuild": _rebuild,
}
