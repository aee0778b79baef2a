"""Peer: the most memory that one update of TRL's PPOTrainer takes above its four models' weights.

Runs ``peer_trl_ppo.py``'s own function.
"""

from __future__ import annotations

import peer_trl_ppo
import peerlib
import trl.experimental.ppo.ppo_trainer  # noqa: F401 - so that importing it does not count

from benchmarks.memory import peak_bytes, reset_peak, resident_bytes, settle

MODELS = 2 * [peerlib.lm] + 2 * [peerlib.rm]  # policy and reference, reward and value


def main() -> None:
    """Measure and print."""
    arguments = peer_trl_ppo.a.parse_args()
    weights = 0
    for make in MODELS:
        model = make(arguments.model)
        weights += sum(parameter.nbytes for parameter in model.parameters())
        del model
    settle()
    before = resident_bytes()
    reset_peak()
    facts = peer_trl_ppo.main(arguments)
    over = peak_bytes() - before - weights
    peerlib.emit(**{**facts, "bench": "trl_ppo_memory", "weights_bytes": weights, "over_weights_bytes": over})


if __name__ == "__main__":
    main()
