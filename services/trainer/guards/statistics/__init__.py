"""Statistics that guards decide by: pure, each a small value that a checkpoint can hold."""
