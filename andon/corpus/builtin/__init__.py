"""The built-in corpus: simulated posts with known facts, an exact gold judge and simulated labelers."""
