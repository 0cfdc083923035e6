"""What the platform raises when a person has to act: one line that names the setting and the remedy."""

from __future__ import annotations

import re

_SAYS_NOTHING = ("Exception thrown in awaitResult", "Job aborted")


class PlatformError(Exception):
    """Something a person can mend: the message is one line and names the setting and the remedy."""


class StreamLocked(PlatformError):
    """Another run holds the stream's checkpoint.

    Parameters
    ----------
    stream : str
        Name of the stream.
    holder : str
        Who holds it, in words: run, process id, host, since when.
    """

    def __init__(self, stream: str, holder: str) -> None:
        self.stream = stream
        self.holder = holder
        super().__init__(
            f"the checkpoint of stream {stream!r} is held by {holder}: wait for that run to end, or stop it, then run again"
        )


class StreamFailed(PlatformError):
    """A streaming query ended with an error; nothing of its last micro-batch was committed.

    Parameters
    ----------
    stream : str
        Name of the stream.
    cause : BaseException
        What Spark said; its first line becomes part of the message.
    log : str
        Where the full account is.
    remedy : str
        What a person has to do, where the next run would fail alike.
    """

    def __init__(self, stream: str, cause: BaseException, log: str, remedy: str | None = None) -> None:
        self.stream = stream
        self.cause = cause
        what_next = "what was committed stays, and the next run goes on from there"
        super().__init__(
            f"stream {stream!r} failed: {f'{remedy}: ' if remedy else ''}{first_line(cause)} "
            f"(full account in {log}; {what_next if remedy is None else 'what was committed stays'})"
        )


def first_line(error: BaseException, limit: int = 500) -> str:
    """The line that says most in an error's text, at most `limit` characters, without a stack trace.

    That is what the platform itself said in a Python process of Spark's, else what the innermost cause said where the text
    names causes and begins with none, else the first line.
    """
    text = str(error)
    if ours := re.findall(r"^.*?invoice_platform\.errors\.\w+: (.+)$", text, re.MULTILINE):
        return ours[-1].strip()[:limit]
    if text.lstrip().startswith(_SAYS_NOTHING) and (cause := getattr(error, "cause", None)) is not None:
        return first_line(cause, limit)
    for line in text.splitlines():
        if line.strip():
            return line.strip()[:limit]
    return type(error).__name__
