"""How pages are drawn: Jinja templates that escape everything, and one bundle each of styles and scripts.

Static files have their content's hash in their address, so that browsers keep them for ever. The bundles are
made of the files in ``static/css`` and ``static/js`` in the order of their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from services.labeling.web.figures import FILTERS

_FOLDER = Path(__file__).parent
_MEDIA_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A static file."""

    content: bytes
    media_type: str
    file_name: str  # with the hash


class Templates:
    """All templates and static files, read once."""

    def __init__(self) -> None:
        bundles = [_bundle("site", ".css"), _bundle("site", ".js")]
        self.assets = {asset.file_name: asset for asset in bundles}
        addresses = {
            asset.file_name.split("-")[0] + Path(asset.file_name).suffix: f"/static/{asset.file_name}"
            for asset in bundles
        }
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.globals["static"] = addresses.__getitem__
        self._environment.globals["csrf_field"] = _csrf_field
        self._environment.globals["field_error"] = _field_error
        self._environment.filters["when"] = when
        self._environment.filters.update(FILTERS)

    def render(self, template: str, /, **values: Any) -> str:  # Any: whatever the template shows
        """Draw a template. A name that it uses and nobody gave is a defect and raises."""
        return self._environment.get_template(template).render(**values)


def when(time_us: int) -> str:
    """A time for people, in UTC."""
    return f"{datetime.fromtimestamp(time_us / 1e6, tz=UTC):%Y-%m-%d %H:%M} UTC"


@jinja2.pass_context
def _csrf_field(context: jinja2.runtime.Context) -> Markup:
    """The hidden field that every form with ``method="post"`` needs."""
    return Markup('<input type="hidden" name="csrf" value="{}">').format(context["csrf"])


def _field_error(errors: Mapping[str, str], name: str) -> Markup:
    """What is wrong with a field, beside it; the control points here with aria-describedby."""
    if name not in errors:
        return Markup("")
    problem = errors[name]
    return Markup('<p class="field-error" id="{}-error">{}</p>').format(
        name, problem[:1].upper() + problem[1:] + "."
    )


def _bundle(name: str, suffix: str) -> Asset:
    files = sorted((_FOLDER / "static" / suffix[1:]).glob(f"*{suffix}"))
    content = b"\n".join(file.read_bytes() for file in files)
    digest = hashlib.sha256(content).hexdigest()[:16]
    return Asset(content=content, media_type=_MEDIA_TYPES[suffix], file_name=f"{name}-{digest}{suffix}")
