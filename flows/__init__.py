"""Prefect flows: they compose tasks and do nothing else."""

import os

# Without a server of the user's, Prefect starts a temporary one: by default that reports to its makers, fills the
# terminal with traces where there is no internet, and is given up after 20 s, which a busy machine may need. It counts
# only when it is set before Prefect is loaded.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
