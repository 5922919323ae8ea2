"""mzsane: what should a model zoo be made of? Weight-space learning on zoos of mixed composition (MZ-SANE)."""

import os

__version__ = "0.1.0"

# Threads that wait for each other spin by default, and two processes that spin for the same cores are ten times slower.
# It counts only when it is set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
