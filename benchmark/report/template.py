"""The template of the page, and what may go into it: text is hostile unless it is said here to be HTML."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

from rapbench.errors import SpecError
from rapbench.report.kinds import NO_FRR
from rapbench.report.names import plain


def template() -> Any:
    """Give the page's Jinja2 template: it escapes all text, on one line, without signs that are not to be seen."""
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise SpecError("the page needs Jinja2 and matplotlib: pip install 'rapbench[report]'") from None

    def shown(value: Any) -> Any:
        return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FunctionLoader(file), autoescape=True, undefined=StrictUndefined, finalize=shown, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"code": _code, "soft": _soft}
    environment.filters["share"] = lambda text: None if text in ("--", NO_FRR) else float(text.split()[0])
    return environment.get_template("page.html")


def verbatim(text: str) -> Any:
    """Give text whose white space counts, escaped."""
    from markupsafe import escape

    return escape(text)


def safe(text: str) -> Any:
    """Give text of our own making as HTML."""
    from markupsafe import Markup

    return Markup(text)


def file(name: str) -> str:
    """Give one of the files that a page is made of."""
    return resources.files("rapbench.report.templates").joinpath(name).read_text(encoding="utf-8")


def _code(text: str) -> Any:
    """Give text whose parts between backticks are code."""
    from markupsafe import Markup, escape

    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part) for place, part in enumerate(text.split("`"))
    )


def _soft(text: str) -> Any:
    """Give a name that may be broken after the signs between its options."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[:,/])(?=\S)", plain(text).replace(" -> ", "\u00a0→ ")))
