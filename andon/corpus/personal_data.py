"""Finds personal data in text that has a form: e-mail addresses, phone numbers, IBANs, card numbers, IP
addresses.

Each kind is found by a pattern and then checked by what makes it one, so that numbers of other sorts stay:

    email         a local part and a domain with a top-level name of letters
    phone         ``phonenumbers``, the Python port of Google's libphonenumber, with its numbering plans;
                  numbers with + and a country code always, national ones for the regions asked for
    iban          the length that its country has, and the checksum (ISO 7064, mod 97)
    credit_card   the first digits and length of an issuer, and the checksum (Luhn)
    ip_address    a public address; two parts of an IPv4 address must have two digits or more, because
                  1.2.3.4 is more often a version or a section

Why these and no more: names, places and addresses need a language model. presidio-analyzer has one by spaCy,
whose models come from outside the package registry, weigh hundreds of megabytes and take names of authors and
places in every second news text for personal data; scrubadub's last release is of 2023. Both find the kinds
above by patterns like these. What has no form is for people: labelers flag it ("personal_data").

Used by the filter of ``andon data``. What was found is never logged: a Finding says where, not what.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from andon.errors import FailedPreconditionError, InvalidArgumentError

KINDS = ("email", "phone", "iban", "credit_card", "ip_address")

_EMAIL = re.compile(
    r"(?<![\w.%+-])[\w.%+-]{1,64}+@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[A-Za-z]{2,24}(?![\w-])"
)
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?=[ ]?[A-Z0-9])")
# In one piece or in the groups that are printed on cards: 4 4 4 1..7, or 4 6 4..5.
_CARD = re.compile(
    r"(?<![\w.,+-])(?:\d{4}([ -]?)\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -]?)\d{6}\2\d{4,5})(?![\w-]|[.,]\d)"
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:])")
_DIGIT = re.compile(r"\d")
_PHONE_LIKE = re.compile(r"\d(?:[^\w\n]{0,4}\d){6}")  # the shortest number of a numbering plan has 7 digits

# How long the IBANs of a country are (ISO 13616, registry of SWIFT).
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD",  # codespell:ignore fo
        19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC",
        32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip

# Which first digits an issuer's cards have, and how many digits (ISO/IEC 7812).
_ISSUERS = (
    (range(4000, 5000), (13, 16, 19)),  # Visa
    (range(5100, 5600), (16,)),  # Mastercard
    (range(2221, 2721), (16,)),
    (range(3400, 3500), (15,)),  # American Express
    (range(3700, 3800), (15,)),
    (range(6011, 6012), (16, 19)),  # Discover
    (range(6440, 6600), (16, 19)),
    (range(3000, 3060), (14,)),  # Diners Club
    (range(3600, 3700), (14,)),
    (range(3800, 3900), (14,)),
    (range(3528, 3590), (16,)),  # JCB
    (range(6200, 6300), (16, 17, 18, 19)),  # UnionPay
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Where personal data of a kind stands in a text."""

    kind: str  # of KINDS
    start: int
    end: int


class PersonalDataFinder:
    """Finds and masks personal data."""

    def __init__(self, phone_regions: Sequence[str] = ()) -> None:
        """``phone_regions`` are those whose national numbers count, for example "US" or "GB".

        Raises FailedPreconditionError when ``phonenumbers`` is not installed, and InvalidArgumentError for a
        region that it does not know.
        """
        try:
            import phonenumbers  # late: only this filter needs it
        except ImportError as error:
            raise FailedPreconditionError(
                "the personal data filter needs the package phonenumbers", reason="PACKAGE_MISSING"
            ) from error
        unknown = sorted(set(phone_regions) - set(phonenumbers.SUPPORTED_REGIONS))
        if unknown:
            raise InvalidArgumentError(
                f"no phone region {', '.join(unknown)}: they are named by two capital letters, such as US",
                reason="UNKNOWN_REGION",
            )
        self._phonenumbers = phonenumbers
        # Without a region only numbers with + and a country code are found.
        self._regions: tuple[str | None, ...] = tuple(phone_regions) or (None,)

    def find(self, text: str) -> list[Finding]:
        """All personal data of the text, from its beginning; findings do not overlap."""
        findings: list[Finding] = []
        taken = bytearray(len(text))  # 1 where something was found
        # A card number may look like a phone number: the kind with the stricter check has the first say.
        by_digits = (_find_ibans, _find_cards, _find_ip_addresses, self._find_phones)
        for found in (_find_emails, *(by_digits if _DIGIT.search(text) else ())):
            for finding in found(text):
                if not any(taken[finding.start : finding.end]):
                    taken[finding.start : finding.end] = b"\1" * (finding.end - finding.start)
                    findings.append(finding)
        return sorted(findings, key=lambda finding: finding.start)

    def _find_phones(self, text: str) -> Iterator[Finding]:
        if not _PHONE_LIKE.search(text):
            return  # the library takes a thousand times as long to say so
        for region in self._regions:
            for match in self._phonenumbers.PhoneNumberMatcher(text, region):
                yield Finding(kind="phone", start=match.start, end=match.end)


def masked(text: str, findings: Sequence[Finding]) -> str:
    """The text with each finding replaced by its kind in brackets."""
    parts: list[str] = []
    end = 0
    for finding in findings:
        parts += [text[end : finding.start], f"[{finding.kind}]"]
        end = finding.end
    return "".join([*parts, text[end:]])


def _find_emails(text: str) -> Iterator[Finding]:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        local = match.group().partition("@")[0]
        if not local.startswith(".") and not local.endswith(".") and ".." not in local:
            yield Finding(kind="email", start=match.start(), end=match.end())


def _find_ibans(text: str) -> Iterator[Finding]:
    for match in _IBAN_START.finditer(text):
        length = _IBAN_LENGTHS.get(match.group()[:2])
        if length is None:
            continue
        end = match.end()
        compact = match.group()
        while len(compact) < length and end < len(text):
            end += text[end] == " " and text[end + 1 : end + 2] != " "
            if end >= len(text) or not (text[end].isascii() and (text[end].isdigit() or text[end].isupper())):
                break
            compact += text[end]
            end += 1
        ends_here = not text[end : end + 1].isalnum()
        if len(compact) == length and ends_here and _iban_remainder(compact) == 1:
            yield Finding(kind="iban", start=match.start(), end=end)


def _iban_remainder(iban: str) -> int:
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97


def _find_cards(text: str) -> Iterator[Finding]:
    for match in _CARD.finditer(text):
        digits = match.group().replace(" ", "").replace("-", "")
        known = any(int(digits[:4]) in first and len(digits) in lengths for first, lengths in _ISSUERS)
        if known and _luhn_sum(digits) % 10 == 0:
            yield Finding(kind="credit_card", start=match.start(), end=match.end())


def _luhn_sum(digits: str) -> int:
    total = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        doubled = digit * 2 if place % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total


def _find_ip_addresses(text: str) -> Iterator[Finding]:
    for match in _IPV4.finditer(text):
        parts = match.group().split(".")
        if sum(len(part) > 1 for part in parts) >= 2 and _is_public(match.group()):
            yield Finding(kind="ip_address", start=match.start(), end=match.end())
    for match in _IPV6.finditer(text):
        if _is_public(match.group()):
            yield Finding(kind="ip_address", start=match.start(), end=match.end())


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
