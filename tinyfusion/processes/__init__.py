"""Diffusion processes: noising, targets, training losses."""
