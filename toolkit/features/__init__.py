"""Images + frozen stages → pooled activations."""
