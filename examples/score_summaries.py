"""Samples four summaries of a post and scores them. Needs the services: `andon up`, with models served."""

from andon.client.policy import PolicyClient, SamplingParameters
from andon.client.reward import RewardClient

post = "on monday my sister borrowed my piano because of the wedding . now i feel angry . should i complain ?"

with PolicyClient("127.0.0.1:50051") as policy, RewardClient("127.0.0.1:50053") as reward:
    result = policy.sample([post], SamplingParameters(samples_per_prompt=4, max_new_tokens=48, seed=7))
    summaries = [sample.text for sample in result.results[0].samples]
    scores = reward.score([(post, summaries)])
    for summary, score in zip(summaries, scores.items[0], strict=True):
        print(f"{score.score:6.2f}  {summary}    (by {result.model}, judged by {scores.model})")
