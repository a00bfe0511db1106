"""Recordings by torch's profiler, and who was at work at each moment of one."""
