"""Thin Prefect tasks: log, call mzsane, report, return a reference."""
