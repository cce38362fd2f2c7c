"""Modules of optional packages: what is there is imported, and what is not is one line with the remedy."""

import sys
import xml.dom

import pytest

from synthkd.errors import MissingExtraError
from synthkd.imports import optional


def test_a_module_inside_a_package_is_that_module() -> None:
    assert optional("xml.dom", "xml", "markup") is xml.dom
    assert optional("xml", "xml", "markup") is xml


def test_what_is_missing_names_the_package_the_extra_and_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xml.dom", None)
    said = r"^markup needs the package 'xml': pip install 'synthkd\[tree\]'$"
    with pytest.raises(MissingExtraError, match=said) as caught:
        optional("xml.dom", "tree", "markup")
    assert isinstance(caught.value.__cause__, ImportError)
    assert optional("xml", "tree", "markup") is xml
