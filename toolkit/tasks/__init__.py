"""One file a verb; signatures import no torch, so that help is instant."""
