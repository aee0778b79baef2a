"""The statistics of labeling quality: whether to believe the answers, and whom to talk to.

Pure functions over plain values: no database, no protocol, no clock, no numpy. Callers turn stored answers
into :class:`~services.labeling.quality.records.JudgedAnswer` and read a
:class:`~services.labeling.quality.report.QualityReport`. Nothing here drops an answer or refuses a labeler;
dropping weak labels did not help the reward model of Stiennon et al. (2020), so figures only inform.
"""
