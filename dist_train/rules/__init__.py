"""What decides: arithmetic and small state machines, free of torch, clocks and I/O."""
