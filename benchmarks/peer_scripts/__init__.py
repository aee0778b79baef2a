"""Scripts that run in the peers' environment, where the peers' own scripts cannot do what is asked.

They use the models, lengths and calls of the peers' scripts (``peerlib``) and import nothing of this project
but ``benchmarks.memory``. ``benchmarks.run`` starts them with the peers' folder in PYTHONPATH.
"""
