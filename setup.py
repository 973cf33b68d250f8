"""The packages of the wheel: every folder of code under the one name ``tokenloom`` (the rest stands in pyproject.toml)."""

from setuptools import find_packages, setup

setup(packages=[f"tokenloom.{name}" for name in find_packages(include=["flows*", "tasks*", "models*", "configs*"])])
