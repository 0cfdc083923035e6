"""Other ways to the same flat table, `invoice_line_items`: the engine alone, and two single-node libraries."""
