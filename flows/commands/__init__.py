"""The command `mzsane`. What a command needs is imported when it runs: help, settings and the store need no torch."""
