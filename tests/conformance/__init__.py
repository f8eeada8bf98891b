"""CPython's own tests of multiprocessing.Pool, run against farpool: `make conformance`."""
