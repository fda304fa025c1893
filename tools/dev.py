"""One entry for people and CI. Needs python3 >= 3.11 and nothing else:

    python3 tools/dev.py demo [options]     the live demo, see `diskq demo --help`
    python3 tools/dev.py test [options]     lint, types, then pytest with these options
    python3 tools/dev.py check              the same without options
    python3 tools/dev.py lint               ruff check and ruff format --check
    python3 tools/dev.py types              mypy --strict
    python3 tools/dev.py powercut [options] crash states of power cuts, see --help
    python3 tools/dev.py torture [options]  processes, killed and stopped at random, see --help
    python3 tools/dev.py every_line [...]   verbs interrupted at each of their lines, see --help
    python3 tools/dev.py storm [options]    minutes of interrupts of every kind, see --help
    python3 tools/dev.py copies [options]   a program that copies its own store's files
    python3 tools/dev.py c_fork [options]   killed in a commit beside a child forked in C
    python3 tools/dev.py uwsgi_drill [...]  killed workers of uWSGI
    python3 tools/dev.py bench [options]    figures, see --help

The first call makes .venv and installs the project and what its development needs. Later calls find
it done, until pyproject.toml changes.
"""

from __future__ import annotations  # so that an old Python gets as far as being refused

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = str(VENV / "bin" / "python")
DISKQ = str(VENV / "bin" / "diskq")  # not by its name: the PATH may have another one, or none
STAMP = VENV / "made-for"  # says for which pyproject.toml the environment was made

LINT = (["ruff", "check", "."], ["ruff", "format", "--check", "."])
TYPES = (["mypy"],)
ALIVE = "every_line", "storm", "copies", "c_fork", "uwsgi_drill"
HARNESSES = "powercut", "torture", "bench", *ALIVE


def main(verb: str = "help", *options: str) -> int:
    """Run one verb; the exit code is that of the first program that fails."""
    if verb not in ("demo", "test", "check", "lint", "types", *HARNESSES):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `dev.py help | head` is no error
        print(__doc__)
        return 0 if verb in ("help", "-h", "--help") else 2
    trouble = set_up()
    if trouble:
        print(f"dev.py: {trouble}", file=sys.stderr)
        return 1
    if verb == "demo":
        os.execv(DISKQ, [DISKQ, "demo", *options])
    if verb in HARNESSES:
        tool = ROOT / "tools" / verb  # a package, or a file
        os.execv(PYTHON, [PYTHON, str(tool if tool.is_dir() else f"{tool}.py"), *options])
    steps = {"lint": LINT, "types": TYPES}.get(verb, (*LINT, *TYPES))
    for module, *rest in steps:
        code = subprocess.run([PYTHON, "-m", module, *rest], cwd=ROOT, check=False).returncode
        if code:
            return code
    if verb in ("test", "check"):
        os.chdir(ROOT)
        os.execv(PYTHON, [PYTHON, "-m", "pytest", *parallel(options), *options])
    return 0


def parallel(options: tuple[str, ...]) -> list[str]:
    """One pytest process per processor and one more: tests wait more than they compute."""
    if any(option == "--pdb" or option.startswith(("-s", "-n")) for option in options):
        return []
    return ["-n", str(min((os.cpu_count() or 1) + 1, 8))]


def set_up() -> str | None:
    """Make the environment if need be; returns what is wrong, with what to do about it."""
    if sys.version_info < (3, 11):  # noqa: UP036 - python3 may be anything
        return f"diskq needs Python 3.11 or later, this is {sys.version.split()[0]}: install one"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return None
    try:
        import ensurepip  # noqa: F401 - Debian has it, and a working venv, in another package
        import venv
    except ImportError:
        return "this Python has no venv: run 'apt install python3-venv', or use another Python"
    print("Setting up .venv: once, and it takes some seconds ...", flush=True)
    try:
        if not STAMP.is_file():
            venv.create(VENV, with_pip=True, symlinks=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"could not make {VENV}: {error}; remove it, then run this again"
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    if subprocess.run([*pip, "--editable", f"{ROOT}[tui]", *tools()], check=False).returncode:
        return "pip could not install what pyproject.toml lists: see above, then run this again"
    STAMP.write_text(wanted)
    return None


def tools() -> list[str]:
    """The development group; read here because pip knows --group only from 25.1 on."""
    import tomllib

    with (ROOT / "pyproject.toml").open("rb") as file:
        return list(tomllib.load(file)["dependency-groups"]["dev"])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
