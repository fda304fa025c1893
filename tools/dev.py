"""One entry for people and CI. Needs python3 >= 3.11 and nothing else:

    python3 tools/dev.py demo [options]     the live demo, see `diskq demo --help`
    python3 tools/dev.py test [options]     lint, types, then pytest with these options
    python3 tools/dev.py check              the same without options
    python3 tools/dev.py lint               ruff check and ruff format --check
    python3 tools/dev.py types              mypy --strict
    python3 tools/dev.py lowest [options]   pytest with the oldest dependencies that are allowed
    python3 tools/dev.py bare               install without extras; then help, a put and a get
    python3 tools/dev.py coverage [options] pytest, with the share of diskq's lines that it ran
    python3 tools/dev.py powercut [options] crash states of power cuts, see --help
    python3 tools/dev.py torture [options]  processes, killed and interrupted at random, see --help
    python3 tools/dev.py bench [options]    figures, see --help
    python3 tools/dev.py picture [...]      pictures of the demo and of the layers, see --help

The first call makes .venv and installs the project and what its development needs. Later calls find
it done, until pyproject.toml changes. `lowest` and `bare` have environments of their own,
.venv-lowest and .venv-bare.
"""

from __future__ import annotations  # so that an old Python gets as far as being refused

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV, LOWEST, BARE = (ROOT / name for name in (".venv", ".venv-lowest", ".venv-bare"))

LINT = (["ruff", "check", "."], ["ruff", "format", "--check", "."])
TYPES = (["mypy"],)
TOOLS = "powercut", "torture", "bench", "picture"  # modules in tools/
OLDEST_TESTS = "tests/unit", "tests/cli"  # what `lowest` runs without options


def main(verb: str = "help", *options: str) -> int:
    """Run one verb; the exit code is that of the first program that fails."""
    verbs = {"demo": demo, "lowest": lowest, "bare": bare, "coverage": coverage}
    checks = {"test": (*LINT, *TYPES), "check": (*LINT, *TYPES), "lint": LINT, "types": TYPES}
    if verb not in (*verbs, *checks, *TOOLS):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `dev.py help | head` is no error
        print(__doc__)
        return 0 if verb in ("help", "-h", "--help") else 2
    try:
        if sys.version_info < (3, 11):  # noqa: UP036 - python3 may be anything
            version = sys.version.split()[0]
            raise Trouble(f"diskq needs Python 3.11 or later, this is {version}: install one")
        if verb in verbs:
            return verbs[verb](*options)
        set_up(VENV)
    except Trouble as trouble:
        print(f"dev.py: {trouble}", file=sys.stderr)
        return 1
    if verb in TOOLS:
        os.execve(python(VENV), [python(VENV), "-m", verb, *options], with_tools())
    for module, *rest in checks[verb]:
        code = run(python(VENV), "-m", module, *rest)
        if code:
            return code
    if verb in ("test", "check"):
        os.chdir(ROOT)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or hundreds of processes compile diskq
        pytest = [python(VENV), "-m", "pytest", *parallel(options), *options]
        os.execv(pytest[0], pytest)
    return 0


class Trouble(Exception):
    """An environment could not be made; the text says what to do about it."""


def demo(*options: str) -> int:
    """The live demo; not by the name of the command: the PATH may have another one, or none."""
    set_up(VENV)
    program = str(VENV / "bin" / "diskq")
    os.execv(program, [program, "demo", *options])


def lowest(*options: str) -> int:
    """Tests with the lowest version of each dependency that pyproject.toml allows."""
    needed = project()["project"]["dependencies"]
    set_up(LOWEST, *(re.sub(r">=([\d.]+).*", r"==\1", each) for each in needed))
    chosen = options or OLDEST_TESTS
    return run(python(LOWEST), "-m", "pytest", *parallel(chosen), *chosen)


def bare() -> int:
    """What `pip install diskq` gives, in a new environment: it can help, put and get."""
    shutil.rmtree(BARE, ignore_errors=True)
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # or old modules were installed, too
    make(BARE)
    install(BARE, str(ROOT))
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    program = str(BARE / "bin" / "diskq")
    with tempfile.TemporaryDirectory() as folder:
        for words in ("--help", "put mail hello", "group create mail default", "get mail"):
            code = run(
                program, *words.split(), cwd=folder, env={**os.environ, "DISKQ_STORE": "store"}
            )
            if code:
                return code
    return 0


def coverage(*options: str) -> int:
    """Tests, and which share of the lines of diskq they ran, in all their processes."""
    set_up(VENV)
    tool = [python(VENV), "-m", "coverage"]
    run(*tool, "erase")
    code = run(*tool, "run", "-m", "pytest", *parallel(options), *options)
    run(*tool, "combine", "--quiet")
    total = subprocess.run(
        [*tool, "report", "--format=total"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    print(f"coverage {total.stdout.strip()} %" if not total.returncode else total.stdout)
    return code or total.returncode


def run(*command: str, cwd: str | Path = ROOT, env: dict[str, str] | None = None) -> int:
    """Run a program to its end; returns its exit code."""
    return subprocess.run(command, cwd=cwd, env=env, check=False).returncode


def python(environment: Path) -> str:
    """The interpreter of an environment; by its full path, or the environment is lost."""
    return str(environment / "bin" / "python")


def with_tools() -> dict[str, str]:
    """Variables with which Python finds the tools and diskq of this checkout."""
    given = os.environ.get("PYTHONPATH")
    paths = [str(ROOT), str(ROOT / "tools"), *([given] if given else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def parallel(options: tuple[str, ...]) -> list[str]:
    """One pytest process per processor and one more: tests wait more than they compute."""
    if any(option == "--pdb" or option.startswith(("-s", "-n")) for option in options):
        return []
    return ["-n", str(min((os.cpu_count() or 1) + 1, 8)), "--dist", "worksteal"]


def set_up(environment: Path, *pinned: str) -> None:
    """Make an environment for development, once for each pyproject.toml."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    stamp = environment / "made-for"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"Setting up {environment.name}: once, and it takes some seconds ...", flush=True)
    if not stamp.is_file():
        make(environment)
    tools = project()["dependency-groups"]["dev"]  # pip knows --group only from 25.1 on
    install(environment, "--editable", f"{ROOT}[tui]", *tools, *pinned)
    stamp.write_text(wanted)


def make(environment: Path) -> None:
    """Make an empty environment."""
    try:
        import ensurepip  # noqa: F401 - Debian has it, and a working venv, in another package
        import venv
    except ImportError:
        way_out = "run 'apt install python3-venv', or use another Python"
        raise Trouble(f"this Python has no venv: {way_out}") from None
    try:
        venv.create(environment, with_pip=True, symlinks=True)
    except (OSError, subprocess.CalledProcessError) as error:
        way_out = "remove it, then run this again"
        raise Trouble(f"could not make {environment}: {error}; {way_out}") from None


def install(environment: Path, *packages: str) -> None:
    """Install packages into an environment."""
    pip = [python(environment), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    if run(*pip, *packages):
        what = "what pyproject.toml lists"
        raise Trouble(f"pip could not install {what}: see above, then run this again")


def project() -> dict[str, Any]:
    """What pyproject.toml says."""
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
