"""Errors that a user can fix: each message is one line that names the file, the key and the fix.

A message may quote a foreign file (a member's name, a class, a run), so line ends and control
characters, which could steer a terminal, are printed as escapes, and the middle of a very long
message is left out.
"""

LONGEST = 2000  # characters of a message


class CdaError(ValueError):
    """A user's mistake or damage on disk; the command line prints it as one line."""

    def __init__(self, message: str) -> None:
        line = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in message
        )
        if len(line) > LONGEST:
            line = f"{line[: LONGEST // 2]} … {line[3 - LONGEST // 2 :]}"
        super().__init__(line)


class ConfigError(CdaError):
    """A value in `config/` or on the command line that cannot be used."""


class DataError(CdaError):
    """A real data set that is missing, partial or unreadable."""


class ArtifactError(CdaError):
    """A model, shard or label store that is missing, damaged or belongs to something else."""


class AlreadyDone(CdaError):
    """Another job finished the same work in the meantime; its output exists."""


class Interrupted(CdaError):
    """A signal (`number`) stopped the stage; its work is saved, and the next start continues it."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number
