"""What every Andon server shares: configuration, set-up and drain, errors, metrics per call, the model
thread.

Imports no torch. Services build on it; ``andon.client`` uses ``errors`` and ``convert`` of it.
"""
