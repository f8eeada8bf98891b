"""A coverage-guided fuzzer of what reads bytes from Redis or a pipe: `python -m tests.fuzz`."""
