"""Figures from features."""
