"""Where samples come from: the built-in engine, or an inference server over HTTP.

``backend`` states what a backend is and what it can do; ``builtin`` is the engine of this package; ``remote``
asks a server through ``tgi`` or ``openai_server``, after ``probe`` has found out what its numbers mean.
"""
