"""Addresses without their secrets: what of a URL may be printed, logged and stored, and what a config may hold.

`show_address` is for people. `store_address` is for manifests, databases and fingerprints: it adds a digest of what was
left out, as far as that tells one object from another. `hide_secrets` cleans any text, also that of libraries.

A user or password has no place in a config (`check_address` refuses it), as configs are kept and shown. A query may
hold a signature and is often all that there is, so it is taken and shown to nobody. Of a path only what looks like a
token can be told: what stands behind `token/` or `;`, `key=...`, long random names of mixed letters and digits. Digests
and revisions in hexadecimal are shown.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

HIDDEN = "***"
_DIGEST_KEY = "hidden-sha256"
_DIGITS = 32  # of a digest in hexadecimal
_LEAST_SECRET = 6  # characters: shorter values stand in too many other words
_LEAST_ID = 12  # of a key's name, which is no word
_STORED = re.compile(rf"{_DIGEST_KEY}=[0-9a-f]{{{_DIGITS}}}")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# fsspec's chain: `zip://member::https://host/file`, `simplecache::s3://bucket`; `[::1]` is none.
_CHAIN = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*(?:://|::|$))")
_HTTP = ("http", "https", "ftp", "ftps", "webdav", "webdavs", "dav", "davs")
# What stands before the @ is a name there: of a container, a repository, a file.
_NAMED = ("abfs", "abfss", "az", "adl", "wasb", "wasbs", "oci", "github", "git")
_PLAIN = ("file", "local", "memory", "dir", "zip", "tar", "libarchive", "simplecache", "filecache", "blockcache")
_SECRET_NAME = re.compile(
    r"(?:^|[_.-])(?:secret|token|password|passwd|passphrase|pwd|pass|api_?key|access_?key|key|credentials?|"
    r"auth(?:_string|orization)?|jwt|sig|signature|sas|bearer|hmac|hdnts|hdnea)s?$",
    re.IGNORECASE,
)
# Signatures of the object stores: by the parameter that tells them, what is renewed with them.
_SIGNATURES = (
    ("x-amz-signature", re.compile(r"x-amz-.*")),
    ("x-goog-signature", re.compile(r"x-goog-.*")),
    ("x-oss-signature", re.compile(r"x-oss-(?!process).*")),
    ("signature", re.compile(r"signature|expires|policy|key-pair-id|\w+accesskeyid|googleaccessid|.*security-token")),
    ("sig", re.compile(r"sig|s[vetprsi]|spr|sip|srt|sdd|ses|sk\w{1,3}|skoid|sktid")),
)
_TEXT_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>`|]+")
_TEXT_QUERY = re.compile(r"\?[\w.%\[\]-]+=[^\s'\"<>`]*")
_TEXT_USER = re.compile(r"[\w.%+~-]+:[^\s/@'\"]+@(?=[\w.\[-])")
_TEXT_HEADER = re.compile(
    r"(authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:bearer|basic|token)\s+)?[^\s'\",]+", re.IGNORECASE
)
_ADVICE = {
    "http": "put them in ~/.netrc, where they are read from",
    "https": "put them in ~/.netrc, where they are read from",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "s3a": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "hf": "set HF_TOKEN",
}
_hidden: set[str] = set()  # what this process has left out of addresses; libraries repeat it in words of their own


@dataclass(frozen=True)
class _Parts:
    """A URL taken apart: `shown` is fit for people, `secrets` are the values in it, `identity` tells objects apart."""

    scheme: str
    user: str
    shown: str
    query: str
    identity: str

    @property
    def hides(self) -> bool:
        return bool(self.query or self.identity)


def show_address(address: str) -> str:
    """Return an address as people may see it: without user, password, query, fragment and tokens.

    A path of this machine stays as it is.
    """
    return "::".join(part.shown if isinstance(part, _Parts) else part for part in _split_chain(address))


def store_address(address: str) -> str:
    """Return an address as it may be stored: shown, with a digest of what was left out if that may name an object.

    Addresses of different objects stay different. A renewed signature changes nothing where it is one of the object
    stores' (Amazon's, Google's, Azure's, CloudFront's, Alibaba's); of other queries nobody can tell a token from a
    name, so that a new one is a new address. What this returns is returned as it is.
    """
    stored = []
    for part in _split_chain(address):
        if not isinstance(part, _Parts):
            stored.append(part)
        elif _STORED.fullmatch(part.query):
            stored.append(f"{part.shown}?{part.query}")
        elif part.hides:
            digest = hashlib.sha256(part.identity.encode()).hexdigest()[:_DIGITS]
            stored.append(f"{part.shown}?{_DIGEST_KEY}={digest}")
        else:
            stored.append(part.shown)
    return "::".join(stored)


def check_address(address: str) -> str:
    """Return an address that a config may hold.

    Raises:
        ValueError: it has a user or password in it, or no user could have meant it; what it says shows no secret.
    """
    if any(ord(letter) < 32 for letter in address):
        raise ValueError("an address cannot hold line breaks or control characters")
    if mistyped := re.match(r"(https?|ftp|s3a?|hf|gs|file|sftp):(?!//)", address, re.IGNORECASE):
        raise ValueError(f"an address begins with {mistyped[1]}://, with two slashes")
    for part in _split_chain(address):
        if isinstance(part, _Parts) and part.user:
            name = re.sub(r"\W", "_", part.scheme.upper())
            advice = _ADVICE.get(part.scheme, f"set FSSPEC_{name}_USERNAME and FSSPEC_{name}_PASSWORD")
            raise ValueError(f"the {part.scheme} address holds a user or password: {advice}")
    return address


def check_openable(address: str) -> str:
    """Return an address that can be opened.

    Raises:
        ValueError: it is one of `store_address`, which has left out what is needed to open it.
    """
    if _STORED.search(address):
        raise ValueError(
            f"the query of {show_address(address)} is kept in no manifest and no database, because it may hold a "
            "secret: start the work by hand with the whole address, or use a source without a query"
        )
    return address


def split_query(address: str) -> tuple[str, str]:
    """Return an http(s) address in two: up to its query, and the query with its question mark; others whole."""
    if "::" in address or not address.lower().startswith(("http://", "https://")):
        return address, ""
    plain, mark, query = address.partition("#")[0].partition("?")
    return plain, mark + query


def split_user(address: str) -> tuple[str, str]:
    """Return the user and password that an address holds, as they stand in it, and the address without them."""
    found = _URL.fullmatch(address)
    user = _find_user(found[2]) if found else ""
    return user, f"{found[1]}://{found[2][len(user) + 1 :]}" if found and user else address


def hide_secrets(text: str) -> str:
    """Return a text, of ours or a library's, without the secrets of addresses and of the environment."""
    for secret in sorted(_hidden | _list_environment_secrets(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _TEXT_URL.sub(_show_match, text)
    text = _TEXT_QUERY.sub(f"?{HIDDEN}", text)
    text = _TEXT_USER.sub(f"{HIDDEN}@", text)
    return _TEXT_HEADER.sub(rf"\g<1>{HIDDEN}", text)


def _show_match(match: re.Match[str]) -> str:
    url = match[0].rstrip(".,;:)]}")
    return show_address(url) + match[0][len(url) :]


def _split_chain(address: str) -> list["_Parts | str"]:
    return [_take_apart(*found.groups()) if (found := _URL.fullmatch(part)) else part for part in _CHAIN.split(address)]


def _take_apart(scheme: str, rest: str) -> _Parts:
    known = scheme.lower()
    if known in _PLAIN:
        return _Parts(known, "", f"{scheme}://{rest}", "", "")
    user = "" if known in _NAMED else _find_user(rest)
    rest = rest[len(user) :].removeprefix("@") if user else rest
    if known in _HTTP:
        place, _, query = rest.partition("#")[0].partition("?")
        host, slash, path = place.partition("/")
        path, hidden = _hide_tokens(path)
        _remember(query, hidden)
        if user:
            _note(user.partition(":")[2] or user)
        identity = "&".join((*hidden, *_drop_signature(query))) if not _STORED.fullmatch(query) else ""
        return _Parts(known, user, f"{scheme}://{host}{slash}{path}", query, identity)
    place, _, query = rest.partition("?")
    if "=" not in query:  # object stores have question marks in names
        return _Parts(known, user, f"{scheme}://{rest}", "", "")
    _remember(query, [])
    return _Parts(known, user, f"{scheme}://{place}", query, "&".join(_drop_signature(query)))


def _find_user(rest: str) -> str:
    """Return what stands before the host, which people write with `/`, `?`, `#` and `@` in it as well."""
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    _, colon, port = authority.rpartition(":")
    odd = bool(colon) and not port.isdecimal() and not authority.startswith("[") and "@" in rest
    if "@" not in authority and not odd:
        return ""
    # A password may hold an @ of its own; without one, later ones belong to the path.
    return rest.rpartition("@")[0] if ":" in rest.partition("@")[0] else authority.rpartition("@")[0]


def _hide_tokens(path: str) -> tuple[str, list[str]]:
    """Return a path with what looks like a token hidden, and what that is."""
    shown, hidden = [], []
    before = ""
    for segment in path.split("/"):
        name, semicolon, _ = segment.partition(";")
        key, equals, _ = name.partition("=")
        secret = (
            (equals and _SECRET_NAME.search(key))
            or (_SECRET_NAME.search(before) and name and "." not in name)
            or _is_random(name, 10 if before == "s" else 20)
        )
        if secret or semicolon:
            hidden.append(segment)
        shown.append((HIDDEN if secret and name != HIDDEN else name) + (f";{HIDDEN}" if semicolon else ""))
        before = name.lower()
    # What was hidden before is not hidden again.
    return "/".join(shown), [part for part in hidden if HIDDEN not in part]


def _is_random(name: str, least: int) -> bool:
    """Tell whether a name has a run of letters and digits that changes between them as words do not."""
    for run in re.findall(rf"[A-Za-z0-9]{{{least},}}", name):
        changes = re.findall(r"(?<=[a-z])(?=[A-Z])|(?<=\d)(?=[A-Za-z])|(?<=[A-Za-z])(?=\d)", run)
        mixed = re.search(r"[a-z]", run) and re.search(r"[A-Z]", run) and re.search(r"\d", run)
        if mixed and len(changes) >= len(run) / 3:
            return True
    return False


def _drop_signature(query: str) -> list[str]:
    """Return the parameters of a query that a renewed signature does not change, sorted."""
    pairs = parse_qsl(query, keep_blank_values=True)
    names = {name.lower() for name, _ in pairs}
    for sign, renewed in _SIGNATURES:
        signed = sign in names and (sign != "sig" or "sv" in names)
        if signed and (sign != "signature" or any(name.endswith(("keyid", "accessid", "pair-id")) for name in names)):
            pairs = [pair for pair in pairs if not renewed.fullmatch(pair[0].lower())]
            return sorted(f"{name}={value}" for name, value in pairs)
    return sorted(f"{name}={value}" for name, value in pairs) or ([query] if query else [])


def _remember(query: str, hidden: list[str]) -> None:
    for name, value in parse_qsl(query):
        if _SECRET_NAME.search(name) or _is_random(value, 20):
            _note(value)
    for segment in hidden:
        _note(segment.rpartition("=")[2])


def _note(secret: str) -> None:
    _hidden.update(form for form in (secret, unquote(secret)) if len(form) >= _LEAST_SECRET)


def _list_environment_secrets() -> set[str]:
    """Return the values of the variables that hold secrets, and the passwords in those that hold addresses."""
    found = set()
    for name, value in os.environ.items():
        if "://" in value:
            show_address(value)  # notes what it leaves out
        elif value.startswith(("/", "~")):
            continue  # a file that holds one
        elif len(value) >= (_LEAST_ID if name.endswith("ACCESS_KEY_ID") else _LEAST_SECRET):
            found.update([value] if _SECRET_NAME.search(name.removesuffix("_ID")) else [])
    return found
