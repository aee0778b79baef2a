"""Measures policies: win rates with intervals, overlap with references and sources, and the report.

``andon evaluate`` and ``andon demo`` call this with texts and scores that the services gave; nothing here
talks to a service or needs torch.
"""
