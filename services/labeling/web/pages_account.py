"""What people change about their own account, and the tokens that admins give to programs."""

from __future__ import annotations

from starlette.responses import Response

from services.labeling.accounts import MAX_NAME_CHARS, Role, check_new_password
from services.labeling.errors import InvalidFieldError, TokenNotFoundError
from services.labeling.web.call import Call
from services.labeling.web.pages import ADMINS, ALL_PEOPLE, PageTable
from services.labeling.web.pages_access import READ_PASSWORD_CHARS, begin_session

table = PageTable()

_DAY_US = 86_400_000_000
_MAX_DAYS = 3650


@table.get("/account", roles=ALL_PEOPLE)
async def show_account(call: Call) -> Response:
    """The form for a new password."""
    return await _account_page(call, done=call.query("done", max_chars=20) == "password")


@table.post("/account/password", roles=ALL_PEOPLE)
async def change_password(call: Call) -> Response:
    """Compare the old password, keep the new one, and end all other sessions."""
    site, name = call.site, call.user.name
    old = call.form.secret("old", max_chars=READ_PASSWORD_CHARS)
    new = call.form.secret("password", max_chars=READ_PASSWORD_CHARS)
    try:
        check_new_password(new, name=name)
        if new != call.form.secret("password_again", max_chars=READ_PASSWORD_CHARS):
            raise InvalidFieldError("is not the same password", reason="INVALID_FORM", field="password_again")
    except InvalidFieldError as error:
        return await _account_page(call, errors={error.field: error.problem}, status=400)
    # Counted like a sign-in: a borrowed session must not be a way to guess.
    await call.write(lambda: site.sessions.count_attempt(name, address=call.client_address))
    credentials = await call.read(lambda: site.accounts.find_credentials(name))
    check = await site.passwords.check(old, None if credentials is None else credentials.password_hash)
    if not check.is_right:
        return await _account_page(call, errors={"old": "is wrong"}, status=400)
    await call.write(lambda: site.sessions.forgive(name, address=call.client_address))
    password_hash = await site.passwords.hash(new)
    await call.write(lambda: site.accounts.change_password(name, password_hash))
    return await begin_session(call, name, target="/account?done=password")


@table.get("/tokens", roles=ADMINS, menu="Tokens")
async def show_tokens(call: Call) -> Response:
    """Tokens that are still good, and the form for a new one."""
    return await _tokens_page(call)


@table.post("/tokens/make", roles=ADMINS)
async def make_token(call: Call) -> Response:
    """Make a token and show it, this once."""
    tokens, actor = call.site.tokens, call.user.name
    try:
        name = call.form.text("name", max_chars=MAX_NAME_CHARS)
        role = Role(call.form.choice("role", list(Role)))
        days = call.form.integer("days", minimum=1, maximum=_MAX_DAYS)
        issued = await call.write(
            lambda: tokens.make(
                name=name,
                role=role,
                created_by=actor,
                wanted_lifetime_us=None if days is None else days * _DAY_US,
            )
        )
    except InvalidFieldError as error:
        return await _tokens_page(call, errors={error.field: error.problem}, status=400)
    return await call.render(
        "token_made.html", token=issued.secret, expire_us=issued.expire_us, name=name, role=role.value
    )


@table.post("/tokens/revoke", roles=ADMINS)
async def revoke_tokens(call: Call) -> Response:
    """End all tokens of a name."""
    name, actor = call.form.text("name", max_chars=MAX_NAME_CHARS), call.user.name
    try:
        await call.write(lambda: call.site.tokens.revoke_all(name, actor=actor))
    except TokenNotFoundError:
        return await _tokens_page(call, problem="There is no token of this name any more.", status=404)
    return call.redirect("/tokens")


async def _account_page(
    call: Call, *, errors: dict[str, str] | None = None, done: bool = False, status: int = 200
) -> Response:
    return await call.render("account.html", status=status, errors=errors or {}, done=done)


async def _tokens_page(
    call: Call, *, errors: dict[str, str] | None = None, problem: str = "", status: int = 200
) -> Response:
    tokens = await call.read(call.site.tokens.good)
    return await call.render(
        "tokens.html",
        status=status,
        tokens=tokens,
        roles=list(Role),
        form={name: call.form.secret(name, max_chars=10_000) for name in ("name", "role", "days")},
        errors=errors or {},
        problem=problem,
    )
