"""What the path of a checkpoint tells: its model, its epoch, and which run it is of.

Checkpoints of one run are one model: a number after a word such as `epoch`, `step`, `iter` or `checkpoint` counts the
run's training, at the end of a name, within it, or as the name of a folder. Epochs are preferred to steps, and those to
the number of a checkpoint. `best`, `last` and their like are of the same run as the checkpoints beside them, but of no
known epoch: they stay models of their own, of one lineage.
"""

import re
from collections import defaultdict
from dataclasses import dataclass

_KINDS = (  # by how much they tell; the words before the number
    r"epoch|ep",
    r"(?:(?:global|train|training|optimizer)[-_ ]?)?step|iter|iteration|it|update|gs",
    r"checkpoint|chkpt|ckpt|ckp|chk|cpt?|snapshot|snap",
)
# With these before them, and in the plural, the words are settings of a run: lr_step_10, max_epoch=50, epochs=100.
_SETTINGS = "".join(
    f"(?<!{word}[-_ ])"
    for word in ("lr", "warmup", "num", "n", "max", "min", "total", "decay", "eval", "save", "log", "per")
)
_NUMBER = r"(?P<number>[0-9]{1,9})(?P<thousands>k)?(?:-v[0-9]+$)?"  # -v1: written again
_AFTER = r"(?![^\W_])"
_COUNTS = tuple(
    re.compile(rf"(?<![^\W\d_]){_SETTINGS}(?:{words})[-_=. #]*{_NUMBER}{_AFTER}", re.IGNORECASE) for words in _KINDS
)
_BARE_EPOCH = re.compile(rf"(?<![^\W_])(?<!\.)e{_NUMBER}{_AFTER}", re.IGNORECASE)  # e12, but not 1e12
_METRIC = re.compile(
    r"(?<![^\W\d_])(?:(?:train|val|valid|validation|test|dev)[-_ ]?)?(?:loss|acc|accuracy|top1|ppl|perplexity|f1|auc)"
    r"[-_=: ]*[0-9]+(?:\.[0-9]+)?(?![0-9])",
    re.IGNORECASE,
)
_KIND_OF_RUN = re.compile(
    r"(?<![^\W\d_])(?:best|last|latest|final|current|ema|swa|averaged?|init|initial)(?![^\W\d_])(?:-v[0-9]+)?",
    re.IGNORECASE,
)
_GENERIC = re.compile(
    r"(?:pytorch_|torch_|adapter_)?(?:model|net|network|weights?|checkpoints?|ckpts?|state(?:_dict)?|params)",
    re.IGNORECASE,
)
_FOLDER = re.compile(r"(?:checkpoints?|chkpts?|ckpts?|global[-_]?step)[-_=. ]*[0-9]{1,9}", re.IGNORECASE)
_SEPARATORS = "-_=. ,"
_LAST_NUMBER = re.compile(r"^(?P<before>.*?)(?P<number>[0-9]+)(?P<after>[^0-9]*)$", re.DOTALL)
_NO_EPOCH = re.compile(
    r"(?<![^\W\d_])(?:seed|run|trial|fold|rep|repeat|id|model|net|network|member|worker)[-_= ]*$", re.I
)


@dataclass(frozen=True)
class NameParts:
    """What a path tells: the model, its epoch if one is told, a step beside the epoch, and the model's lineage."""

    model: str
    epoch: int | None
    step: int | None
    lineage: str


def read_name(path: str) -> NameParts:
    """Read the path of a checkpoint, without its suffix."""
    folders = [part for part in path.split("/") if part not in ("", ".")]
    for place in range(len(folders) - 1, -1, -1):  # what is nearest to the file says most
        counts = _count(folders[place])
        if counts:
            rest = [*folders[:place], _cut(folders[place]), *folders[place + 1 :]]
            rest = [part for number, part in enumerate(rest) if part and (number == place or not _is_counter(part))]
            model = "/".join(rest)
            steps = [number for kind, number in counts if kind == 1]
            return NameParts(model or "model", counts[0][1], steps[0] if steps else None, _find_lineage(rest) or model)
    model = "/".join(folders)
    return NameParts(model, None, None, _find_lineage(folders) or model)


def _count(part: str) -> list[tuple[int, int]]:
    """Return the numbers that count training in a part of a path, with their kinds, what tells most first."""
    found = []
    for kind, pattern in enumerate(_COUNTS):
        found += [(kind, _to_number(match)) for match in pattern.finditer(part)]
    if not found:
        found = [(0, _to_number(match)) for match in _BARE_EPOCH.finditer(part)]
    return found


def _to_number(match: re.Match[str]) -> int:
    return int(match["number"]) * (1000 if match["thousands"] else 1)


def _cut(part: str) -> str:
    """Return a part of a path without what changes while a run is trained."""
    pieces = [part]
    for pattern in (*_COUNTS, *([] if any(each.search(part) for each in _COUNTS) else [_BARE_EPOCH]), _METRIC):
        pieces = [rest for piece in pieces for rest in _split(pattern, piece)]
    return "_".join(kept for piece in pieces if (kept := piece.strip(_SEPARATORS)))


def _split(pattern: re.Pattern[str], text: str) -> list[str]:
    ends = [0, *(place for match in pattern.finditer(text) for place in match.span()), len(text)]
    return [text[ends[i] : ends[i + 1]] for i in range(0, len(ends), 2)]


def _is_counter(folder: str) -> bool:
    return _FOLDER.fullmatch(folder) is not None


def _find_lineage(parts: list[str]) -> str:
    """Return what the best, the last and the other checkpoints of a run have in common."""
    kept = []
    for part in parts:
        pieces = [piece.strip(_SEPARATORS) for piece in _split(_KIND_OF_RUN, part)]
        kept.append("_".join(piece for piece in pieces if piece))
    while len(kept) > 1 and (not kept[-1] or _GENERIC.fullmatch(kept[-1])):
        kept.pop()
    return "/".join(part for part in kept if part)


def find_doubtful(models: list[str]) -> str | None:
    """Return what to say when models may be checkpoints of one run: several groups differ in their last number."""
    groups: dict[str, list[str]] = defaultdict(list)
    for model in models:
        match = _LAST_NUMBER.match(model)
        if match and not _NO_EPOCH.search(match["before"]):
            groups[f"{match['before']}#{match['after']}"].append(model)
    several = [group for group in groups.values() if len(group) > 1]
    if len(several) < 2:
        return None
    count = sum(map(len, several))
    folders = {group[0].rpartition("/")[0] for group in several}
    where = f"{len(several)} folders" if len(folders) == len(several) else f"{len(several)} groups"
    return (
        f"{count} models in {where} whose names differ in a number, such as {several[0][0]} and {several[0][1]}, are "
        "read as models of their own: if they are checkpoints of one run, set pattern"
    )
