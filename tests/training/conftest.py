"""Fixtures for the training room."""

from tests.training.tiny import one_thread

__all__ = ["one_thread"]
