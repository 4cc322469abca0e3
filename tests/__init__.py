"""Tests; `tests.refresh_notebooks` is used by them and by make refresh."""
