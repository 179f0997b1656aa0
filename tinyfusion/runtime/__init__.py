"""Folders, locks, logs and processes of running commands; knows no configuration."""
