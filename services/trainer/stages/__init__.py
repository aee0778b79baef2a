"""The kinds of training, one module each, and the context they run in."""
