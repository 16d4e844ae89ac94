"""The benchmarks: `make bench`. Figures are ratios to an alternative measured in the same run."""
