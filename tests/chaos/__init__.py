"""Random faults against real processes, and an audit of every task afterwards: `make chaos`."""
