"""Random faults against real processes, and an audit of what became of every task: `make chaos`."""
