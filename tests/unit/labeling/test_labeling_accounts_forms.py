"""Forms, CSRF tokens and local paths: what strangers may send, and what it becomes."""

from urllib.parse import urlencode, urljoin, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.labeling.accounts import new_secret
from services.labeling.errors import InvalidFieldError
from services.labeling.web.forms import Form, parse_form
from services.labeling.web.problems import PageError
from services.labeling.web.session import is_same_token, local_path, mask

TEXT = st.text(st.characters(exclude_characters="\x00\r", exclude_categories=["Cs"]))


@given(st.dictionaries(TEXT.filter(bool), st.lists(TEXT, min_size=1, max_size=3), max_size=5))
def test_what_a_browser_encodes_is_read_back(fields: dict[str, list[str]]) -> None:
    form = parse_form(urlencode(fields, doseq=True).encode())
    for name, values in fields.items():
        read = form.texts(name, max_chars=10_000, max_count=3)
        assert read == [value.strip() for value in values]


@given(st.binary(max_size=200))
@example(b"a=%C3%28")
@example(b"&&=&=")
@example(b"%")
@example(b"a=%00")
def test_no_body_does_more_than_be_refused(body: bytes) -> None:
    try:
        parse_form(body)
        status = 400
    except PageError as error:
        status = error.status
    assert status == 400


def test_line_ends_are_one_kind() -> None:
    assert parse_form(b"a=1%0D%0A2%0D3").text("a", max_chars=10) == "1\n2\n3"


@pytest.mark.parametrize("text", ["", "5", "-3", "007"])
def test_numbers(text: str) -> None:
    read = Form({"n": [text]}).integer("n", minimum=-5, maximum=7)
    assert read == (int(text) if text else None)


@pytest.mark.parametrize("text", ["8", "-6", "1.5", "1e3", "٣", "0x1", "1_0", "nan", "+1", "9" * 30])
def test_what_is_no_number_of_the_range(text: str) -> None:
    with pytest.raises(InvalidFieldError):
        Form({"n": [text]}).integer("n", minimum=-5, maximum=7)


@pytest.mark.parametrize("text", ["nan", "inf", "1e9", "٣.5", ".5", "1.", "--1", "11"])
def test_what_is_no_decimal_of_the_range(text: str) -> None:
    with pytest.raises(InvalidFieldError):
        Form({"n": [text]}).number("n", minimum=0.0, maximum=10.0)


def test_a_field_sent_twice_is_refused_where_one_is_wanted() -> None:
    form = Form({"a": ["1", "2"]})
    with pytest.raises(InvalidFieldError):
        form.text("a", max_chars=10)
    with pytest.raises(InvalidFieldError):
        form.secret("a", max_chars=10)
    with pytest.raises(InvalidFieldError):
        form.texts("a", max_chars=10, max_count=1)


def test_a_masked_token_is_the_token_and_no_other_is() -> None:
    token, other = new_secret(), new_secret()
    masked = mask(token)
    assert masked not in (token, mask(token))
    assert token not in masked
    for sent in (masked, token):
        assert is_same_token(sent, token)
        assert not is_same_token(sent, other)
    for wrong in ("", "x", masked[:-1], masked + "A", "=" * 43, "ä" * 43, "A" * 43, "A" * 86, token[:-1]):
        assert not is_same_token(wrong, token)


@given(st.text())
def test_no_text_is_taken_for_the_token(sent: str) -> None:
    assert not is_same_token(sent, new_secret())


@given(st.one_of(st.text(), st.text("/\\.:@?#%ahtps \t\n", max_size=30)))
@example("//evil.example")
@example("/\\evil.example")
@example("/\tevil")
@example("https:evil")
@example("/ok?x=//evil")
@example("/\x7f")
def test_a_local_path_never_leaves_the_site(target: str) -> None:
    kept = local_path(target)
    assert kept.startswith("/")
    assert urlsplit(urljoin("https://here.example/sign-in", kept)).netloc == "here.example"


@pytest.mark.parametrize("target", ["/", "/cord?done=pulled", "/work/1#x", "/a%20b"])
def test_paths_of_this_site_are_kept(target: str) -> None:
    assert local_path(target) == target
