"""Benchmarks: one module per question, each with `run(quick) -> list of rows`."""
