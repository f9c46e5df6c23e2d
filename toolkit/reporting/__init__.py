"""A run folder's tables, weights and images → pictures."""
