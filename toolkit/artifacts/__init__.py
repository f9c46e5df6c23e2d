"""What a run leaves behind: the run folder and the model folder in it."""
