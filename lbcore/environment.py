"""Makes the environment that lb runs in: ``.venv`` beside ``lb.py``, with the locked versions.

Finds or makes it, says so in one line, and goes on inside it by replacing this process.  It must
never import anything but the standard library, and it changes no environment but that one.  Called
by ``lbcore.bootstrap`` where dependencies are missing.  What only an installation needs is imported
there: a start from outside of a ready ``.venv`` passes through here too.

What keeps the environment whole:

* Only the holder of ``.lb/bootstrap.lock`` changes it.  pip inherits the lock: when this process is
  killed, the next one waits until the orphan has finished.
* A stamp inside says ``creating`` or ``updating`` before the first change, and what is installed
  only after the last one and after a real import.  Nothing but a ``ready`` stamp is trusted.
* An update keeps what the user installed there; an environment that lb did not make is never
  removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NoReturn

from . import bootstrap
from .bootstrap import CAME_BY_VARIABLE, DEVELOP, RUN, TEST, BootstrapError, Requirements

ROOT = Path(bootstrap.ROOT)
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "lb-stamp"
PRIVATE_FOLDER = ROOT / ".lb"
LOCK = PRIVATE_FOLDER / "bootstrap.lock"
LOG = PRIVATE_FOLDER / "bootstrap.log"

#: set to 1 to use the present environment as it is, or fail
NO_VENV_VARIABLE = "LB_NO_VENV"
#: values of CAME_BY_VARIABLE: into a ``.venv`` that was ready, or just after an installation
ENTERED = "entered"
INSTALLED = "installed"

REASON_CHARACTERS_MAX = 160

#: each lock holds the one before it, at the same versions
LEVELS = (RUN, TEST, DEVELOP)

#: what pip or venv wrote -> what the user should read
KNOWN_REASONS: tuple[tuple[str, str], ...] = (
    (
        "ensurepip is not",
        "this Python has no ensurepip (Debian and Ubuntu: apt-get install python3-venv)",
    ),
    ("No space left on device", "no space left on the disk"),
    ("connection broken by", "no package registry answers (is this machine online?)"),
)

#: settings that would send pip's work somewhere else than into ``.venv``
FOREIGN_VARIABLES = (
    "PIP_CONSTRAINT",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_TARGET",
    "PYTHONHOME",
    "__PYVENV_LAUNCHER__",
)


def enter_environment(requirements: Requirements, missing: Sequence[str], came_by: str) -> NoReturn:
    """Go on in ``.venv``, made ready if need be; ``came_by`` is what the last such step was.

    Raises ``BootstrapError``, whose message is one line with the command that does it by hand.
    """
    problem = f"Python packages are missing: {', '.join(missing)}"
    if not (ROOT / requirements.lock).is_file():
        raise BootstrapError(f"{problem}; install lb again with pip")
    if os.environ.get(NO_VENV_VARIABLE, "0") not in ("", "0"):
        by_hand = manual_install(shlex.quote(sys.executable), requirements)
        raise BootstrapError(f"{problem}, and {NO_VENV_VARIABLE} is set; by hand: {by_hand}")

    inside = Path(sys.prefix).resolve() == VENV.resolve()
    if came_by == INSTALLED or (came_by == ENTERED and not inside):
        raise BootstrapError(f"{problem} even in {show(VENV)}; start Python without -S")
    step = ENTERED
    # Inside .venv with modules missing, the stamp is wrong, whatever it says.
    if inside or not is_ready(requirements):
        install_or_explain(requirements, inside)
        step = INSTALLED
    os.environ[CAME_BY_VARIABLE] = step
    os.execv(VENV_PYTHON, [str(VENV_PYTHON), *sys.orig_argv[1:]])


def install_or_explain(requirements: Requirements, damaged: bool) -> None:
    """``install``, where a folder that cannot be written is one clear line as well."""
    try:
        install(requirements, damaged)
    except OSError as error:
        where = show(Path(os.fsdecode(error.filename))) if error.filename else show(VENV)
        by_hand = manual_command(requirements, "~/lb-venv")
        raise BootstrapError(
            f"cannot write {where}: {error.strerror or error}; by hand, in another folder: "
            f"{by_hand}, then start lb with ~/lb-venv/bin/python"
        ) from None


# --- The stamp: line 1 state, line 2 interpreter, then one line for each installed lock.


def is_ready(requirements: Requirements) -> bool:
    """Whether ``.venv`` holds exactly this lock, by a stamp that was written last."""
    stamp = read_stamp()
    return (
        stamp[:2] == ["ready", interpreter_path()]
        and fingerprint(requirements) in stamp[2:]
        and VENV_PYTHON.exists()
    )


def read_stamp() -> list[str]:
    """The lines of the stamp; none where lb did not make the environment."""
    try:
        return STAMP.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []


def write_stamp(state: str, requirements: Sequence[Requirements] = ()) -> None:
    """Replace the stamp in one step."""
    lines = [state, interpreter_path(), *map(fingerprint, requirements)]
    draft = STAMP.with_suffix(".draft")
    draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    draft.replace(STAMP)


def interpreter_path() -> str:
    """What ``.venv`` runs on; an upgrade of the system's Python changes it, and breaks it."""
    return os.path.realpath(VENV_PYTHON)


def fingerprint(requirements: Requirements) -> str:
    """One line that changes with the lock file."""
    digest = hashlib.sha256((ROOT / requirements.lock).read_bytes()).hexdigest()
    return f"{requirements.lock} {digest}"


# --- Installing.


def install(requirements: Requirements, damaged: bool) -> None:
    """Make ``.venv`` hold the lock, unless another process did so while this one waited.

    Raises ``BootstrapError``, and ``OSError`` where the folder cannot be written.
    """
    PRIVATE_FOLDER.mkdir(exist_ok=True)
    with exclusive_lock() as lock_descriptor:
        if not damaged and is_ready(requirements):
            return
        with LOG.open("w", encoding="utf-8") as log:
            Installer(requirements, log, lock_descriptor).run()


@contextlib.contextmanager
def exclusive_lock() -> Iterator[int]:
    """Hold the lock file, and yield its descriptor; the kernel lets go of it at any death."""
    descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another lb is installing into {show(VENV)}; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


class Installer:
    """One installation into ``.venv``; exists only under the lock."""

    def __init__(self, requirements: Requirements, log: IO[str], lock_descriptor: int) -> None:
        self._requirements = requirements
        self._log = log
        self._lock_descriptor = lock_descriptor

    def run(self) -> None:
        """Create or update, check by importing, then stamp.  Raises ``BootstrapError``."""
        if self._is_usable():
            say(f"installing {self._requirements.lock} into {show(VENV)}")
            write_stamp("updating")
            self._install_packages()
        else:
            say(f"first start: making {show(VENV)} with {self._requirements.lock} (some seconds)")
            self._create()
        level = LEVELS.index(self._requirements)
        write_stamp("ready", LEVELS[: level + 1])

    def _is_usable(self) -> bool:
        """Whether to build on what is there; raises where it is neither usable nor ours."""
        stamp = read_stamp()
        if stamp[:1] == ["creating"] or not VENV.exists():
            return False
        if not stamp and VENV.is_dir() and not any(VENV.iterdir()):
            return False
        script = "import sys; sys.exit(sys.version_info < (3, 11))"
        usable = VENV_PYTHON.exists() and self._call([str(VENV_PYTHON), "-c", script]) == 0
        if stamp:
            return usable and stamp[1:2] == [interpreter_path()]
        if not usable:
            raise BootstrapError(
                f"{show(VENV)} is not an environment of Python 3.11 or newer, and lb did not make "
                f"it: remove it, or make it anew: {manual_command(self._requirements)}"
            )
        return True

    def _create(self) -> None:
        import shutil

        if VENV.exists():
            shutil.rmtree(VENV)
        VENV.mkdir()
        write_stamp("creating")
        try:
            # Not sys.executable: that may be the broken .venv's own, which is gone by now.
            base = getattr(sys, "_base_executable", sys.executable)
            self._perform([base, "-m", "venv", "--prompt", "lb", str(VENV)])
            # Only now is it known on which interpreter it stands.
            write_stamp("creating")
            self._install_packages()
        except BaseException:
            # What the user then does by hand must not be taken for our own half-made one.
            shutil.rmtree(VENV, ignore_errors=True)
            raise

    def _install_packages(self) -> None:
        python = str(VENV_PYTHON)
        if self._call([python, "-c", "import pip"]) != 0:
            self._perform([python, "-m", "ensurepip"])
        lock = str(ROOT / self._requirements.lock)
        command = [python, "-m", "pip", "install", "--no-input", "--retries", "2"]
        command += ["--require-hashes", "-r", lock]
        self._perform(command)
        check = [python, "-c", "import " + ", ".join(self._requirements.modules)]
        if self._call(check) != 0:
            # An interrupted update can leave a package that pip takes for whole.
            self._perform([*command, "--force-reinstall"])
            self._perform(check)

    def _perform(self, command: Sequence[str]) -> None:
        """Run one step.  Raises ``BootstrapError`` when it fails."""
        if self._call(command) != 0:
            reason = reason_of_failure(LOG.read_text(encoding="utf-8", errors="replace"))
            raise BootstrapError(
                f"cannot install the dependencies into {show(VENV)}: {reason}; "
                f"log: {show(LOG)}; by hand: {manual_command(self._requirements)}"
            )

    def _call(self, command: Sequence[str]) -> int:
        """Run a command with its output in the log; returns its exit code."""
        import subprocess

        self._log.write(f"$ {shlex.join(command)}\n")
        self._log.flush()
        environment = {k: v for k, v in os.environ.items() if k not in FOREIGN_VARIABLES}
        environment.update(PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1")
        return subprocess.run(
            command,
            check=False,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            pass_fds=(self._lock_descriptor,),
        ).returncode


def reason_of_failure(output: str) -> str:
    """The part of the log of venv and pip that a user should read, in one line."""
    for mark, reason in KNOWN_REASONS:
        if mark in output:
            return reason
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines)[-1][:REASON_CHARACTERS_MAX]


# --- What the user reads.


def manual_command(requirements: Requirements, folder: str | None = None) -> str:
    """The shell command that does by hand what failed, in ``.venv`` or another folder."""
    folder = folder or shlex.quote(show(VENV))
    install_packages = manual_install(f"{folder}/bin/python", requirements)
    return f"{shlex.quote(sys.executable)} -m venv {folder} && {install_packages}"


def manual_install(python: str, requirements: Requirements) -> str:
    """The shell command that installs a lock file with the interpreter of an environment."""
    lock = shlex.quote(show(ROOT / requirements.lock))
    return f"{python} -m pip install --require-hashes -r {lock}"


def show(path: Path) -> str:
    """A path as the user would type it here."""
    with contextlib.suppress(ValueError, OSError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def say(text: str) -> None:
    """One line for the user, away from the output that a program may read."""
    print(f"lb: {text}", file=sys.stderr, flush=True)
