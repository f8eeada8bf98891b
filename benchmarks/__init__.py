"""Measures farpool on this machine: `python -m benchmarks`, or `make bench`."""
