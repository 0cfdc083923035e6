"""Streams over Spark and Delta: declare, admit, run, summarise. No Dagster in here."""
