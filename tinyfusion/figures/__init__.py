"""Pictures and tables, each drawn from plain arrays and numbers."""
