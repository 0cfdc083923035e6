"""What is expected of a record that can be read, and what becomes of one that is otherwise: all rules, in one place, as data.

`warn`: the record is accepted, and the rule's name is in its `warnings`. `quarantine`: it is set aside, with the rule as reason.
`fail`: the run fails before anything of its micro-batch is written. What a rule does can be set without touching this file:
`INVOICE_PLATFORM_EXPECTATIONS="line_totals_add_up=quarantine number_of_items_agrees=fail"`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from invoice_platform.errors import PlatformError

Action = Literal["warn", "quarantine", "fail"]
VARIABLE = "INVOICE_PLATFORM_EXPECTATIONS"
Repeated = Literal["keep", "drop"]
REPEATED_VARIABLE = "INVOICE_PLATFORM_REPEATED_INVOICES"

MAX_LINE_ITEMS = 10_000
RAW_CHARACTERS = 65_536
"""What a quarantined record that was too long keeps of its text in the table; all of it is in the archive."""

# One time in the year 9999 would close every window of the sums by event time, for good.
OLDEST_MS = 946_684_800_000
AHEAD_MS = 86_400_000


def repeated_invoices() -> Repeated:
    """What becomes of a valid record whose invoice number came before: `keep` (default) its line items, or `drop` them.

    The record itself is in the bronze table either way.

    Raises
    ------
    PlatformError
        When `INVOICE_PLATFORM_REPEATED_INVOICES` is neither.
    """
    policy = os.environ.get(REPEATED_VARIABLE) or "keep"
    if policy not in get_args(Repeated):
        raise PlatformError(f"{REPEATED_VARIABLE}={policy}: give {' or '.join(get_args(Repeated))}")
    return cast("Repeated", policy)


@dataclass(frozen=True)
class Expectation:
    """A rule for a record that can be read."""

    name: str
    holds: str
    """SQL over the landed fields and `ingested_at`; a record for which it is false or null does not meet the rule."""
    says: str
    """What is wrong with such a record, for a person; no SQL, no quotes."""
    action: Action


EXPECTATIONS: tuple[Expectation, ...] = (
    Expectation(
        "created_time_is_plausible",
        f"CreatedTime BETWEEN {OLDEST_MS} AND unix_millis(ingested_at) + {AHEAD_MS}",
        "CreatedTime is before 2000 or a day and more after the record came: not milliseconds since 1970",
        "quarantine",
    ),
    Expectation("has_line_items", "size(InvoiceLineItems) > 0", "no line items", "quarantine"),
    Expectation(
        "not_too_many_line_items",
        f"size(InvoiceLineItems) <= {MAX_LINE_ITEMS}",
        f"more than {MAX_LINE_ITEMS} line items",
        "quarantine",
    ),
    Expectation(
        "quantities_are_not_negative",
        "coalesce(array_min(InvoiceLineItems.ItemQty), 0) >= 0",  # Spark interprets `forall`; this it compiles
        "a line item of a negative quantity",
        "quarantine",
    ),
    Expectation(
        "number_of_items_agrees",
        "NumberOfItems = size(InvoiceLineItems)",
        "NumberOfItems is not the number of line items",
        "warn",
    ),
    Expectation(
        "line_totals_add_up",
        # Spark interprets `aggregate`: of an array of numbers in half the time that it takes of one of structs.
        "TotalAmount = aggregate(InvoiceLineItems.TotalValue, CAST(0 AS DECIMAL(38,2)), "
        "(sum, total) -> CAST(sum + total AS DECIMAL(38,2)))",
        "the line totals do not add up to TotalAmount",
        "warn",
    ),
)
"""In the order in which they are looked at: the first that a record does not meet is its reason."""


def expectations() -> tuple[Expectation, ...]:
    """The rules with what the environment sets for them.

    Raises
    ------
    PlatformError
        When `INVOICE_PLATFORM_EXPECTATIONS` names no rule or no action.
    """
    actions = {rule.name: rule.action for rule in EXPECTATIONS}
    for word in os.environ.get(VARIABLE, "").split():
        name, _, action = word.partition("=")
        if name not in actions or action not in get_args(Action):
            raise PlatformError(
                f"{VARIABLE}: {word!r} is not <rule>=<action>: rules are {', '.join(actions)}; "
                f"actions {', '.join(get_args(Action))}"
            )
        actions[name] = cast("Action", action)
    return tuple(replace(rule, action=actions[rule.name]) for rule in EXPECTATIONS)
