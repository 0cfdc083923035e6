"""The straightforward way: what a good first try with Dagster, Spark and Delta looks like. Kept as it is; not to be tuned."""
