"""What the notes claim, tried out: each file one experiment, `run(seed)` → Finding, whether it is borne out or not.

Everything is small, made of `toolkit.reference` and data that is at hand, and the same for the same seed.
"""
