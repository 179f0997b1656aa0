"""Folders, locks, logs, progress and processes of running commands; knows no configuration."""
