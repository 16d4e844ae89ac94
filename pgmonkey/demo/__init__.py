"""The demonstration: `pgmonkey demo`, `make run`."""
