"""Where checkpoints lie: folders, buckets and hubs, zip and tar archives, behind one small protocol."""

from typing import Protocol


class Source(Protocol):
    """Files by name. Implementations are cheap to pickle: they open what they need in the process that reads."""

    @property
    def address(self) -> str:
        """Where the files are, for people."""

    def names(self) -> list[str]:
        """Return the names of all files, relative, with `/`, sorted."""

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            ConfigError: there is no such file, it is damaged, or it is larger than anything reasonable.
        """
