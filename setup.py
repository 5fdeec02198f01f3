"""Everything is declared in pyproject.toml; this file is where the compiled half will be built."""

from setuptools import setup

setup()
