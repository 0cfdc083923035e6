"""Retail invoices, as they land, into tables people can query."""
