"""mzsane: what should a model zoo be made of? Weight-space learning on zoos of mixed composition (MZ-SANE)."""

__version__ = "0.1.0"
