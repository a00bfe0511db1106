"""Benchmarks that check results before they time them: ``python -m torchadx.bench linear``, and ``memory``."""
