"""The rules of accounts: passwords, lifetimes, invitations, and how often a sign-in may fail."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.labeling.accounts import (
    ACCOUNT_LIMIT,
    ADDRESS_LIMIT,
    PAIR_LIMIT,
    FailureLimit,
    Failures,
    Role,
    after_failure,
    check_new_password,
    check_user_name,
    hash_secret,
    lifetime_us,
    may_invite,
    new_secret,
    normal_password,
    wait_us,
)
from services.labeling.errors import InvalidFieldError
from services.labeling.session_store import network_of

MINUTE_US = 60_000_000


@pytest.mark.parametrize(
    ("password", "is_good"),
    [
        ("123456789", False),
        ("1234567890", True),
        ("x1" + "y" * 198, True),
        ("x1" + "y" * 199, False),
        ("ann.of.the.hills", False),
        ("ANN.of.the.hills", False),
        ("aaaaaaaaaaaa", False),
        ("ﬁve ﬁngers", True),  # ligatures count as the letters that they stand for
        ("ﬁﬁﬁﬁﬁ", False),
        ("pässwörter", True),
        ("", False),
    ],
)
def test_new_passwords(password: str, is_good: bool) -> None:
    if is_good:
        check_new_password(password, name="ann.of.the.hills")
        return
    with pytest.raises(InvalidFieldError) as caught:
        check_new_password(password, name="ann.of.the.hills")
    assert (caught.value.reason, caught.value.field) == ("WEAK_PASSWORD", "password")


def test_a_password_is_the_same_however_the_keyboard_composed_it() -> None:
    composed = "pässwörter"
    decomposed = unicodedata.normalize("NFD", composed)
    assert decomposed != composed
    assert normal_password(decomposed) == normal_password(composed)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "x" * 201, "a\n", "<b>"])
def test_names_that_no_account_has(name: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        check_user_name(name)
    assert caught.value.field == "name"


def test_who_invites_whom() -> None:
    invites = {(inviter, invited) for inviter in Role for invited in Role if may_invite(inviter, invited)}
    assert invites == {(Role.ADMIN, invited) for invited in Role} | {(Role.RESEARCHER, Role.LABELER)}


def test_lifetimes() -> None:
    assert lifetime_us(None, default_us=7, max_us=90) == 7
    assert lifetime_us(90, default_us=7, max_us=90) == 90
    for wrong in (0, -1, 91):
        with pytest.raises(InvalidFieldError, match="lifetime"):
            lifetime_us(wrong, default_us=7, max_us=90)


def test_secrets_are_long_and_never_twice_the_same() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert {len(secret) for secret in made} == {43}  # 256 bits in base64
    assert hash_secret("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_wait_is_the_longest_of_those_that_hold() -> None:
    limit, other = FailureLimit(max_failures=2, window_us=100), FailureLimit(max_failures=5, window_us=100)
    one, two = Failures(num_failures=1, window_start_us=1000), Failures(num_failures=2, window_start_us=1030)
    assert wait_us([], now_us=1040) == 0
    assert wait_us([(None, limit)], now_us=1040) == 0
    assert wait_us([(one, limit)], now_us=1040) == 0
    assert wait_us([(two, limit)], now_us=1040) == 90
    assert wait_us([(two, other), (one, limit)], now_us=1040) == 0
    assert wait_us([(Failures(num_failures=9, window_start_us=1000), other), (two, limit)], now_us=1040) == 90
    assert wait_us([(two, limit)], now_us=1130) == 0


@given(st.lists(st.integers(min_value=0, max_value=20 * MINUTE_US), max_size=60), st.sampled_from([3, 10]))
def test_nobody_fails_more_often_in_a_window_than_is_allowed(pauses_us: list[int], max_failures: int) -> None:
    """A model of a guesser who tries whenever they may: in no window are there more than the limit."""
    limit = FailureLimit(max_failures=max_failures, window_us=15 * MINUTE_US)
    failures: Failures | None = None
    now_us, tried_us = 0, []
    for pause_us in pauses_us:
        now_us += pause_us
        if wait_us([(failures, limit)], now_us=now_us) > 0:
            continue
        failures = after_failure(failures, now_us=now_us)
        tried_us.append(now_us)
    for start_us in tried_us:
        # Windows begin with a failure and do not slide: two of them may meet in any span of one.
        within = sum(start_us <= moment < start_us + limit.window_us for moment in tried_us)
        assert within < 2 * max_failures


def test_the_limits_leave_room_for_an_office_and_none_for_guessing() -> None:
    assert PAIR_LIMIT.max_failures < ADDRESS_LIMIT.max_failures < ACCOUNT_LIMIT.max_failures
    # What is guessed in a year from one address at a password of 10 lower-case letters.
    per_year = PAIR_LIMIT.max_failures * (365 * 24 * 3600 * 1_000_000 // PAIR_LIMIT.window_us)
    assert per_year < 26**10 / 100_000_000


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::/64"),
        ("unix", "unix"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(address: str, network: str) -> None:
    assert network_of(address) == network
