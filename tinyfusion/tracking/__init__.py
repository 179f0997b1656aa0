"""Where a job's numbers, figures and samples are logged."""
