"""Everybody who is measured: each gives the same work to a loop in the main process."""
