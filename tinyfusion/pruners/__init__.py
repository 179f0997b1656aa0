"""Ways of choosing the blocks that stay."""
