"""mzsane: what should a model zoo be made of? Weight-space learning on zoos of mixed composition (MZ-SANE)."""

import os

__version__ = "0.1.0"

# Threads that wait for each other spin for milliseconds by default, and two processes that spin for the same cores are
# many times slower; threads that sleep at once make the steps of a small backbone half as long again. A short spin is
# near the best of both. It counts only when it is set before torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# The same holds for the linear algebra of NumPy and scikit-learn, which probes use on small matrices: on two cores that
# two other processes kept busy, two threads took 76 and 131 s for an arm's probes, and one took 11 and 13 s.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
