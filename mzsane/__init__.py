"""mzsane: what should a model zoo be made of? Weight-space learning on zoos of mixed composition (MZ-SANE)."""

import os

__version__ = "0.1.0"

# Threads that wait for each other spin by default, and two processes that spin for the same cores are far slower.
# On quiet cores a short spin is faster: set GOMP_SPINCOUNT. Both count only when they are set before torch is loaded.
if "GOMP_SPINCOUNT" not in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
