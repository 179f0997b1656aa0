"""Commands that take files and options, compose no configuration and make no run folder."""
