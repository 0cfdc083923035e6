"""What there is: one declaration a table, in the order in which data flows (bronze, silver; texts beside them)."""
