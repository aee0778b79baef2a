"""Decides how the options are called that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from andon.cli.endpoints import HOME_VARIABLE, STORE_VARIABLE

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", envvar=HOME_VARIABLE, help="Folder of `andon up` (default ./andon-home).", show_envvar=True
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar=STORE_VARIABLE,
        help="The model store: a folder or s3://bucket/prefix (default: store in the home).",
        show_envvar=True,
    ),
]
PolicyTarget = Annotated[str | None, typer.Option("--policy-target", help="Address of the policy service.")]
ReferenceTarget = Annotated[
    str | None, typer.Option("--reference-target", help="Address of the reference service.")
]
RewardTarget = Annotated[str | None, typer.Option("--reward-target", help="Address of the reward service.")]
LabelingTarget = Annotated[
    str | None, typer.Option("--labeling-target", help="Address of the labeling service.")
]
TrainerTarget = Annotated[str | None, typer.Option("--trainer-target", help="Address of the trainer.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds a call may take.")]
