"""One file per command: configuration in, a call of the pipeline, files out."""
