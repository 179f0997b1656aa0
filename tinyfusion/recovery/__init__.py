"""What a recovery minimises."""
