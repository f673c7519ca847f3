"""What a module imports: where, when, and whether it can do without."""

from __future__ import annotations

from pie_trio.application.authoring.imports import find_imports, is_inside, module_names

TEXT = """
from __future__ import annotations
import os.path, json as j
from typing import TYPE_CHECKING
from . import near
from ..up import thing
if TYPE_CHECKING:
    import never
else:
    import otherwise
try:
    import fast
except ImportError:
    import slow
try:
    import needed
except ValueError:
    pass

def later():
    import lazy
    from importlib import import_module as load
    load("by.name")
    load(name)
    __import__("dunder")
    (lambda: __import__(computed))()
"""


def names(path: str = "pkg/sub/mod.py") -> dict[str, tuple[bool, bool]]:
    found = find_imports(path, TEXT)
    return {i.name: (i.is_lazy, i.is_optional) for i in found if i.name}


def test_each_import_is_found_with_when_it_happens() -> None:
    found = names()
    assert found["os.path"] == found["json"] == found["needed"] == (False, False)
    assert found["fast"] == (False, True)
    assert found["slow"] == found["otherwise"] == (False, False)
    assert found["lazy"] == found["by.name"] == found["dunder"] == (True, False)
    assert "never" not in found


def test_what_is_imported_instead_is_a_fallback() -> None:
    fallbacks = {i.name for i in find_imports("mod.py", TEXT) if i.is_fallback}
    assert fallbacks == {"slow"}


def test_relative_imports_are_resolved() -> None:
    found = names()
    assert found["pkg.sub.near"] == (False, True)
    assert found["pkg.up"] == (False, False)
    assert found["pkg.up.thing"] == (False, True)


def test_names_that_only_the_program_knows_have_their_lines() -> None:
    unknown = [i for i in find_imports("app.py", TEXT) if not i.name]
    assert [i.line for i in unknown] == [24, 26]
    assert unknown[0].where == "app.py, line 24,"


def test_modules_have_names_by_their_paths() -> None:
    known = module_names(["app.py", "a/__init__.py", "a/b/c.py"])
    assert known == {"app", "a", "a.b", "a.b.c"}
    assert is_inside("a.b.c.d", known)
    assert not is_inside("ab", known)
