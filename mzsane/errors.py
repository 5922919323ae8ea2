"""The errors that mzsane raises on purpose. Everything else is a bug."""

from mzsane.addresses import hide_secrets


class MzsaneError(Exception):
    """Base of every expected failure; its text is one line that says what to do, and never holds a secret.

    What libraries say is put into many of them, and they print whole addresses.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(hide_secrets(part) if isinstance(part, str) else part for part in arguments))


class ConfigError(MzsaneError, ValueError):
    """A user's setting or input is wrong: the value, where it came from, what is allowed."""


class StoreError(MzsaneError):
    """The artifact store cannot be reached, refuses, or is full."""


class CorruptArtifactError(StoreError):
    """A published file is missing or does not have the bytes its manifest promises."""


class NewerArtifactError(StoreError):
    """A published artifact was written by a newer mzsane; nothing is wrong with it."""


class WorkerError(MzsaneError):
    """A worker process died or failed while it was computing."""


class DivergedError(MzsaneError):
    """Training produced a loss that is not finite, or one that grows and grows."""


class OutOfMemoryError(MzsaneError):
    """The work does not fit in memory."""
