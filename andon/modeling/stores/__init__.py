"""Where a model store keeps its bytes: a folder, or a bucket of S3.

* ``location``: how the place is written, ``andon-home/store`` or ``s3://bucket/prefix``
* ``files``: what ``store.ModelStore`` asks of a place
* ``folder``: a folder that all processes mount
* ``s3``, ``bucket``: the same layout as objects, with conditional writes in place of locks
* ``cache``: versions of a bucket on this machine's disk

Nothing is imported here: only processes with a store on S3 need its library.
"""
