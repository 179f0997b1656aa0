"""Networks whose blocks can be gated, scored and removed."""
