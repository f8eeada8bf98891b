"""A coverage-guided fuzzer for all code that reads bytes from Redis or a pipe."""
