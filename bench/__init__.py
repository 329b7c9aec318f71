"""Benchmarks of losses: `python -m bench`. One module per question, each with `cases(scale)`."""
