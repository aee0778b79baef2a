"""What a run leaves in the store that took numbers of a family: which ones, and what they are made from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from andon.errors import DataLossError
from andon.modeling.manifest import Lineage, lineage_from_dict, lineage_to_dict


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Numbers of one run."""

    run_id: str
    numbers: range
    lineage: Lineage

    def to_json(self) -> bytes:
        """As the store keeps it."""
        values = {
            "run_id": self.run_id,
            "first": self.numbers.start,
            "count": len(self.numbers),
            **lineage_to_dict(self.lineage),
        }
        return json.dumps(values, indent=2).encode()


def read_reservation(text: bytes) -> Reservation:
    """Reads what ``to_json`` wrote. Raises DataLossError RESERVATION_DAMAGED."""
    try:
        values: dict[str, Any] = json.loads(text)  # Any: JSON
        return Reservation(
            run_id=values["run_id"],
            numbers=range(values["first"], values["first"] + values["count"]),
            lineage=lineage_from_dict(values),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataLossError(f"a reservation is damaged: {error!r}", reason="RESERVATION_DAMAGED") from error
