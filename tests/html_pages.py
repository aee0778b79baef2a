"""What a page of HTML holds, as a browser without scripts sees it: elements, texts, links and forms.

Read with the standard library's parser, which knows nothing of how the site escapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser

_TEXT_KINDS = frozenset({"text", "search", "email", "tel", "url", "number", "password", "textarea"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One control of a form; radio buttons of one name are one control each."""

    name: str
    kind: str  # "text", "textarea", "select", or an input's type
    value: str
    options: tuple[str, ...] = ()  # of a select
    is_on: bool = True  # a ticked box, a chosen radio button; true for all others

    @property
    def is_typed(self) -> bool:
        """Whether people write in it."""
        return self.kind in _TEXT_KINDS


@dataclass(slots=True, kw_only=True)
class HtmlForm:
    """A form with its controls."""

    action: str
    method: str
    controls: list[Control] = field(default_factory=list)

    @property
    def typed_names(self) -> list[str]:
        """The controls that people write in."""
        return list(dict.fromkeys(control.name for control in self.controls if control.is_typed))

    def filled(self, changes: Mapping[str, str] | None = None) -> dict[str, str]:
        """Fields as somebody sends them who chooses the first of everything that must be chosen."""
        fields: dict[str, str] = {}
        for control in self.controls:
            if control.kind == "checkbox" and not control.is_on:
                continue
            if control.kind == "radio" and not control.is_on and control.name in fields:
                continue
            fields[control.name] = control.value
            if control.kind == "select" and not control.value:
                fields[control.name] = next((option for option in control.options if option), "")
        return {**fields, **(changes or {})}


class HtmlPage(HTMLParser):
    """A parsed page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.comments: list[str] = []
        self.links: list[str] = []
        self.forms: list[HtmlForm] = []
        self._form: HtmlForm | None = None
        self._textarea: tuple[str, list[str]] | None = None
        self._select: tuple[str, list[str], list[str]] | None = None  # name, options, chosen
        self._option: tuple[dict[str, str], list[str]] | None = None
        self.feed(text)
        self.close()

    @property
    def text(self) -> str:
        """Everything that stands between tags."""
        return "".join(self.texts)

    def strings(self) -> Iterator[str]:
        """Texts and values of attributes."""
        yield self.text
        for _tag, attributes in self.elements:
            yield from attributes.values()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        elif tag == "form":
            self._form = HtmlForm(
                action=attributes.get("action", ""), method=attributes.get("method", "get").lower()
            )
            self.forms.append(self._form)
        elif tag == "input":
            self._add_input(attributes)
        elif tag == "textarea":
            self._textarea = (attributes.get("name", ""), [])
        elif tag == "select":
            self._select = (attributes.get("name", ""), [], [])
        elif tag == "option":
            self._end_option()
            self._option = (attributes, [])

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None
        elif tag == "textarea" and self._textarea is not None:
            name, parts = self._textarea
            self._textarea = None
            self._add(Control(name=name, kind="textarea", value="".join(parts).removeprefix("\n")))
        elif tag == "option":
            self._end_option()
        elif tag == "select" and self._select is not None:
            self._end_option()
            name, options, chosen = self._select
            self._select = None
            value = (chosen or options or [""])[0]
            self._add(Control(name=name, kind="select", value=value, options=tuple(options)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._textarea is not None:
            self._textarea[1].append(data)
        if self._option is not None:
            self._option[1].append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def _add_input(self, attributes: Mapping[str, str]) -> None:
        kind = attributes.get("type", "text")
        if kind in ("submit", "button", "reset", "image"):
            return
        has_state = kind in ("checkbox", "radio")
        self._add(
            Control(
                name=attributes.get("name", ""),
                kind=kind,
                value=attributes.get("value", "on" if has_state else ""),
                is_on="checked" in attributes or not has_state,
            )
        )

    def _add(self, control: Control) -> None:
        if self._form is not None and control.name:
            self._form.controls.append(control)

    def _end_option(self) -> None:
        if self._option is None or self._select is None:
            return
        attributes, parts = self._option
        self._option = None
        value = attributes.get("value", "".join(parts).strip())
        self._select[1].append(value)
        if "selected" in attributes:
            self._select[2].append(value)
