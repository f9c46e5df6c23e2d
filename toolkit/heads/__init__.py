"""Instant classifiers on pooled features."""
