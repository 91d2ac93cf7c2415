"""One worker's matter: its state, the two halves of its step, its data, its checkpoints."""
