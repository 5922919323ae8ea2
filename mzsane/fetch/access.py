"""How HTTP servers are reached: two connections a host, proxies of the environment, users of ~/.netrc."""

import netrc
import os
import urllib.request
from functools import lru_cache

import urllib3

from mzsane.errors import ConfigError

CONNECTIONS = 2  # a host, for all downloads of the process together


def open_pool(scheme: str, host: str) -> urllib3.PoolManager:
    """Return the connections to a host, through a proxy if `http_proxy` or `https_proxy` is set for it."""
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme)
    return _share_pool(proxy)


def authorise(host: str) -> dict[str, str]:
    """Return the headers with the user and password for a host that `~/.netrc` or the file at `NETRC` has, if any.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except FileNotFoundError:
        return {}
    except netrc.NetrcParseError as error:
        # Its own text may hold a password.
        raise ConfigError(
            f"{error.filename} cannot be read near line {error.lineno}: correct it, and let nobody else read it"
        ) from None
    return urllib3.make_headers(basic_auth=f"{found[0]}:{found[2]}") if found else {}


@lru_cache
def _share_pool(proxy: str | None) -> urllib3.PoolManager:
    if proxy:
        return urllib3.ProxyManager(proxy, maxsize=CONNECTIONS, block=True)
    return urllib3.PoolManager(maxsize=CONNECTIONS, block=True)
