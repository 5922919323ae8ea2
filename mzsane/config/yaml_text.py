"""YAML as people mean it: what is written twice is refused, and only what looks like a number is one.

YAML 1.1, which PyYAML reads, takes `010` for 8, `1:30` for 90, `no` for false and a date for no text. Here they stay
the text that was typed, and the setting decides what it is.
"""

import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

DEEPEST = 50  # levels; a config has about ten
_MOST_NODES = 100_000  # aliases counted as often as they are used
_LONGEST = 4 << 20  # bytes
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
_KEPT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class YamlTextError(ValueError):
    """A text is no YAML, or says something twice; with the place."""


def read_yaml(text: str | bytes) -> Any:
    """Return what a YAML text says; None if it says nothing.

    Raises:
        YamlTextError: it is no YAML, a key comes twice, or it is larger or nested deeper than any config.
    """
    if len(text) > _LONGEST:
        raise YamlTextError(f"it has {len(text):,} bytes, and a config has at most {_LONGEST:,}")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, {}, ())
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise YamlTextError(" ".join(str(error).split())) from None
    except RecursionError:
        raise YamlTextError(f"it is nested deeper than {DEEPEST} levels") from None
    except (ValueError, OverflowError) as error:  # of numbers of thousands of digits, or of explicit tags
        if isinstance(error, YamlTextError):
            raise
        raise YamlTextError(f"a value cannot be read: {' '.join(str(error).split())}") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise YamlTextError(f"it is nested deeper than {DEEPEST} levels{_locate(event)}")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[Any, Node] = {}
        for key, _ in node.value:  # before `<<` is merged, which may be overridden
            if isinstance(key, ScalarNode):
                said = self.construct_object(key) if key.tag not in _KEPT else key.value
                if said in first:
                    raise YamlTextError(
                        f"{str(said)[:80]!r} is there twice{_locate(key)}, and first{_locate(first[said])}: remove one"
                    )
                first[said] = key
        return super().construct_mapping(node, deep)


def _locate(where: Any) -> str:
    mark = where.start_mark
    return f" (line {mark.line + 1}, column {mark.column + 1})"


def _count_nodes(node: Node, counts: dict[int, int], above: tuple[int, ...]) -> int:
    """Count the values below a node, those behind aliases each time; a text of 200 letters can mean billions."""
    if id(node) in above:
        raise YamlTextError(f"a value holds itself{_locate(node)}")
    if id(node) not in counts:
        parts = [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else []
        parts += node.value if isinstance(node, SequenceNode) else []
        counts[id(node)] = 1 + sum(_count_nodes(part, counts, (*above, id(node))) for part in parts)
    if counts[id(node)] > _MOST_NODES or len(above) > DEEPEST:
        raise YamlTextError(f"it holds more than {_MOST_NODES:,} values{_locate(node)}: a config has a few hundred")
    return counts[id(node)]


def _set_resolvers() -> None:
    kept = {
        letter: [pair for pair in pairs if pair[0] in _KEPT]
        for letter, pairs in _Loader.yaml_implicit_resolvers.items()
    }
    _Loader.yaml_implicit_resolvers = kept
    for kind, pattern, letters in (
        ("int", _INTEGER, "-+0123456789"),
        ("float", _FLOAT, "-+.0123456789"),
        ("bool", _BOOLEAN, "tTfF"),
    ):
        _Loader.add_implicit_resolver(
            f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{pattern.pattern})$"), list(letters)
        )


_set_resolvers()
