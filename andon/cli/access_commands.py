"""``andon label invite``, ``users``, ``user`` and ``token``: who may use the labeling site and its RPCs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from andon.cli.endpoints import find_target
from andon.cli.options import HomeOption, LabelingTarget
from andon.cli.output import JsonFlag, messages, plain, print_json, print_table, results
from andon.cli.tokens import find_token
from andon.client.access import AccessClient
from andon.errors import InvalidArgumentError

DAY_S = 86_400.0

DaysOption = Annotated[
    float | None,
    typer.Option("--days", min=0.001, help="How long it can be used; the service's own default."),
]


class PersonRole(StrEnum):
    """What a person may do."""

    LABELER = "labeler"
    RESEARCHER = "researcher"
    ADMIN = "admin"


class TokenRole(StrEnum):
    """What the holder of a token may do."""

    LABELER = "labeler"
    RESEARCHER = "researcher"
    ADMIN = "admin"
    SERVICE = "service"


def register(app: typer.Typer) -> None:
    """Put the commands into ``andon label``."""
    app.command()(invite)
    app.command()(users)
    app.command("user")(change_user)
    app.command()(token)


def invite(
    role: Annotated[PersonRole, typer.Option("--role", help="What they will be.")] = PersonRole.LABELER,
    user: Annotated[
        str, typer.Option("--user", help="The account's name; they choose one when left out.")
    ] = "",
    days: DaysOption = None,
    labeling_target: LabelingTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a link with which one person opens an account on the labeling site."""
    with _client(labeling_target, home) as client:
        invitation = client.invite(role.value, user=user, lifetime_s=None if days is None else days * DAY_S)
    if as_json:
        print_json(invitation)
        return
    results().print(invitation.url, soft_wrap=True, highlight=False)
    messages().print(
        f"for one {role.value}, once, until {invitation.expire_time.astimezone():%Y-%m-%d %H:%M}; "
        "it is not shown again"
    )


def users(labeling_target: LabelingTarget = None, home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """List the accounts of the labeling site."""
    with _client(labeling_target, home) as client:
        found = list(client.users())
    if as_json:
        print_json(found)
        return
    print_table(
        None,
        ["user", "role", "state", "since"],
        [
            (
                user.user,
                user.role,
                "closed" if user.closed else "open",
                f"{user.create_time.astimezone():%Y-%m-%d}",
            )
            for user in found
        ],
    )


def change_user(
    user: Annotated[str, typer.Argument(help="Which account.")],
    role: Annotated[PersonRole | None, typer.Option("--role", help="The new role.")] = None,
    closed: Annotated[
        bool | None,
        typer.Option("--close/--open", help="Close the account, its sessions and tokens; or open it again."),
    ] = None,
    labeling_target: LabelingTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Change an account's role, or close or open it."""
    if role is None and closed is None:
        raise InvalidArgumentError("give --role, --close or --open", reason="EMPTY_REQUEST")
    with _client(labeling_target, home) as client:
        changed = client.update_user(user, role=None if role is None else role.value, closed=closed)
    if as_json:
        print_json(changed)
    else:
        state = "closed" if changed.closed else "open"
        results().print(f"{changed.user} is {changed.role}, {state}", highlight=False)


def token(
    name: Annotated[str, typer.Argument(help="Whose it is: for a labeler, the name of their answers.")],
    role: Annotated[TokenRole | None, typer.Option("--role", help="What its holder may do.")] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="End all tokens of this name.")] = False,
    days: DaysOption = None,
    labeling_target: LabelingTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a bearer token for a program and print it, once; or end those of a name."""
    if revoke == (role is not None):
        raise InvalidArgumentError("give either --role or --revoke", reason="EMPTY_REQUEST")
    with _client(labeling_target, home) as client:
        if role is None:
            count = client.revoke_tokens(name)
            if as_json:
                print_json({"name": name, "revoked": count})
            else:
                results().print(f"{count} ended; they stop working within 5 s")
            return
        issued = client.make_token(name, role=role.value, lifetime_s=None if days is None else days * DAY_S)
    if as_json:
        print_json(plain(issued))
        return
    results().print(issued.token, soft_wrap=True, highlight=False)
    messages().print(
        f"{role.value} {name}, until {issued.expire_time.astimezone():%Y-%m-%d}; it is not shown again. "
        "Programs take it from ANDON_TOKEN"
    )


def _client(labeling_target: str | None, home: Path | None) -> AccessClient:
    target = find_target("labeling", labeling_target, home=home)
    return AccessClient(target, token=find_token(target, home=home))
