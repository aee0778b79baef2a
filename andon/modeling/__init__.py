"""Models: what a version is, where it lies, how it is loaded, and how sequences pass through it.

Without torch: ``versions`` (names), ``manifest`` and ``store`` (immutable versions, lineage, aliases),
``normalization`` (raw output to reward).

With torch: ``text`` (documents and summaries to token ids and back), ``loading`` (Hugging Face models in and
out), ``attention`` and ``sequences`` (many sequences in one row, without padding), ``forward``
(log-probabilities, values and scores of responses), ``weight_codec`` (weights as a checked stream of bytes).

Nothing is imported here, so that clients and the labeling service can use the first group without torch.
"""
