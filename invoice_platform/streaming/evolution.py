"""What a declaration changes in a table that is there: columns and nested fields that it adds; any other change is refused.

Types are compared as Spark SQL writes them, without Spark.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_TOKEN = re.compile(r"`[^`]+`|'(?:[^'\\]|\\.)*'|\w+(?:\s*\([\s\d,]*\))?|[<>,:]")
_ALIASES = {
    "long": "bigint",
    "integer": "int",
    "short": "smallint",
    "byte": "tinyint",
    "real": "float",
    "dec": "decimal",
    "numeric": "decimal",
    "decimal": "decimal(10,0)",
    "timestamp_ltz": "timestamp",
}


@dataclass(frozen=True)
class Type:
    """A Spark SQL type: a plain one by its name, or `struct`, `array` or `map` of its parts."""

    name: str
    parts: tuple[tuple[str, Type], ...] = ()
    """Fields of a struct by name, `element` of an array, `key` and `value` of a map: as ALTER TABLE names them."""

    @classmethod
    def parse(cls, text: str) -> Type:
        """A type as it is declared, e.g. `array<struct<a: int>>`."""
        return _parse(_TOKEN.findall(text))

    @classmethod
    def of_delta(cls, type: str | Mapping[str, Any]) -> Type:
        """A type as a Delta log has it."""
        if isinstance(type, str):
            return cls(_plain(type))
        if type["type"] == "struct":
            return cls("struct", tuple((f["name"], cls.of_delta(f["type"])) for f in type["fields"]))
        inner = {"array": {"element": "elementType"}, "map": {"key": "keyType", "value": "valueType"}}[type["type"]]
        return cls(type["type"], tuple((part, cls.of_delta(type[name])) for part, name in inner.items()))

    def __str__(self) -> str:
        if not self.parts:
            return self.name
        named = self.name == "struct"
        return f"{self.name}<{', '.join(f'`{n}`: {t}' if named else str(t) for n, t in self.parts)}>"


@dataclass(frozen=True)
class Added:
    """A nested field that a declaration adds."""

    path: tuple[str, ...]
    type: Type


@dataclass(frozen=True)
class Changed:
    """A column or nested field whose type is declared otherwise than it is."""

    path: tuple[str, ...]
    there: Type | None
    declared: Type | None


def differences(path: tuple[str, ...], there: Type, declared: Type) -> Iterator[Added | Changed]:
    """What a declared type adds to the one that is there, and what it changes."""
    if there.name != declared.name:
        yield Changed(path, there, declared)
        return
    # Spark tells no column from another by the case of its name.
    old, new = ({name.lower(): (name, type) for name, type in one.parts} for one in (there, declared))
    for key, (name, type) in new.items():
        if key in old:
            yield from differences((*path, old[key][0]), old[key][1], type)
        else:
            yield Added((*path, name), type)
    for key in old.keys() - new.keys():
        yield Changed((*path, old[key][0]), old[key][1], None)


def _plain(text: str) -> str:
    text = re.sub(r"\s", "", text.lower())
    name, bracket, rest = text.partition("(")
    if name in ("varchar", "char"):
        return "string"
    if not bracket:
        return _ALIASES.get(name, name)
    name = {"dec": "decimal", "numeric": "decimal"}.get(name, name)
    return f"{name}({rest}" if "," in rest else f"{name}({rest[:-1]},0)"


def _parse(tokens: list[str]) -> Type:
    """Take one type off the front of `tokens`."""
    name = tokens.pop(0).lower()
    if name not in ("struct", "array", "map"):
        return Type(_plain(name))
    parts: list[tuple[str, Type]] = []
    names = {"array": ["element"], "map": ["key", "value"]}.get(name, [])
    assert tokens.pop(0) == "<"
    while tokens[0] != ">":
        if name == "struct":
            field = tokens.pop(0).strip("`")
            if tokens[0] == ":":
                tokens.pop(0)
        else:
            field = names[len(parts)]
        parts.append((field, _parse(tokens)))
        while tokens[0] not in (",", ">"):  # NOT NULL, COMMENT '…'
            tokens.pop(0)
        if tokens[0] == ",":
            tokens.pop(0)
    tokens.pop(0)
    return Type(name, tuple(parts))
