"""Names that wrappers put before and into those of tensors: data parallelism, compilation, averaging, frameworks."""

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

Shape = tuple[int, ...]
# Of torch.compile, of FSDP and of activation checkpointing: nobody else's modules are called so.
_SURE = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_MODULE = "module"  # of DataParallel and of averaged models
_COUNTER = "n_averaged"
_USUAL = _SURE | {_MODULE}
_ANY = _USUAL | {"model", "net", "network", "_model", "_net", "_module", "inner", "wrapped", "base_model"}
_PREFIXES = 64  # tried


def strip_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the names that are surely wrappers', wherever they stand, and `module.` where all names begin with it."""
    stripped = dict(tensors)
    if short := _shorten(stripped, _SURE):
        stripped = {name: stripped[theirs] for name, theirs in short.items()}
    averaged = {name: value for name, value in stripped.items() if name != _COUNTER}
    if len(averaged) < len(stripped) and all(name.startswith(f"{_MODULE}.") for name in averaged):
        stripped = averaged
    while stripped and all(name.startswith(f"{_MODULE}.") for name in stripped):
        stripped = {name.removeprefix(f"{_MODULE}."): value for name, value in stripped.items()}
    return stripped


def propose_names(names: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield what the tensors can be called without wrappers: the prefix that is left out, and new name -> old name.

    The names as they are come first, then without wrappers anywhere in them, then those below one common prefix each.
    """
    seen = set()
    whole = list(names)
    for parts in (frozenset[str](), _USUAL, _ANY):
        short = _shorten(whole, parts)
        if short is None or (key := frozenset(short.items())) in seen:
            continue
        seen.add(key)
        yield "", short
        for prefix in _list_prefixes(short):
            below = {name.removeprefix(prefix): theirs for name, theirs in short.items() if name.startswith(prefix)}
            if (key := frozenset(below.items())) not in seen:
                seen.add(key)
                yield prefix, below


def match_names(names: Iterable[str], needed: Iterable[str]) -> dict[str, str] | None:
    """Return needed name -> name where the two differ in wrappers alone; None where they differ in more."""
    wanted = list(needed)
    for _, short in propose_names(names):
        for parts in (frozenset[str](), _ANY):
            ours = _shorten(wanted, parts)
            if ours is not None and ours.keys() == short.keys():
                return {name: short[key] for key, name in ours.items()}
    return None


def shorten_all(names: Iterable[str]) -> dict[str, str] | None:
    """Return names without any wrapper -> names; None where two would be one."""
    return _shorten(names, _ANY)


def _shorten(names: Iterable[str], parts: frozenset[str]) -> dict[str, str] | None:
    """Return names without some of their parts -> names; None where two would be one."""
    short: dict[str, str] = {}
    for name in names:
        *modules, last = name.split(".")
        new = ".".join([*(part for part in modules if part not in parts), last])
        if new in short:
            return None
        short[new] = name
    return short


def _list_prefixes(names: Iterable[str]) -> list[str]:
    """Return the common beginnings of names, with a dot at the end, the shortest first."""
    prefixes: dict[str, int] = {}
    for name in names:
        parts = name.split(".")[:-1]
        for count in range(1, len(parts) + 1):
            prefixes.setdefault(".".join(parts[:count]) + ".", count)
    return sorted(prefixes, key=lambda prefix: prefixes[prefix])[:_PREFIXES]
