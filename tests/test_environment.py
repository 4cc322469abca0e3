"""environment.yml, pyproject.toml and requirements.lock name the same packages with the same bounds."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
CONDA_TO_PYPI = {"pytorch": "torch", "pydensecrf": "pydensecrf2"}
ONLY_CONDA = {"python", "pip", "cxx-compiler"}


def declared(pyproject: str) -> dict[str, SpecifierSet]:
    """Return name to bounds of every dependency of pyproject.toml, extras included."""
    project = tomllib.loads(pyproject)["project"]
    lines = sum(project["optional-dependencies"].values(), start=project["dependencies"])
    return {canonicalize_name(entry.name): entry.specifier for entry in map(Requirement, lines)}


def of_conda(environment: str) -> dict[str, SpecifierSet]:
    """Return PyPI's name to bounds of every package of environment.yml and its pip block."""
    entries = yaml.safe_load(environment)["dependencies"]
    lines = [entry for entry in entries if isinstance(entry, str)]
    lines += [line for line in entries[-1]["pip"] if not line.startswith("-e")]
    packages = {}
    for line in lines:
        name, _, bounds = line.partition(" ")
        if name not in ONLY_CONDA:
            packages[canonicalize_name(CONDA_TO_PYPI.get(name, name))] = SpecifierSet(bounds)
    return packages


def locked(lock: str) -> dict[str, tuple[str, list[str]]]:
    """Return name to (version, hashes) of every entry of requirements.lock.

    Raises:
        ValueError: a line that is neither a pinned package, nor a hash, nor a comment.
    """
    packages: dict[str, tuple[str, list[str]]] = {}
    hashes: list[str] = []
    for number, line in enumerate(lock.splitlines(), start=1):
        text = line.removesuffix("\\").strip()
        if not text or text.startswith("#"):
            continue
        if match := re.fullmatch(r"--hash=sha256:([0-9a-f]{64})", text):
            hashes.append(match[1])
        elif match := re.fullmatch(r"([A-Za-z0-9._-]+)==([^ ;]+)( ; .+)?", text):
            hashes = []
            packages[canonicalize_name(match[1])] = (match[2], hashes)
        else:
            raise ValueError(f"requirements.lock, line {number}: {text!r} is not a pinned package or a hash")
    return packages


def disagreements(pyproject: str, environment: str, lock: str) -> list[str]:
    """Return one sentence for each thing in which the three files differ."""
    wanted, conda, pinned = declared(pyproject), of_conda(environment), locked(lock)
    found = [f"{name} is only in pyproject.toml" for name in wanted.keys() - conda.keys()]
    found += [f"{name} is only in environment.yml" for name in conda.keys() - wanted.keys()]
    found += [
        f"{name} is {wanted[name]} in pyproject.toml and {conda[name]} in environment.yml"
        for name in wanted.keys() & conda.keys()
        if wanted[name] != conda[name]
    ]
    for name, bounds in wanted.items():
        if name not in pinned:
            found.append(f"{name} is not in requirements.lock")
        elif not bounds.contains(pinned[name][0]):
            found.append(f"{name} is {pinned[name][0]} in requirements.lock, outside {bounds}")
    found += [f"{name} has no hash" for name, (_, hashes) in pinned.items() if not hashes]
    found += [
        f"{name} has no lower or no upper bound"
        for name, bounds in wanted.items()
        if {entry.operator for entry in bounds} != {">=", "<"}
    ]
    return sorted(found)


@pytest.fixture
def files() -> dict[str, str]:
    names = {"pyproject": "pyproject.toml", "environment": "environment.yml", "lock": "requirements.lock"}
    return {key: (ROOT / name).read_text(encoding="utf-8") for key, name in names.items()}


def test_the_three_files_agree(files):
    assert disagreements(**files) == []
    assert len(locked(files["lock"])) > 100  # what they need in turn is pinned as well


@pytest.mark.parametrize(
    "file, before, after, expected",
    [
        (
            "pyproject",
            '"torch>=2.13,<3"',
            '"torch>=2.14,<3"',
            "torch is <3,>=2.14 in pyproject.toml and <3,>=2.13 in environment.yml",
        ),
        ("environment", "  - nbval >=0.11,<1\n", "", "nbval is only in pyproject.toml"),
        ("environment", "  - ruff ", "  - opencv >=4,<5\n  - ruff ", "opencv is only in environment.yml"),
        (
            "environment",
            "numpy >=2.4,<3",
            "numpy >=1.26,<3",
            "numpy is <3,>=2.4 in pyproject.toml and <3,>=1.26 in environment.yml",
        ),
        ("lock", "\nnbval==", "\nnbvalue==", "nbval is not in requirements.lock"),
        ("lock", "\nscipy==1.", "\nscipy==2.", "scipy is 2.17.1 in requirements.lock, outside <2,>=1.17"),
        ("lock", "--hash=sha256:", "# ", "torch has no hash"),
        ("pyproject", '"psutil>=7.2,<8"', '"psutil"', "psutil has no lower or no upper bound"),
    ],
)
def test_a_difference_is_found(files, file, before, after, expected):
    assert before in files[file]
    files[file] = files[file].replace(before, after)
    assert expected in disagreements(**files)


def test_lock_names_no_index(files):
    assert re.findall(r".*(?:://|-index|--find-links|--trusted-host|@ ).*", files["lock"]) == []
    for line in ("--index-url example", "torch @ file:///tmp/torch.whl", "-e .", "torch>=2.13"):
        with pytest.raises(ValueError, match="is not a pinned package or a hash"):
            locked(files["lock"] + line + "\n")


def test_conda_file_has_the_agreed_form(files):
    environment = yaml.safe_load(files["environment"])
    assert environment["name"] == "wsss"
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *conda, last = environment["dependencies"]
    assert all(isinstance(entry, str) for entry in conda) and conda[0] == "python 3.11.*" and "pip" in conda
    assert list(last) == ["pip"] and "-e ." in last["pip"]


def test_nbval_is_usable(pytestconfig):
    assert pytestconfig.pluginmanager.hasplugin("nbval")
