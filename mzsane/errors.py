"""The errors that mzsane raises on purpose. Everything else is a bug."""


class MzsaneError(Exception):
    """Base of every expected failure; its text is one line that says what to do."""


class ConfigError(MzsaneError, ValueError):
    """A user's setting or input is wrong: the value, where it came from, what is allowed."""


class StoreError(MzsaneError):
    """The artifact store cannot be reached, refuses, or is full."""


class CorruptArtifactError(StoreError):
    """A published file is missing or does not have the bytes its manifest promises."""


class WorkerError(MzsaneError):
    """A worker process died or failed while it was computing."""


class DivergedError(MzsaneError):
    """Training produced a loss that is not finite, or one that grows and grows."""


class OutOfMemoryError(MzsaneError):
    """The work does not fit in memory."""
