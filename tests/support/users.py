"""Other users, small disks and mounts of their own, for tests that are allowed to have them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from .programs import child_environment

NOBODY = 65534
OWNER, MEMBER, STRANGER, TEAM = 52_001, 52_002, 52_003, 52_000
MOUNTED = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
SMALL_DISK = 'mount -t tmpfs -o size=16m none "$1"'


def run_as(user, code, *arguments, groups=(), umask=0o022, check=True):
    """Run code in an interpreter of another user; returns the finished process."""
    chosen = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", chosen, sys.executable, "-c", code]
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=child_environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        check=check,
        timeout=60,
        umask=umask,
        cwd="/",
    )


def hindrance():
    """Why no code can be run as another user here; empty if it can."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return "needs root, and setpriv"
    try:
        run_as(NOBODY, "import diskq")
    except (subprocess.SubprocessError, OSError) as error:
        return f"another user cannot run diskq here: {error}"
    return ""


def run_mounted(script, *arguments):
    """Run a shell script in a mount namespace of its own; None if none is allowed here."""
    if shutil.which("unshare") is None:
        return None
    probe = subprocess.run([*MOUNTED, "mount -t tmpfs none /mnt"], check=False, capture_output=True)
    if probe.returncode:
        return None
    return subprocess.run(
        [*MOUNTED, script, "sh", *map(str, arguments)],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
