"""What can be asked of a reading, and what is said about what makes no sense."""

import pytest

from mzsane.config.loading import validate_config
from mzsane.config.reading import MetricFilter, ReadConfig
from mzsane.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"epochs": [1], "epoch_range": [1, 2]}, "cannot both be set"),
        ({"epochs": [1, 1]}, "distinct"),
        ({"epochs": [-1]}, "not negative"),
        ({"epochs": []}, "at least 1"),
        ({"epoch_range": [5, 2]}, "first epoch"),
        ({"where": [{"metric": "test_accuracy"}]}, "minimum, maximum or both"),
        ({"where": [{"metric": "test_accuracy", "minimum": 2, "maximum": 1}]}, "cannot be more"),
        ({"where": [{"metric": "speed", "minimum": 2}]}, "speed"),
        ({"pattern": "(?P<model>"}, "not a regular expression"),
        ({"pattern": "a.*"}, "needs a group"),
        ({"pattern": "(?P<step>a)(?P<epoch>1)"}, "and no other"),
        ({"pattern": "(?P<epoch>1)", "format": "ray-tune"}, "no meaning"),
        ({"max_rejected": 1.5}, "less than or equal to 1"),
        ({"sources": "x"}, "unknown key"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        validate_config(ReadConfig, {"name": "zoo", "source": "folder", **settings}, "form")


def test_every_setting_says_what_it_is():
    for config in (ReadConfig, MetricFilter):
        assert all(field.description for field in config.model_fields.values())


def test_the_form_gets_no_one_of():
    assert "oneOf" not in str(ReadConfig.model_json_schema())


def test_epochs_and_range():
    common = {"name": "zoo", "source": "folder"}
    assert [e for e in range(5) if ReadConfig(**common).takes(e)] == [0, 1, 2, 3, 4]
    assert [e for e in range(5) if ReadConfig(**common, epochs=(0, 3)).takes(e)] == [0, 3]
    assert [e for e in range(5) if ReadConfig(**common, epoch_range=(0, 2)).takes(e)] == [0, 1, 2]
