"""Numerical methods on arrays: factorizations, rounding, sums, ranks, comparison. They know no op and no plan."""
