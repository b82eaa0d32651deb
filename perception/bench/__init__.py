"""``freespace bench``: speed that can be believed. How it measures and what its words mean: docs/benchmarks.md."""
