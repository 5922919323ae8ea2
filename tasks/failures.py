"""What a command says when it fails: one line for what the user, the machine or a server did."""

import errno
import os
import sys
import traceback
from types import TracebackType

from mzsane.addresses import hide_secrets
from mzsane.errors import ConfigError, MzsaneError

_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SERVER = ("prefect", "httpx", "httpcore", "sqlalchemy", "aiosqlite")
_ADVICE = {
    **dict.fromkeys(_SPACE, "free some space, or set MZSANE_ROOT, MZSANE_CACHE and TMPDIR to places that have it"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "give the right to it, or choose another place"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n)"),
    errno.EADDRINUSE: "choose another port, or end what uses it",
    errno.ENOMEM: "use fewer processes or smaller settings",
}


def explain_failure(error: BaseException) -> tuple[str, int] | None:
    """Return the line and the exit code of a failure that is no fault of the program; None for all others."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    text = hide_secrets(" ".join(str(error).split()))
    if isinstance(error, MzsaneError):
        return text, 2 if isinstance(error, ConfigError) else 1
    if isinstance(error, OSError) and error.errno in _ADVICE:
        return f"{error.strerror}{_name_file(error)}: {_ADVICE[error.errno]}", 1
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.strerror}{_name_file(error)}: is it what you meant?", 1
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory{f' ({text[:200]})' if text else ''}: use fewer processes or smaller settings", 1
    if _is_of_server(error):
        where = (
            f"at {os.environ['PREFECT_API_URL']}" if os.environ.get("PREFECT_API_URL") else "that was started for this"
        )
        advice = "is it running, and PREFECT_API_URL right? Without that variable a temporary one is started"
        return hide_secrets(f"the Prefect server {where} failed ({type(error).__name__}: {text[:300]}): {advice}"), 1
    return None


def print_without_secrets(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the trace of an error that is the program's fault, as Python does, but for secrets in it."""
    print(hide_secrets("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _name_file(error: OSError) -> str:
    return f": {hide_secrets(str(error.filename))[:200]}" if error.filename is not None else ""


def _is_of_server(error: BaseException) -> bool:
    words = ("ephemeral", "Failed to reach API")  # Prefect's RuntimeErrors about its server
    return type(error).__module__.split(".")[0] in _SERVER or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
