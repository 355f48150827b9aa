"""A petal's files: served as they are from its ``static_dir``, or filled in as templates from its ``template_dir``."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.http.answers import App

if TYPE_CHECKING:
    from starlette.templating import Jinja2Templates

_LOADED_BEFORE: Final = 100

log: Final = logging.getLogger(__name__)


class NoFolder(ValueError):
    """A petal names a folder that is not there; the message says where it was looked for."""

    code = "no_folder"


def folder_of(petal: object, given: str | Path, *, kind: str, root: Path | None) -> Path:
    """Where a petal's ``static_dir`` or ``template_dir`` is. Raises NoFolder.

    As it is when absolute, else beside the petal's module, else ``<root>/<kind>/<petal>``, else ``<root>/<given>``.
    """
    path = Path(given)
    places = [path] if path.is_absolute() else []
    if not places:
        module = sys.modules.get(type(petal).__module__)
        file = getattr(module, "__file__", None) or _source(petal)
        if file is not None:
            places.append(Path(file).resolve().parent / path)
        if root is not None:
            places += [root / kind / str(getattr(petal, "name", "")), root / path]
    for place in places:
        if place.is_dir():
            return place.resolve()
    where = ", ".join(map(str, places)) or "no place: set petals_root"
    raise NoFolder(f"petal {getattr(petal, 'name', '')!r}: there is no folder {given!r}; looked at {where}")


def _source(petal: object) -> str | None:
    try:
        return inspect.getsourcefile(type(petal))
    except TypeError:
        return None


def static_app(petal: object, *, root: Path | None) -> App | None:
    """The app that serves a petal's files; None when it has none. Raises NoFolder."""
    given = getattr(petal, "static_dir", None)
    if not given:
        return None
    from starlette.exceptions import HTTPException  # noqa: PLC0415  # only who serves files needs it
    from starlette.middleware.exceptions import ExceptionMiddleware  # noqa: PLC0415  # the same
    from starlette.responses import JSONResponse  # noqa: PLC0415  # the same
    from starlette.staticfiles import StaticFiles  # noqa: PLC0415  # the same

    files = StaticFiles(directory=folder_of(petal, given, kind="static", root=root), html=True)

    async def refused(_request: Any, error: Any) -> JSONResponse:
        return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)

    app: Any = ExceptionMiddleware(files)
    app.add_exception_handler(HTTPException, refused)
    return app  # type: ignore[no-any-return]  # an ASGI app, in Starlette's types


def templates_of(petal: object, *, root: Path | None = None) -> Mapping[str, Jinja2Templates]:
    """What ``inject_templates`` takes: ``{"default": ...}``, or nothing. Reads files: call it in a thread.

    The first templates are compiled at once, so that showing a page reads no file. Raises NoFolder.
    """
    given = getattr(petal, "template_dir", None)
    if not given:
        return {}
    from jinja2 import Environment, FileSystemLoader, TemplateError  # noqa: PLC0415  # only who has templates needs it

    folder = folder_of(petal, given, kind="templates", root=root)
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, auto_reload=False)
    for name in environment.list_templates()[:_LOADED_BEFORE]:
        try:
            environment.get_template(name)
        except (TemplateError, UnicodeDecodeError) as error:
            log.warning("petal %s: template %s cannot be used: %s", getattr(petal, "name", ""), name, error)
    return {"default": _templates(environment)}


def _templates(environment: Any) -> Jinja2Templates:
    from starlette.templating import Jinja2Templates  # noqa: PLC0415  # as above

    class Templates(Jinja2Templates):
        """Also takes the older order of arguments, ``TemplateResponse(name, {"request": request, ...})``."""

        def TemplateResponse(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802  # Starlette's name
            if args and isinstance(args[0], str):
                name, context, *more = (*args, {}) if len(args) == 1 else args
                context = kwargs.pop("context", context)
                args = (context["request"], name, context, *more)
            return super().TemplateResponse(*args, **kwargs)

    return Templates(env=environment)
