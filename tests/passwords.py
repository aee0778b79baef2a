"""People of the labeling site who sign in with a password; its hash is a cheap one."""

import httpx
from argon2 import PasswordHasher

from services.labeling.accounts import Role
from tests.site import Person, SiteUnderTest

PASSWORD = "three unrelated words"
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def add_with_password(site: SiteUnderTest, name: str, role: Role = Role.LABELER) -> None:
    site.add_account(name, role, password_hash=CHEAP.hash(PASSWORD))


def sign_in(person: Person, name: str, password: str = PASSWORD, **fields: str) -> httpx.Response:
    return person.submit("/sign-in", {"name": name, "password": password, **fields}, page="/sign-in")
