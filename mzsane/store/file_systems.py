"""File systems of fsspec, opened with the options of this project, and waited for when they are away for a moment.

A server that restarts or a network that drops costs time and no run.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mzsane.addresses import check_address, check_openable, show_address
from mzsane.errors import ConfigError, StoreError

S3 = ("s3://", "s3a://")
NEEDS_KEYS = (
    "S3 needs keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and MZSANE_S3_ENDPOINT where the server is not "
    "Amazon's; a bucket that everybody may read needs FSSPEC_S3_ANON=true instead"
)
_S3_OPTIONS = {
    "use_listings_cache": False,
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 2}},
}
_HTTP = ("http://", "https://")
_HTTP_OPTIONS = {"client_kwargs": {"trust_env": True}}  # users of ~/.netrc and proxies, as downloads have them

PATIENCE = 75.0  # seconds that one request waits: a restart of a server takes less than a minute
_FIRST_PAUSE = 0.5  # seconds; doubles
_LONGEST_PAUSE = 5.0
# What the libraries below fsspec call a server that does not answer; a certificate that is wrong stays so.
_AWAY = {
    "botocore": ("ConnectionError", "HTTPClientError"),
    "aiobotocore": ("HTTPClientError",),
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
}
_NEVER = ("SSLError", "ClientSSLError", "ClientConnectorCertificateError", "ProxyConnectionError")
_BUSY_STATUS = (429, 500, 502, 503, 504)

_logger = logging.getLogger(__name__)


def open_file_system(root: str, options: Mapping[str, Any], setting: str) -> tuple[Any, str]:
    """Open the file system of an address.

    Args:
        root: a folder or URL.
        options: fsspec's storage options.
        setting: what the user set the address with, for error texts.

    Returns:
        The file system, a patient one if it is remote, and the path of the address in it.

    Raises:
        ConfigError: the address cannot be opened, or the endpoint has no scheme or holds a password.
        StoreError: it cannot be reached.
    """
    defaults: dict[str, Any] = {}
    if root.startswith(S3):
        defaults = {**_S3_OPTIONS, **_find_endpoint()}
    elif root.startswith(_HTTP):
        defaults = _HTTP_OPTIONS
    try:
        check_openable(check_address(root))
        file_system, path = fsspec.core.url_to_fs(root, **{**defaults, **options})
    except OSError as error:  # some protocols connect at once
        raise StoreError(f"{setting} {show_address(root)!r} cannot be reached: {error}") from None
    except Exception as error:  # every protocol has errors of its own
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{setting} {show_address(root)!r} is not a folder or an address that can be opened: {reason}"
        ) from None
    if isinstance(file_system, LocalFileSystem):
        return file_system, path
    return PatientFileSystem(file_system, root), path


def _find_endpoint() -> dict[str, Any]:
    endpoint = os.environ.get("MZSANE_S3_ENDPOINT")
    return {"endpoint_url": check_endpoint(endpoint)} if endpoint else {}


def check_endpoint(endpoint: str) -> str:
    """Return the address of an S3 server.

    Raises:
        ConfigError: it has no scheme, or holds a user or password.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"MZSANE_S3_ENDPOINT {endpoint!r} must begin with http:// or https://")
    try:
        return check_address(endpoint)
    except ValueError:
        raise ConfigError(
            f"MZSANE_S3_ENDPOINT {show_address(endpoint)!r} holds a user or password: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        ) from None


class PatientFileSystem:
    """A remote file system of fsspec whose calls are repeated while the server is away."""

    def __init__(self, file_system: Any, address: str) -> None:
        self._file_system = file_system
        self._address = show_address(address)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked for by pickle before there is a file system
            raise AttributeError(name)
        value = getattr(self._file_system, name)
        if not callable(value):
            return value

        def call(*arguments: Any, **options: Any) -> Any:
            return self._insist(lambda: value(*arguments, **options))

        return call

    def _insist(self, action: Callable[[], Any]) -> Any:
        started, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                return action()
            except Exception as error:
                waited = time.monotonic() - started
                if not is_away(error) or waited + pause > PATIENCE:
                    raise
                if pause == 2 * _FIRST_PAUSE:  # a hiccup is not worth a line
                    _logger.warning("%s does not answer; waiting for it up to %.0f s", self._address, PATIENCE)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def is_away(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it was made from, is of a server that may be back in a moment."""
    away = False
    for _ in range(10):
        if error is None:
            break
        if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
            return False  # there is no such host
        names = {kind.__name__ for kind in type(error).__mro__}
        if names.intersection(_NEVER):
            return False
        family = type(error).__module__.split(".")[0]
        away |= isinstance(error, ConnectionError | TimeoutError) or not names.isdisjoint(_AWAY.get(family, ()))
        away |= _read_status(error) in _BUSY_STATUS
        error = error.__cause__ or error.__context__
    return away


def _read_status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)  # botocore's; of other libraries an object
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "status", None)
    return status if isinstance(status, int) else None
