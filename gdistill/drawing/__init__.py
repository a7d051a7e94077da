"""Finished rounds at work."""
