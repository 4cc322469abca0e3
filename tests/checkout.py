"""A second checkout of this project, in a folder whose name has a space and letters that are not ASCII."""

import os
import shutil
import subprocess
from pathlib import Path

from wsss_lib.parameters import PROJECT_ROOT


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder; return what it prints."""
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *arguments], cwd=folder, text=True, capture_output=True, check=True).stdout


def second_checkout(folder: Path) -> Path:
    """Copy what git knows, as it is now, and commit it there."""
    root = folder / "ein Ordner für Ωμέγα"
    for name in git(PROJECT_ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if (PROJECT_ROOT / name).is_file() and name:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT_ROOT / name, root / name)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "all")
    return root


def environment(root: Path) -> dict[str, str]:
    """Return the environment in which programs use the library of that checkout."""
    return os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
