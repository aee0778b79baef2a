"""The cord on the labeling site over real HTTP."""

from __future__ import annotations

from services.labeling.accounts import Role
from tests.site import StartSite


def test_the_cord_on_the_site(start_site: StartSite) -> None:
    site = start_site()
    lara, rita = site.person("lara", Role.LABELER), site.person("rita", Role.RESEARCHER)
    assert "Nobody has touched it yet." in lara.get("/cord").text
    assert lara.submit("/cord/pull", {"reason": "  "}).status_code == 400
    done = lara.submit("/cord/pull", {"reason": "<script>alert(1)</script>"}, follow_redirects=True)
    assert "Training stops within one optimizer step. This is event 1." in done.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in done.text
    assert "<script>alert" not in done.text
    assert "Release the cord" not in done.text
    assert lara.submit("/cord/release", {"reason": "fine"}).status_code == 403
    assert "The cord is pulled" in rita.get("/account").text
    released = rita.submit("/cord/release", {"reason": "mended"}, follow_redirects=True)
    assert "Training goes on. This is event 2." in released.text
    assert rita.submit("/cord/release", {"reason": "again"}).status_code == 409


def test_a_double_click_pulls_once(start_site: StartSite) -> None:
    site = start_site()
    lara = site.person("lara", Role.LABELER)
    fields = {"csrf": lara.csrf_of("/cord"), "reason": "it rambles", "nonce": "n1"}
    for _ in range(2):
        assert lara.post("/cord/pull", data=fields).status_code == 303
    assert lara.get("/cord").text.count("<strong>Pulled</strong>") == 1
