"""Benchmarks that check results before they time them: ``python -m torchadx.bench``, and a command."""
