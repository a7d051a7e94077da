"""Data: a source is an indexable set of labelled pictures; one pipeline for all of them."""
