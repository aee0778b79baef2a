"""Signing in and out, and opening an account with an invitation."""

from __future__ import annotations

from starlette.responses import Response

from services.labeling.account_store import Invitation
from services.labeling.accounts import MAX_NAME_CHARS, MAX_PASSWORD_CHARS, check_new_password, check_user_name
from services.labeling.errors import (
    InvalidFieldError,
    InvitationNotFoundError,
    SignInRefusedError,
    TooManyFailuresError,
    UserExistsError,
)
from services.labeling.web.call import Call
from services.labeling.web.pages import ALL_PEOPLE, PUBLIC, PageTable
from services.labeling.web.problems import PageError
from services.labeling.web.session import MAX_NEXT_CHARS, local_path

table = PageTable()

# Longer than a password may be, so that one that is too long is refused as such.
READ_PASSWORD_CHARS = 4 * MAX_PASSWORD_CHARS


@table.get("/", roles=ALL_PEOPLE)
async def go_home(call: Call) -> Response:
    """Send people to where they work."""
    return call.redirect(call.site.home_pages.get(call.user.role, "/cord"))


@table.get("/sign-in", roles=PUBLIC)
async def show_sign_in(call: Call) -> Response:
    """The form; whoever is signed in already goes on."""
    target = local_path(call.request.query_params.get("next", "/"))
    if call.session is not None:
        return call.redirect(target)
    return await _sign_in_page(call, target=target)


@table.post("/sign-in", roles=PUBLIC)
async def sign_in(call: Call) -> Response:
    """Compare name and password, and begin a session."""
    name = call.form.text("name", max_chars=READ_PASSWORD_CHARS)
    password = call.form.secret("password", max_chars=READ_PASSWORD_CHARS)
    target = local_path(call.form.text("next", max_chars=MAX_NEXT_CHARS))
    site, address = call.site, call.client_address
    try:
        await call.write(lambda: site.sessions.count_attempt(name, address=address))
        credentials = await call.read(lambda: site.accounts.find_credentials(name))
        kept_hash = None if credentials is None else credentials.password_hash
        check = await site.passwords.check(password, kept_hash)
        if credentials is None or not check.is_right:
            raise SignInRefusedError()
    except TooManyFailuresError as error:
        site.site_metrics.sign_ins.labels("limited").inc()
        return await _sign_in_page(
            call,
            target=target,
            name=name,
            problem=f"Too many attempts failed. Wait {_minutes(error.retry_after_s)}, then try again.",
            status=429,
            retry_after_s=error.retry_after_s,
        )
    except SignInRefusedError as error:
        site.site_metrics.sign_ins.labels("refused").inc()
        problem = f"{error.message[0].upper()}{error.message[1:]}."
        return await _sign_in_page(call, target=target, name=name, problem=problem, status=401)
    new_hash = check.new_hash
    if new_hash is not None:
        await call.write(lambda: site.accounts.keep_password(name, new_hash))
    await call.write(lambda: site.sessions.forgive(name, address=address))
    site.site_metrics.sign_ins.labels("accepted").inc()
    return await begin_session(call, name, target=target)


@table.post("/sign-out", roles=ALL_PEOPLE)
async def sign_out(call: Call) -> Response:
    """End the session here, and let the browser forget its cookie."""
    token = call.cookies.read_secret(call.request, call.cookies.session)
    if token is not None:
        await call.write(lambda: call.site.sessions.end(token))
    response = call.redirect("/sign-in")
    call.cookies.delete(response, call.cookies.session)
    # Whatever the browser kept of the person's pages goes too.
    response.headers["Clear-Site-Data"] = '"cache", "storage"'
    return response


@table.get("/invitation/{token}", roles=PUBLIC)
async def show_invitation(call: Call) -> Response:
    """Ask for a name, where none is given, and for a password."""
    return await _invitation_page(call)


@table.post("/invitation/{token}", roles=PUBLIC)
async def accept_invitation(call: Call) -> Response:
    """Open the account and begin its first session."""
    site, token = call.site, call.path("token")
    invitation = await _find_invitation(call)
    try:
        name = invitation.user_name or call.form.text("name", max_chars=MAX_NAME_CHARS)
        check_user_name(name)
        password = call.form.secret("password", max_chars=READ_PASSWORD_CHARS)
        check_new_password(password, name=name)
        if password != call.form.secret("password_again", max_chars=READ_PASSWORD_CHARS):
            raise InvalidFieldError("is not the same password", reason="INVALID_FORM", field="password_again")
        password_hash = await site.passwords.hash(password)
        await call.write(
            lambda: site.accounts.accept_invitation(token, name=name, password_hash=password_hash)
        )
    except InvalidFieldError as error:
        return await _invitation_page(call, errors={error.field: error.problem}, status=400)
    except UserExistsError as error:
        return await _invitation_page(call, errors={"name": f"{error.message}; choose another"}, status=409)
    return await begin_session(call, name, target="/")


async def begin_session(call: Call, name: str, *, target: str) -> Response:
    """Start a session under a new token and go on; what the browser had before is ended."""
    site = call.site
    ended = call.cookies.read_secret(call.request, call.cookies.session)
    token = await call.write(lambda: site.sessions.begin(name, ended_token=ended))
    response = call.redirect(target)
    call.cookies.set(response, call.cookies.session, token, max_age_s=round(site.config.session_hours * 3600))
    call.cookies.delete(response, call.cookies.form)
    return response


async def _sign_in_page(
    call: Call,
    *,
    target: str,
    name: str = "",
    problem: str = "",
    status: int = 200,
    retry_after_s: int | None = None,
) -> Response:
    return await call.render(
        "sign_in.html",
        status=status,
        headers={} if retry_after_s is None else {"Retry-After": str(retry_after_s)},
        name=name[:MAX_NAME_CHARS],
        next=target,
        problem=problem,
        elsewhere=call.site.config.oidc_issuer is not None,
    )


async def _invitation_page(
    call: Call, *, errors: dict[str, str] | None = None, status: int = 200
) -> Response:
    invitation = await _find_invitation(call)
    return await call.render(
        "invitation.html",
        status=status,
        invitation=invitation,
        name=invitation.user_name or call.form.secret("name", max_chars=10_000)[:MAX_NAME_CHARS],
        errors=errors or {},
    )


async def _find_invitation(call: Call) -> Invitation:
    site, token = call.site, call.path("token")
    try:
        return await call.read(lambda: site.accounts.find_invitation(token))
    except InvitationNotFoundError as error:
        await call.write(lambda: site.sessions.count_wrong_link(address=call.client_address))
        raise PageError(404, "This invitation is not valid, or not any more. Ask for a new one.") from error


def _minutes(seconds: int) -> str:
    minutes = -(-seconds // 60)
    return "a minute" if minutes == 1 else f"{minutes} minutes"
