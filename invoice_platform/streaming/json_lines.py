"""Lines of JSON, read so that nothing wrong passes for right, and what is wrong is named.

Spark's own `from_json` says nothing of a second document on the line, a repeated key, a key in another case, a field that nobody
declared, a string for a number or a number for a string, and rounds what has too many decimals. So a line is read in one of two
ways, with the same result:

- A *plain* line is written as declared: one object of the declared fields and no others, each of its type, no exponent. A function
  in Java (`java/PlainRecords.java`) reads it, and gives nothing for a line that is not. That is how tills write, and it is fast.
- Any other line becomes a VARIANT, which keeps every number to its last digit and refuses repeated keys, and each declared
  field of it is looked at. That takes about ten times as long. In a Spark without the function every line is read so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from invoice_platform.streaming.session import FUNCTIONS, has_own_classes
from invoice_platform.streaming.tables import Column

if TYPE_CHECKING:
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame

BLANK = r"\A\s*\z"
"""A line that holds nothing, as a regular expression."""
FAULTS_NAMED = 5
"""Fields that a reason names, at most."""
_HUGE_EXPONENT = r"[0-9][eE][+-]?[0-9]{4}"
"""Spark takes minutes to find that 1e100000000 is too large for a decimal."""
_HIGH, _LOW = r"\\\\u[dD][89aAbB][0-9a-fA-F]{2}", r"\\\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF_A_PAIR = f"{_HIGH}(?!{_LOW})|(?<!{_HIGH}){_LOW}"
"""One surrogate without the other, as an SQL literal holds it."""
# JSON has neither; Spark takes both unless told.
_STRICT = {"allowSingleQuotes": "false", "allowNonNumericNumbers": "false"}
_STRICT_SQL = f"map({', '.join(f'{name!r}, {value!r}' for name, value in _STRICT.items())})"


def one_document(line: str) -> str:
    """SQL that is true when a line holds exactly one JSON document.

    Spark's parser reads the first document of `{…}{…}`, `{…},{…}` and `{…} junk` and flags nothing. Inside
    `[…,0]` one document gives two elements, several give more, and junk gives null.
    """
    return f"coalesce(json_array_length(concat('[', {line}, ',0]')) = 2, false)"


def from_json(
    line: str, columns: Sequence[Column], corrupt: str, options: Mapping[str, str] | None = None
) -> SparkColumn:
    """A struct of `columns`, with the text in `corrupt` when the line is not JSON of those columns and types.

    Null for a line with a number of an exponent of four digits.
    """
    from pyspark.sql import functions as F

    schema = ", ".join(c.ddl for c in columns)
    named = {"columnNameOfCorruptRecord": corrupt}
    parsed = F.from_json(line, f"{schema}, `{corrupt}` string", _STRICT | named | dict(options or {}))
    return F.when(~F.col(line).rlike(_HUGE_EXPONENT), parsed)


def read_records(lines: DataFrame, columns: Sequence[Column], max_bytes: int) -> DataFrame:
    """Lines in `value` (string) with three columns more, of which `fault` or `record` is null and the other is not.

    Parameters
    ----------
    columns : sequence of Column
        What a line holds: `string`, `int`, `bigint`, `decimal`, structs and arrays of structs of these, by `fields`.
    max_bytes : int
        A longer line is a fault.

    Returns
    -------
    DataFrame
        `record` (struct of `columns`), `fault` (string: why the line is no such record, naming the fields) and `rescued`
        (string: the fields of a record that nobody declared, as a JSON document of the same shape; null for none).
    """
    from pyspark.sql import functions as F

    struct = f"STRUCT<{', '.join(f'`{c.name}`: {c.type}' for c in columns)}>"
    plain = f"CAST(NULL AS {struct})"
    if has_own_classes(lines.sparkSession):
        plain = f"IF(octet_length(value) <= {max_bytes}, {plain_record(columns)}, NULL)"
    odd = f"IF(plain IS NOT NULL OR octet_length(value) > {max_bytes} OR NOT is_valid_utf8(value), NULL, try_parse_json(value))"
    is_odd = F.col("plain").isNull()
    return (
        lines.withColumn("plain", F.expr(plain))
        .withColumn("odd", F.expr(odd))
        .withColumn("fault", F.when(is_odd, F.expr(_fault(columns, max_bytes))))
        .withColumn(
            "record",
            F.coalesce("plain", F.when(F.col("fault").isNull(), F.expr(f"CAST(odd AS {struct})"))),
        )
        .withColumn(
            "rescued",
            F.when(
                is_odd & F.col("fault").isNull(),
                F.expr(f"nullif(to_json({_unknown('odd', columns)}), '{{}}')"),
            ),
        )
        .drop("plain", "odd")
    )


def plain_record(columns: Sequence[Column]) -> str:
    """SQL: the record of a plain line in `value`, by the function in Java; null for any other line."""
    return f"{FUNCTIONS}.plain_record(value, CAST(NULL AS {_shape(columns)}))"


def _shape(columns: Sequence[Column]) -> str:
    """The struct of `columns` as `plain_record` wants it told: with which fields are required, and which numbers are rounded."""
    return f"STRUCT<{', '.join(_field(c) for c in columns)}>"


def _field(column: Column) -> str:
    of = _shape(column.fields) if column.fields else column.type
    of_type = f"ARRAY<{of}>" if column.is_array else of
    required, rounded = " NOT NULL" if column.required else "", " COMMENT 'rounded'" if column.rounded else ""
    return f"`{column.name}`: {of_type}{required}{rounded}"


def _digits(decimal: str) -> tuple[int, int]:
    """Digits that a number of such a type may have before the point, and after it."""
    match = re.fullmatch(r"decimal\((\d+),\s*(\d+)\)", decimal)
    assert match, decimal
    return int(match[1]) - int(match[2]), int(match[2])


def _fault(columns: Sequence[Column], max_bytes: int) -> str:
    """SQL: why a line that is not plain, a VARIANT in `odd`, is no record of `columns`; null when it is one."""
    faults = _faults("odd", columns)
    return f"""CASE
        WHEN NOT is_valid_utf8(value) THEN 'not valid UTF-8'
        WHEN octet_length(value) > {max_bytes}
          THEN concat('longer than a record may be: ', octet_length(value), ' bytes, the limit is {max_bytes}')
        WHEN odd IS NULL THEN {_no_variant(columns)}
        WHEN NOT {one_document("value")} THEN 'more than one JSON document, or text after it, on the line'
        WHEN schema_of_variant(odd) NOT LIKE 'OBJECT<%' THEN 'not a JSON object'
        ELSE nullif(concat_ws('; ', slice({faults}, 1, {FAULTS_NAMED})), '')
      END"""


def _let(name: str, value: str, expression: str) -> str:
    """SQL: `expression` with `value`, computed once, under a name. A plan that repeats it costs seconds to make."""
    return f"transform(array({value}), {name} -> {expression})[0]"


def _no_variant(columns: Sequence[Column]) -> str:
    """SQL: why a text became no VARIANT. Spark gives no reason; a repeated key is the one that `from_json` passes over."""
    nested = [c for c in columns if c.fields]
    # The texts of all objects, each with the path to it.
    texts = ["array(named_struct('path', '', 'text', value))"]
    for c in nested:
        of_type = "array<string>" if c.is_array else "string"
        text = f"from_json(value, '`{c.name}` {of_type}').`{c.name}`"
        each = text if c.is_array else f"array({text})"
        texts.append(f"transform(coalesce({each}, array()), text -> named_struct('path', '{c.name}.', 'text', text))")
    keys = "coalesce(json_object_keys(object.text), array())"
    twice = "filter(array_distinct(keys), key -> size(filter(keys, other -> other = key)) > 1)"
    each = _let("keys", keys, f"transform({twice}, key -> concat(object.path, key))")
    found = f"array_distinct(flatten(transform(concat({', '.join(texts)}), object -> {each})))"
    # A string alone is a document, too, of which `from_json` knows nothing.
    bare = f"from_json(concat('[', value, ']'), 'array<string>', {_STRICT_SQL}) IS NOT NULL AND {one_document('value')}"
    return f"""CASE
          WHEN contains(value, char(0)) THEN 'not a JSON document: there are NUL bytes in it'
          WHEN startswith(value, '\\uFEFF') THEN 'not a JSON document: a byte order mark stands before it'
          WHEN from_json(value, 'map<string, string>', {_STRICT_SQL}) IS NULL
            AND from_json(value, 'array<string>', {_STRICT_SQL}) IS NULL
            AND NOT ({bare})
            THEN 'not a JSON document, or one nested over 1,000 levels deep'
          ELSE coalesce(
            concat('a key is repeated: ', nullif(concat_ws(', ', {found}), '')),
            IF(value RLIKE '{_HALF_A_PAIR}', 'half of a surrogate pair is in it, which is no character', NULL),
            'a key is repeated in what was not declared')
        END"""


def _faults(at: str, columns: Sequence[Column]) -> str:
    """SQL: an array of what is wrong with the object `at` (VARIANT), field by field, then with the objects in it.

    The objects are laid out side by side, so that one expression looks at them all: one for each level takes Spark twice as long
    to analyse, at each start of a query.
    """
    levels: list[Sequence[Column]] = []
    objects = _objects(at, columns, "''", levels)
    declared = f"from_json('{json.dumps([_as_data(level) for level in levels])}', 'array<array<{_DESCRIBED}>>')"
    fault = f"""CASE
        WHEN kind IS NULL OR kind = 'VOID' THEN IF(field.required, concat(path, field.name, ' is missing'), NULL)
        WHEN NOT coalesce({_FITS}, false) THEN concat(path, field.name, ' is not ', field.words) END"""
    of_field = _let("kind", "schema_of_variant(fields[field.name])", fault)
    path = "IF(object.place = '', '', concat(object.place, '.'))"
    other_case = (
        "filter(map_keys(fields), key -> NOT exists(declared, field -> field.name = key) "
        "AND exists(declared, field -> lower(field.name) = lower(key)))"
    )
    named = (
        f"concat(transform(declared, field -> {of_field}), "
        f"transform({other_case}, key -> concat(path, key, ' is a declared field in another case')))"
    )
    fields = "coalesce(try_variant_get(object.value, '$', 'map<string,variant>'), map())"
    of_object = _let("declared", f"{declared}[object.level]", _let("path", path, _let("fields", fields, named)))
    each = (
        "IF(schema_of_variant(object.value) LIKE 'OBJECT<%', "
        f"{of_object}, array(concat(object.place, ' is not an object')))"
    )
    return f"filter(flatten(transform({objects}, object -> {each})), fault -> fault IS NOT NULL)"


def _objects(at: str, columns: Sequence[Column], place: str, levels: list[Sequence[Column]]) -> str:
    """SQL: an array of the object `at` (VARIANT) and those in it, each with its place and with the level of its fields.

    A struct that is no object is left out, because it is at fault as a field; what is in an array of structs is not.
    """
    level = len(levels)
    levels.append(columns)
    parts = [f"array(named_struct('place', {place}, 'level', {level}, 'value', {at}))"]
    for c in columns:
        value = f"variant_get({at}, '$.{c.name}')"
        name = f"concat({place}, '{'' if level == 0 else '.'}{c.name}')"
        if c.is_struct:
            inner = _objects(value, c.fields, name, levels)
            parts.append(f"IF(schema_of_variant({value}) LIKE 'OBJECT<%', {inner}, array())")
        elif c.is_array:
            # A name of its own for each level: one array may be within another.
            item, number = f"item{len(levels)}", f"number{len(levels)}"
            inner = _objects(item, c.fields, f"concat({name}, '[', {number}, ']')", levels)
            items = f"coalesce(try_variant_get({value}, '$', 'array<variant>'), array())"
            parts.append(f"flatten(transform({items}, ({item}, {number}) -> {inner}))")
    return f"concat({', '.join(parts)})" if len(parts) > 1 else parts[0]


_FITS = """CASE field.type
          WHEN 'string' THEN kind = 'STRING'
          WHEN 'struct' THEN kind LIKE 'OBJECT<%'
          WHEN 'array' THEN kind LIKE 'ARRAY<%'
          WHEN 'int' THEN kind = 'BIGINT' AND try_variant_get(fields[field.name], '$', 'int') IS NOT NULL
          WHEN 'bigint' THEN kind = 'BIGINT'
          ELSE (kind IN ('BIGINT', 'DOUBLE') OR kind LIKE 'DECIMAL(%')
            AND abs(try_variant_get(fields[field.name], '$', 'decimal(38,4)')) < field.limit
            AND (field.rounded OR CASE
              WHEN kind = 'BIGINT' THEN true
              WHEN kind <> 'DOUBLE' THEN CAST(regexp_extract(kind, ',([0-9]+)', 1) AS INT) <= field.decimals
              -- A number with an exponent, or of over 38 digits.
              ELSE NOT value RLIKE '[0-9][0-9.]{37}'
                AND try_variant_get(fields[field.name], '$', 'decimal(38,10)') % field.step = 0
                AND CAST(try_variant_get(fields[field.name], '$', 'decimal(38,10)') AS DOUBLE)
                  = try_variant_get(fields[field.name], '$', 'double') END)
        END"""
"""SQL: whether a VARIANT, `fields[field.name]` of the type `kind`, is to the last digit a value of the type of `field`."""


def _as_data(columns: Sequence[Column]) -> list[dict[str, object]]:
    """What `_FITS` has to know of columns; see `_DESCRIBED`."""
    described: list[dict[str, object]] = []
    for c in columns:
        whole, decimals = _digits(c.type) if c.type.startswith("decimal") else (0, 0)
        described.append(
            {
                "name": c.name,
                "type": "array" if c.is_array else "struct" if c.is_struct else "decimal" if decimals else c.type,
                "required": c.required,
                "rounded": c.rounded,
                "decimals": decimals,
                "step": f"{10**-decimals:.{decimals}f}",
                # What rounds to this has a digit too many.
                "limit": f"{10**whole - 1}.99995" if c.rounded else f"{10**whole}",
                "words": _words(c),
            }
        )
    return described


_DESCRIBED = (
    "struct<name: string, type: string, required: boolean, rounded: boolean, decimals: int, step: decimal(38,10), "
    "limit: decimal(38,5), words: string>"
)


def _words(column: Column) -> str:
    """What a value should be, for a person."""
    if column.is_array:
        return "an array"
    if column.is_struct:
        return "an object"
    if column.type == "string":
        return "a string"
    if column.type in ("int", "bigint"):
        return f"a whole number of {32 if column.type == 'int' else 64} bits"
    whole, decimals = _digits(column.type)
    return f"a number of at most {whole} digits before the point{'' if column.rounded else f' and {decimals} after it'}"


def _unknown(at: str, columns: Sequence[Column]) -> str:
    """SQL: a map of the fields of the object `at` (VARIANT) that nobody declared, in the shape that they were in."""
    names = ", ".join(f"'{c.name}'" for c in columns)
    parts = [f"map_filter(try_variant_get({at}, '$', 'map<string,variant>'), (k, v) -> k NOT IN ({names}))"]
    for c in columns:
        value = f"variant_get({at}, '$.{c.name}')"
        if c.is_struct:
            inner, some = _unknown(value, c.fields), "size(inner) > 0"
        elif c.is_array:
            items = f"try_variant_get({value}, '$', 'array<variant>')"
            inner, some = f"transform({items}, item -> {_unknown('item', c.fields)})", "exists(inner, i -> size(i) > 0)"
        else:
            continue
        found = f"IF({some}, map('{c.name}', to_variant_object(inner)), CAST(map() AS map<string,variant>))"
        parts.append(f"coalesce({_let('inner', inner, found)}, CAST(map() AS map<string,variant>))")
    return f"map_concat({', '.join(parts)})" if len(parts) > 1 else parts[0]
