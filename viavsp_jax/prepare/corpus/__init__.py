"""Corpora as people have them: each layout has a file that reads it into the same entries."""
