"""Models: what a version is, where it lies, how it is loaded, and how sequences pass through it.

Without torch:

* ``versions``: names of models, ``policy/12`` and ``policy@stable``
* ``manifest``, ``store``: immutable versions with lineage, movable aliases, numbers reserved by runs
* ``stores``: a store's bytes in a folder or in a bucket of S3
* ``normalization``: from a reward model's raw output to the reward

With torch:

* ``text``: documents and summaries to token ids and back
* ``loading``: Hugging Face models in and out; ``architecture_check`` tries each before it is used
* ``attention``, ``sequences``: many sequences in one row without padding, a prompt once for all responses
* ``batches``: large requests cut to a budget of tokens, results back in order
* ``forward``: log-probabilities, entropies, values and scores of responses
* ``weight_codec``: what the bytes of weights are, how they are named and checked
* ``weight_image``, ``weight_delta``, ``shared_memory``: weights on their way to samplers

A scorer reads::

    scorer, codec = load_scorer(folder), TextCodec.load(folder)
    group = PromptGroup(codec.encode_document(post), [codec.encode_summary(text) for text in summaries])
    scores = final_scores(scorer, pack([group]))

Nothing is imported here, so that clients and the labeling service can use the first group without torch.
"""
