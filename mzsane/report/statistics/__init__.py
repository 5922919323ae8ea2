"""Effects, duels, intervals: what a comparison says and how sure it is."""
