"""YAML as people write it: keys that come twice, numbers that are none, texts that would never end."""

import pytest

from flows.presets import load_zoo_preset
from mzsane.config.yaml_text import YamlTextError, read_yaml
from mzsane.errors import ConfigError

BASE = "name: a\nimages: {source: digits}\nmodels: 4\nepochs: 2\nkeep_epochs: 1\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 1\nmodels: 2\nseed: 1\n", "line 3, column 1), and first (line 1"),
        ("zoo:\n  images:\n    source: a\n    source: b\n", "line 4, column 5), and first (line 3"),
        ("zoos:\n- name: a\n- name: b\n  seed: 1\n  name: c\n", "line 5"),
        ("images: {source: a, size: 3, source: b}\n", "line 1"),
        ('seed: 1\n"seed": 2\n', "line 2"),
        ("1: a\n0x1: b\n", "line 2"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}\n", "line 2"),
        ("a: !!set {x, x}\n", "line 1"),
    ],
)
def test_a_key_that_comes_twice_is_refused_with_its_line(text: str, line: str) -> None:
    with pytest.raises(YamlTextError, match="is there twice") as caught:
        read_yaml(text)
    assert line in str(caught.value)


def test_what_is_merged_may_be_overridden() -> None:
    assert read_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("010", "010"),
        ("-08", "-08"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("190:20:30", "190:20:30"),
        ("no", "no"),
        ("Off", "Off"),
        ("y", "y"),
        ("2024-01-01", "2024-01-01"),
        ("2024-13-45", "2024-13-45"),
        ("0", 0),
        ("-12", -12),
        ("1_000", 1000),
        ("0x1F", 31),
        ("1.5", 1.5),
        (".5e-3", 0.0005),
        ("true", True),
        ("~", None),
        ("null", None),
        ("'3'", "3"),
    ],
)
def test_values_are_what_was_typed(typed: str, meant: object) -> None:
    assert read_yaml(f"a: {typed}") == {"a": meant}


@pytest.mark.parametrize(
    "text", ["[" * 5000, "{a: " * 3000 + "1", "- " * 4000 + "1", "? " * 3000, "a: &a [*a]", "&a {b: {c: *a}}"]
)
def test_deep_and_endless_texts_are_refused(text: str) -> None:
    with pytest.raises(YamlTextError, match=r"nested deeper|holds itself"):
        read_yaml(text)


def test_aliases_that_mean_billions_are_refused() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(YamlTextError, match="more than 100,000 values"):
        read_yaml("\n".join(lines))


@pytest.mark.parametrize(
    "text", ["a: " + "9" * 5000, "a: !!int x", "a: !!timestamp 2024-13-45", "a: !!float x", "a: \x00"]
)
def test_values_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(YamlTextError):
        read_yaml(text)


class TestZooPreset:
    def load(self, tmp_path, text: str | bytes, *overrides: str):
        path = tmp_path / "zoo.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_zoo_preset(str(path), overrides)

    def refuse(self, tmp_path, text: str, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            self.load(tmp_path, text, *overrides)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
        return str(caught.value)

    def test_as_users_mean_them(self, tmp_path):
        assert self.load(tmp_path, BASE + "seed: 010\n").seed == 10
        assert self.load(tmp_path, BASE.replace("name: a", "name: 2024-01-01")).name == "2024-01-01"
        assert self.load(tmp_path, BASE.replace("name: a", "name: no")).name == "no"
        assert self.load(tmp_path, BASE.encode("utf-16")).models == 4
        assert "'1:30'" in self.refuse(tmp_path, BASE + "seed: 1:30\n")
        assert "put it in quotes" in self.refuse(tmp_path, BASE.replace("name: a", "name: 1.10"))

    def test_empty_files_say_so(self, tmp_path):
        for text in ("", "# nothing\n", "---\n", "  \n\n"):
            assert "is empty" in self.refuse(tmp_path, text, "models=3")

    def test_overrides_that_undo_others_are_refused(self, tmp_path):
        for first, second in (("models=8", "models=9"), ("images.source=digits", "images={source: digits}")):
            assert "undoes" in self.refuse(tmp_path, BASE, first, second)
        zoo = self.load(tmp_path, BASE, "images={source: digits}", "images.split_seed=3", "models=8")
        assert (zoo.images.split_seed, zoo.models) == (3, 8)
        assert "is there twice" in self.refuse(tmp_path, BASE, "images={source: digits, source: glyphs}")

    def test_deep_overrides_are_refused(self, tmp_path):
        assert "nested deeper" in self.refuse(tmp_path, BASE, "models=" + "[" * 5000)
        assert "nested deeper" in self.refuse(tmp_path, BASE, ".".join(["a"] * 5000) + "=1")

    def test_endless_files_are_refused(self, tmp_path):
        for path in ("/dev/zero", "/dev/null", str(tmp_path)):
            with pytest.raises(ConfigError):
                load_zoo_preset(path if path.startswith("/dev") else f"{path}/.yaml", [])
