"""Windows, as far as it can be faked on Linux.

Python imports this file by itself if PYTHONPATH names its folder.
The project's modules see `os`, `signal`, `sys` and `ctypes` without what Windows lacks; no other
library does. In the working folder, files that any process has open or mapped into memory can be
neither removed nor replaced nor renamed.
"""

import builtins
import ctypes
import importlib.abc
import importlib.machinery
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
ABSENT_MODULES = {"fcntl", "grp", "pwd", "resource", "termios"}
ABSENT = {
    "os": (
        *("chown", "fork", "getloadavg", "geteuid", "getuid", "getpgid", "killpg", "mkfifo"),
        *("sched_getaffinity", "sched_setaffinity", "setpgrp", "setsid", "sysconf"),
    ),
    "signal": (
        *("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1", "SIGUSR2"),
        *("alarm", "pause", "pthread_sigmask", "setitimer"),
    ),
}


class FakedModule(ModuleType):
    """A module without some of its names, and with others changed. What is set, all see."""

    def __init__(self, module, changed):
        super().__init__(module.__name__)
        own = super().__getattribute__("__dict__")
        own["module"] = module
        own["changed"] = changed

    def __getattribute__(self, name):
        own = super().__getattribute__("__dict__")
        module = own["module"]
        if name in own["changed"]:
            return own["changed"][name]
        if name in ABSENT.get(module.__name__, ()):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return getattr(module, name)

    def __setattr__(self, name, value):
        setattr(super().__getattribute__("__dict__")["module"], name, value)


def refuse_link(path, name, *_):
    raise OSError(1314, "A required privilege is not held by the client", path, 1314, name)


def open_file(path, *args, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return os.open(path, *args, **options)


def load_library(name, *_):
    raise TypeError(f"argument of type {type(name).__name__!r} is not iterable")


FAKES = {
    "os": FakedModule(os, {"symlink": refuse_link, "open": open_file}),
    "signal": FakedModule(signal, {"SIGBREAK": signal.SIGUSR1}),
    "sys": FakedModule(sys, {"platform": "win32"}),
    "ctypes": FakedModule(ctypes, {"CDLL": load_library}),
}


def import_faked(name, globals=None, locals=None, fromlist=(), level=0):
    if name in ABSENT_MODULES:
        raise ImportError(f"No module named {name!r}")
    if name in FAKES:
        return FAKES[name]
    return builtins.__import__(name, globals, locals, fromlist, level)


class Loader(importlib.machinery.SourceFileLoader):
    """Loads a module of the project that imports the fakes."""

    def exec_module(self, module):
        vars(module)["__builtins__"] = vars(builtins) | {"__import__": import_faked}
        super().exec_module(module)


def is_of_project(path):
    """Say whether a file is the project's: no test of it, no library installed in its folder."""
    if ROOT not in path.parents:
        return False
    folders = path.relative_to(ROOT).parts[:-1]
    return "tests" not in folders and "site-packages" not in folders


class Finder(importlib.abc.MetaPathFinder):
    """Finds the project's modules, but not its tests."""

    def find_spec(self, name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            return None
        if not is_of_project(Path(spec.origin)):
            return None
        spec.loader = Loader(name, spec.origin)
        return spec


# ---------------------------------------------------------------- files that are open


def places_in_use():
    """Yield the real paths of all files that a process in the working folder has open or mapped."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") != os.getcwd():
                continue
            places = {os.path.realpath(entry) for entry in (process / "fd").iterdir()}
            maps = (process / "maps").read_text().splitlines()
        except OSError:  # it has ended, or is somebody else's
            continue
        places.update(line[line.find("/") :] for line in maps if "/" in line)
        yield from places


def check_unused(path, options):
    """Raise PermissionError if a file, or one in a folder, is open; only in the working folder."""
    path = os.fsdecode(path)
    if options.get("dir_fd") is not None:
        path = os.path.join(os.readlink(f"/proc/self/fd/{options['dir_fd']}"), path)
    place = os.path.realpath(path)
    if not place.startswith(os.getcwd() + "/") or place.startswith(str(ROOT)):
        return
    if place.endswith(".lock"):  # filelock removes it on Windows, after it has closed it
        return
    for used in places_in_use():
        if used == place or used.startswith(place + "/"):
            raise PermissionError(
                13, "The process cannot access the file, it is being used by another process", path
            )


class Checked:
    """A function of os on paths that must not be in use."""

    def __init__(self, function, paths, onto_nothing=False):
        self.function = function
        self.paths = paths
        self.onto_nothing = onto_nothing
        self.__name__ = function.__name__

    def __call__(self, *args, **options):
        for path in args[: self.paths]:
            check_unused(path, options)
        if self.onto_nothing and os.path.lexists(args[1]):
            raise FileExistsError(17, "Cannot create a file when it already exists", args[1])
        return self.function(*args, **options)


def set_handler(number, handler, set_it=signal.signal):
    """Set a signal's handler, but none for ended processes, of which Windows sends no signal."""
    if number == signal.SIGCHLD:
        return None
    return set_it(number, handler)


def fake_windows():
    """Have what is imported from here on run as on Windows."""
    folders = os.environ["PYTHONPATH"].split(os.pathsep)  # of other processes too
    os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, folders))
    signal.signal = set_handler  # also those of libraries
    os.unlink = Checked(os.unlink, 1)
    os.remove = os.unlink
    os.replace = Checked(os.replace, 2)
    os.rename = Checked(os.rename, 2, onto_nothing=True)
    sys.meta_path.insert(0, Finder())


fake_windows()
