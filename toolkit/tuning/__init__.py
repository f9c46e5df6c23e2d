"""Search for settings: what may vary, where to look next, who tries what, and what came of it."""
