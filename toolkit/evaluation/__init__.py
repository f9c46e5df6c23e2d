"""A model's predictions on a split: scores with intervals, tables, and words."""
