"""Accounts and invitations: researchers see them and invite labelers, admins change them."""

from __future__ import annotations

from starlette.responses import Response

from andon.errors import AndonError, FailedPreconditionError, NotFoundError
from services.labeling.accounts import MAX_NAME_CHARS, ROLES_OF_PEOPLE, Role, check_user_name, may_invite
from services.labeling.errors import InvalidFieldError, UserExistsError
from services.labeling.web.call import Call
from services.labeling.web.links import invitation_url
from services.labeling.web.pages import ADMINS, RESEARCHERS, PageTable
from services.labeling.web.problems import PageError

table = PageTable()

USERS_PER_PAGE = 100
_DAY_US = 86_400_000_000
_MAX_DAYS = 90
_ROLES = [role for role in Role if role in ROLES_OF_PEOPLE]


@table.get("/people", roles=RESEARCHERS, menu="People")
async def show_people(call: Call) -> Response:
    """Accounts and open invitations."""
    return await _people_page(call)


@table.post("/people/invite", roles=RESEARCHERS)
async def invite(call: Call) -> Response:
    """Make an invitation and show its link, this once."""
    site, inviter = call.site, call.user
    try:
        role = Role(call.form.choice("role", [role.value for role in _ROLES]))
        if not may_invite(inviter.role, role):
            raise PageError(403, "Researchers invite labelers; an admin invites everybody.")
        name = call.form.text("name", max_chars=MAX_NAME_CHARS)
        if name:
            check_user_name(name)
        days = call.form.integer("days", minimum=1, maximum=_MAX_DAYS)
        issued = await call.write(
            lambda: site.accounts.invite(
                role=role,
                user_name=name,
                created_by=inviter.name,
                wanted_lifetime_us=None if days is None else days * _DAY_US,
            )
        )
    except InvalidFieldError as error:
        return await _people_page(call, errors={error.field: error.problem}, status=400)
    except UserExistsError as error:
        return await _people_page(call, errors={"name": error.message}, status=409)
    return await _link_page(call, issued.secret, issued.expire_us, f"one {role.value}")


@table.post("/people/withdraw", roles=RESEARCHERS)
async def withdraw(call: Call) -> Response:
    """End an open invitation."""
    token_sha256 = call.form.text("invitation", max_chars=64)
    invitations = await call.read(call.site.accounts.open_invitations)
    found = next((entry for entry in invitations if entry.token_sha256 == token_sha256), None)
    if found is None:
        return call.redirect("/people")
    if not may_invite(call.user.role, found.role):
        raise PageError(403, "Researchers withdraw invitations of labelers only.")
    actor = call.user.name
    await call.write(lambda: call.site.accounts.withdraw_invitation(token_sha256, actor=actor))
    return call.redirect("/people")


@table.post("/people/change", roles=ADMINS)
async def change(call: Call) -> Response:
    """Change a role, or close or open an account."""
    name = call.form.text("user", max_chars=MAX_NAME_CHARS)
    role = call.form.choice("role", ["", *(role.value for role in _ROLES)])
    state = call.form.choice("state", ["", "open", "closed"])
    actor = call.user.name
    try:
        await call.write(
            lambda: call.site.accounts.update_user(
                name,
                role=Role(role) if role else None,
                is_closed=None if not state else state == "closed",
                actor=actor,
            )
        )
    except (NotFoundError, FailedPreconditionError) as error:
        return await _people_page(call, problem=_words(error), status=409)
    return call.redirect("/people")


@table.post("/people/password-link", roles=ADMINS)
async def password_link(call: Call) -> Response:
    """Make a link with which somebody chooses a new password, and show it, this once."""
    name, actor = call.form.text("user", max_chars=MAX_NAME_CHARS), call.user.name
    try:
        issued = await call.write(lambda: call.site.accounts.password_link(name, created_by=actor))
    except NotFoundError as error:
        return await _people_page(call, problem=_words(error), status=404)
    return await _link_page(call, issued.secret, issued.expire_us, f"{name}, who chooses a new password")


async def _people_page(
    call: Call, *, errors: dict[str, str] | None = None, problem: str = "", status: int = 200
) -> Response:
    after = call.query("after", max_chars=MAX_NAME_CHARS)
    accounts = call.site.accounts
    users = await call.read(lambda: accounts.list_users(after=after, limit=USERS_PER_PAGE + 1))
    invitations = await call.read(accounts.open_invitations)
    acts = await call.read(lambda: accounts.newest_acts(limit=20)) if call.user.role is Role.ADMIN else []
    return await call.render(
        "people.html",
        status=status,
        users=users[:USERS_PER_PAGE],
        next_after=users[USERS_PER_PAGE - 1].name if len(users) > USERS_PER_PAGE else "",
        after=after,
        invitations=invitations,
        acts=acts,
        roles=[role.value for role in _ROLES],
        invitable=[role.value for role in _ROLES if may_invite(call.user.role, role)],
        may_change=call.user.role in ADMINS,
        form={name: call.form.secret(name, max_chars=10_000) for name in ("name", "role", "days")},
        errors=errors or {},
        problem=problem,
    )


async def _link_page(call: Call, secret: str, expire_us: int, whom: str) -> Response:
    return await call.render(
        "invitation_link.html",
        url=invitation_url(call.site.site_url(), secret),
        expire_us=expire_us,
        whom=whom,
    )


def _words(error: AndonError) -> str:
    return f"{error.message[:1].upper()}{error.message[1:]}."
