"""What a user can mend: each message is one line that names the file, the key and the mend.

A message may quote what a stranger wrote (a member's name, a class, a run), so line ends and what
steers a terminal are shown as their escapes.
"""


class CdaError(ValueError):
    """Any mistake of the user's or damage on disk; the command line prints it as one line."""

    def __init__(self, message: str) -> None:
        super().__init__(
            "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        )


class ConfigError(CdaError):
    """A value in `config/` or on the command line that cannot be used."""


class DataError(CdaError):
    """A real data set that is missing, partial or unreadable."""


class ArtifactError(CdaError):
    """A model, shard or label store that is missing, damaged or belongs to something else."""


class AlreadyDone(CdaError):
    """Another job did the very work meanwhile.

    Its output is there, and to do it again would be in vain.
    """


class Interrupted(CdaError):
    """A signal (its number) asked the stage to stop.

    What is done is saved and the next start goes on from there.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number
