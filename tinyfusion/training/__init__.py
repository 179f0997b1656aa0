"""Training: LightningModules, averages, schedules, settings, and the published recipes."""
