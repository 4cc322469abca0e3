"""The examples in the docstrings are run."""

import doctest
import importlib
import pkgutil

import pytest

import data_prep
import wsss_lib

MODULES = [
    module.name
    for package in (wsss_lib, data_prep)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_examples():
    assert sum(len(doctest.DocTestFinder().find(importlib.import_module(name))) for name in MODULES) > 50
