"""Learn, cut, recover, sample and score, on plain objects: no configuration, no folder required."""
