"""Learned choice of blocks and the co-trained weight update."""
