"""Typed settings and how they become objects."""
