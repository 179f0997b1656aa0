"""How to turn noise into data: samplers, guidance, and many samples in batches."""
