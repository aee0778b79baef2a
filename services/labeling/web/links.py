"""Which addresses of the site are given to people outside of it."""

from __future__ import annotations


def invitation_url(site_url: str, secret: str) -> str:
    """The link that an invited person opens."""
    return f"{site_url}/invitation/{secret}"
