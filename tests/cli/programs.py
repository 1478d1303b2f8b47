"""Programs that end in every way: run by plain Python and by `torchwatt run`, they must not differ."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import zipapp
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPORT = re.compile(r"^torchwatt [·|] .*?^run        [^\n]*\n(?: {11}[^\n]*\n)*\n", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Program:
    """A script and how it is started; `send` is a signal sent as soon as it has written `ready` to its stdout."""

    text: str
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    line: str = ""  # a shell line with {run} for how to run the script
    send: Sequence[int] = ()
    stdin: str = ""
    make: Callable[[Path], Sequence[str]] | None = None  # writes other files, and returns what to run
    flags: Sequence[str] = ()  # of Python
    has_report: bool = True
    traced: bool = False  # imports torch: with layers


@dataclass(frozen=True, slots=True)
class Ended:
    """What was seen of a program: its exit status (negative: a signal's), its output, and its own part of stderr."""

    status: int
    stdout: str
    stderr: str
    report: str


def package(folder: Path) -> Sequence[str]:
    """Write a package with a relative import."""
    (folder / "app").mkdir()
    (folder / "app" / "__init__.py").write_text("print('package', __name__)\n")
    (folder / "app" / "part.py").write_text("value = 7\n")
    text = """
from .part import value
import sys, pickle
class Kept: pass
print(__name__, __package__, __spec__.name, value, sys.argv[1:], sys.path[0] == __import__('os').getcwd())
print(type(pickle.loads(pickle.dumps(Kept()))).__module__, __file__, sys.argv[0] == __file__)
raise SystemExit(5)
"""
    (folder / "app" / "__main__.py").write_text(text)
    return ["-m", "app", "a", "-b"]


def folder_program(folder: Path) -> Sequence[str]:
    """Write a folder with a `__main__.py`."""
    (folder / "tool").mkdir()
    (folder / "tool" / "helper.py").write_text("def fail():\n    raise LookupError('in a helper')\n")
    (folder / "tool" / "__main__.py").write_text(
        "import sys, helper\nprint(__name__, repr(__package__), sys.argv, sys.path[0])\nhelper.fail()\n"
    )
    return ["tool", "x"]


def zipped(folder: Path) -> Sequence[str]:
    """Write a zip application."""
    folder_program(folder)
    zipapp.create_archive(folder / "tool", folder / "tool.pyz")
    return ["tool.pyz", "y"]


def linked(folder: Path) -> Sequence[str]:
    """Write a script that is run through a link, and imports its neighbour."""
    (folder / "real").mkdir()
    (folder / "real" / "neighbour.py").write_text("print('neighbour')\n")
    (folder / "real" / "train.py").write_text("import atexit, sys\nimport neighbour\nprint(sys.argv, sys.path[0])\n")
    (folder / "train.py").symlink_to(folder / "real" / "train.py")
    return ["train.py"]


def broken_import(folder: Path) -> Sequence[str]:
    """Write a script that imports a module with a mistake."""
    (folder / "mistaken.py").write_text("def f(:\n")
    (folder / "train.py").write_text("print('begins')\nimport mistaken\n")
    return ["train.py"]


def compiled(folder: Path) -> Sequence[str]:
    """Compile a script and run the result."""
    (folder / "source.py").write_text("print(__name__, __file__)\nraise ValueError('compiled')\n")
    code = "import py_compile; py_compile.compile('source.py', cfile='train.pyc')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    return ["train.pyc"]


def missing_module(folder: Path) -> Sequence[str]:
    """Name a module that its package does not have."""
    (folder / "app").mkdir()
    (folder / "app" / "__init__.py").write_text("")
    return ["-m", "app.nothing"]


THREAD = "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.3), print('thread done'))).start()\n"
TRACEBACK = 0  # in the place of a signal
READY = "print('ready', flush=True)\n"

PROGRAMS: Mapping[str, Program] = {
    "exit 3": Program("import sys; print('out'); sys.exit(3)"),
    "exit with a text": Program("import sys; sys.exit('the config is wrong')"),
    "exit with None and an object": Program("raise SystemExit([1, 2])"),
    "exit 300": Program("raise SystemExit(300)"),
    "exit of a huge number": Program("raise SystemExit(2 ** 70)"),
    "exit True": Program("raise SystemExit(True)"),
    "exit without a word": Program("import os; print('out', flush=True); os._exit(9)", has_report=False),
    "chained exceptions": Program(
        "def load():\n    try:\n        {}['key']\n    except KeyError as error:\n        "
        "raise ValueError('bad') from error\ntry:\n    load()\nfinally:\n    int('x')\n"
    ),
    "exception group": Program(
        "def fail(n):\n    raise ValueError(n)\nfound = []\nfor n in (1, 2):\n    try:\n        fail(n)\n"
        "    except ValueError as error:\n        found.append(error)\nraise ExceptionGroup('all', found)"
    ),
    "exception with notes": Program("error = ValueError('x')\nerror.add_note('look here')\nraise error"),
    "base exception": Program("class Stop(BaseException): pass\nraise Stop('now')"),
    "syntax error": Program("print('never')\nfor x in\n"),
    "syntax error in an import": Program("", make=broken_import),
    "recursion": Program("def down(n):\n    return down(n + 1)\ndown(0)"),
    "interrupt": Program("print('out')\nraise KeyboardInterrupt"),
    "interrupt with a thread": Program(THREAD + "raise KeyboardInterrupt"),
    "own broken pipe": Program("raise BrokenPipeError(32, 'the worker is gone')"),
    "own error of a profiler": Program("from torchwatt.core.errors import ConfigError\nraise ConfigError('mine')"),
    "thread that exits": Program("import threading\nthreading.Thread(target=lambda: exit(4)).start()\nprint('main')"),
    "thread that fails": Program(
        "import threading\ndef work():\n    raise ValueError('in a thread')\n"
        "t = threading.Thread(target=work, name='w')\nt.start(); t.join()\nprint('main')"
    ),
    "threads after an exception": Program(THREAD + "raise ValueError('main fails first')"),
    "threads after exit": Program(THREAD + "import sys; sys.exit('text first')"),
    "blocked thread": Program(
        "import queue, threading\nthreading.Thread(target=queue.Queue().get).start()\n" + READY
        + "raise RuntimeError('the loss is nan')",
        send=(TRACEBACK, signal.SIGINT),
    ),
    "pool that nobody shuts down": Program(
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)\n"
        "print(pool.submit(abs, -3).result())\nraise ValueError('with a pool')"
    ),
    "handlers at exit": Program(
        "import atexit, sys\ndef late():\n    import colorsys\n    print('late', sys.argv[0][-3:], __name__)\n"
        "atexit.register(late)\natexit.register(lambda: 1 / 0)\nprint('main')"
    ),
    "exit in a handler at exit": Program("import atexit, sys\natexit.register(sys.exit, 6)\nprint('main')"),
    "what only the exception held": Program(
        "import atexit, sys\nclass Held:\n    def __del__(self):\n        print('freed')\n"
        "def train():\n    held = Held()\n    atexit.register(print, 'handlers')\n    sys.exit(3)\ntrain()"
    ),
    "builtin that fails at exit, and an own hook": Program(
        "import atexit, sys\nsys.unraisablehook = lambda u: print(u.exc_type, u.exc_traceback, u.object)\n"
        "atexit.register(int, 'x')\nprint('main')"
    ),
    "builtin in a thread fails": Program("import threading\nthreading.Thread(target=int, args=('x',)).start()"),
    "builtin as a callback of weak references": Program(
        "import weakref\nclass A: pass\na, b = A(), A()\nrefs = weakref.ref(a, int), weakref.ref(b, int)\ndel a"
    ),
    "logging of an exception": Program(
        "import logging\ntry:\n    {}['a']\nexcept KeyError:\n    logging.exception('caught')\nprint('goes on')"
    ),
    "own hook": Program(
        "import sys\nsys.excepthook = lambda kind, error, trace: print('hook', kind.__name__, trace.tb_lineno)\n\n1 / 0"
    ),
    "own hook that fails": Program(
        "import sys\ndef hook(*_):\n    raise KeyError('hook')\nsys.excepthook = hook\n1 / 0"
    ),
    "own hook that exits": Program("import sys\nsys.excepthook = lambda *_: sys.exit(8)\n1 / 0"),
    "own hook of threads": Program(
        "import threading\nthreading.excepthook = lambda args: print('hook', args.exc_type.__name__)\n"
        "t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()"
    ),
    "last error": Program(
        "import atexit, sys\natexit.register(lambda: print(sys.last_type, sys.last_value, sys.last_traceback.tb_lineno"
        "))\n1 / 0"
    ),
    "SIGTERM": Program(READY + "import time; time.sleep(30)", send=(signal.SIGTERM,), has_report=False),
    "SIGTERM handled": Program(
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(12))\n" + READY
        + "time.sleep(30)", send=(signal.SIGTERM,)
    ),
    "SIGINT": Program("import signal\nprint('out')\nsignal.raise_signal(signal.SIGINT)"),
    "SIGINT handled": Program(
        "import time\ntry:\n    " + READY + "    time.sleep(30)\nexcept KeyboardInterrupt:\n    print('saved')",
        send=(signal.SIGINT,),
    ),
    "SIGKILL": Program("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", has_report=False),
    "abort": Program("import os; os.abort()", has_report=False),
    "SIGPIPE by default": Program(
        "import signal\nsignal.signal(signal.SIGPIPE, signal.SIG_DFL)\nfor n in range(99999): print(n)",
        line="{run} | head -n 1; echo ${{PIPESTATUS[0]}}", has_report=False,
    ),
    "reader that goes": Program("for n in range(99999): print(n)", line="{run} | head -n 1; echo ${{PIPESTATUS[0]}}"),
    "stdout closed": Program("import sys; sys.stdout.close(); sys.exit(2)"),
    "descriptor of stdout closed": Program("import os; print('lost'); os.close(1)"),
    "stderr closed at the end": Program("import sys; sys.stderr.close(); print('done')"),
    "stderr replaced and closed": Program(
        "import sys\nsys.stdout = sys.stderr = log = open('train.log', 'w')\nprint('done')\nlog.close()"
    ),
    "failure with stderr closed": Program("import sys; sys.stderr.close(); 1 / 0"),
    "stderr is None": Program("import sys; sys.stderr = None; 1 / 0"),
    "no stderr": Program("print('out'); 1 / 0", line="{run} 2>&-; echo $?", has_report=False),
    "no stdout": Program("print('out'); 1 / 0", line="{run} >&-; echo $? >&2"),
    "no stdin": Program("import sys; print(sys.stdin)", line="{run} <&-; echo $?"),
    "latin-1": Program("print('é'); print('—')", env={"PYTHONIOENCODING": "latin-1"}),
    "ascii": Program("print('plain'); print('ü')", env={"PYTHONIOENCODING": "ascii"}),
    "replacing": Program("print('ü—'); raise ValueError('—ü')", env={"PYTHONIOENCODING": "ascii:replace"}),
    "utf-8 mode off": Program(
        "import sys; print(sys.stdout.encoding, sys.flags.utf8_mode, ascii('é'))",
        env={"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
    ),
    "exec": Program(
        "import os, sys\nif 'AGAIN' not in os.environ:\n    os.environ['AGAIN'] = '1'\n"
        "    print('first', flush=True)\n    os.execv(sys.executable, [sys.executable, *sys.argv])\nprint('second')"
    ),
    "exec that fails": Program("import os\nos.execv('/no/such/program', ['x'])"),
    "exec by name": Program("import os\nos.execlp('echo', 'echo', 'another')"),
    "fork": Program(
        "import os\npid = os.fork()\nif not pid:\n    print('child')\n    raise SystemExit(3)\n"
        "print('parent', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    ),
    "fork and a failure of the child": Program(
        "import os\npid = os.fork()\nif not pid:\n    raise ValueError('child')\nos.waitpid(pid, 0)\nprint('parent')"
    ),
    "fork of a daemon": Program(
        "import os, time\nif not os.fork():\n    os.close(0); os.close(1); os.close(2); time.sleep(20)\nelse:\n"
        "    print('parent')"
    ),
    **{
        f"processes by {how}": Program(
            "import multiprocessing as mp\nclass Kept:\n    pass\ndef work(x):\n    return x, __name__, "
            f"type(x).__name__\nif __name__ == '__main__':\n    with mp.get_context({how!r}).Pool(1) as pool:\n"
            "        found = pool.map(work, [Kept()])\n    print(type(found[0][0]) is Kept, found[0][1:])\n    exit(2)"
        )
        for how in ("fork", "spawn", "forkserver")
    },
    "what is in main": Program(
        "import sys\nprint(sorted(globals()))\nprint(__name__, __file__, __package__, __spec__, __cached__, __doc__)\n"
        "print(sys.argv, sys.path[0], sys.modules['__main__'].__dict__ is globals())",
        args=["--epochs", "3", "--", "-q", ""],
    ),
    "module of a package": Program("", make=package),
    "folder": Program("", make=folder_program),
    "zip": Program("", make=zipped),
    "link": Program("", make=linked),
    "compiled": Program("", make=compiled),
    "missing module of a package": Program("", make=missing_module),
    "standard input": Program(
        "", stdin="import sys\nprint(sys.argv, __name__, repr(sys.path[0]))\n1 / 0", args=["-", "z"]
    ),
    "optimised and strict": Program(
        "import sys, warnings\nassert False\nprint(sys.flags.optimize, sys.warnoptions)\nwarnings.warn('old')",
        flags=["-O", "-W", "error"],
    ),
    "safe path": Program("import sys\nprint(sys.flags.safe_path, len(sys.path) > 2)\nimport json", flags=["-P"]),
    "warning": Program("import warnings\nwarnings.warn('careful')\nprint('on')"),
    "tracing": Program(
        "import sys\nseen = []\nsys.settrace(lambda frame, event, arg: seen.append(frame.f_code.co_name))\n"
        "def f(): pass\nf()\nsys.settrace(None)\nprint(seen)"
    ),
    "profile hook": Program(
        "import sys\nseen = []\nsys.setprofile(lambda frame, event, arg: seen.append(event))\nabs(1)\n"
        "sys.setprofile(None)\nprint(seen)"
    ),
    "unraisable": Program("class A:\n    def __del__(self):\n        1 / 0\nA()\nprint('on')"),
    "own stream": Program("import io, sys\nsys.stdout = io.StringIO()\nprint('lost')\nsys.__stdout__.write('kept\\n')"),
    "asyncio": Program("import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    1 / 0\nasyncio.run(main())"),
    "what a program finds around it": Program(
        "import os, sys, threading\nprint([t.name for t in threading.enumerate()], threading.active_count())\n"
        "try:\n    os.waitpid(-1, os.WNOHANG)\nexcept ChildProcessError:\n    print('no child')\n"
        "print(__builtins__.print is print, 'torch' in sys.modules)\nos.environ['OMP_NUM_THREADS'] = '1'\n"
        "import torch\nprint(torch.get_num_threads())\ndel sys.excepthook\n1 / 0",
        env={"OMP_NUM_THREADS": "3"}, traced=True,
    ),
    "model that fails": Program(
        "import torch\nfrom torch import nn\nnet = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3))\n"
        "try:\n    net(torch.ones(1, 2))\nexcept RuntimeError:\n    import traceback; traceback.print_exc()\n"
        "net(torch.ones(1, 2))", traced=True,
    ),
    "backward that fails": Program(
        "import torch\nloss = torch.nn.Linear(2, 2)(torch.ones(1, 2)).sum()\nloss.backward()\nloss.backward()",
        traced=True,
    ),
    "data that fails": Program(
        "import torch\nclass Data(torch.utils.data.Dataset):\n    def __len__(self): return 3\n"
        "    def __getitem__(self, n):\n        if n: raise IndexError('row')\n        return n\n"
        "for x in torch.utils.data.DataLoader(Data()): print(x)", traced=True,
    ),
}  # fmt: skip


def seen(program: Program, folder: Path, *, profiled: bool) -> Ended:
    """Run a program in a folder of its own and return what was seen of it."""
    folder.mkdir()
    what = program.make(folder) if program.make else ["train.py"]
    if not program.make:
        (folder / "train.py").write_text(program.text)
    if program.stdin:
        what = []
    prefix = ["-m", "torchwatt", "run"] if profiled else []
    prefix += ["--layers", "off"] if profiled and not program.traced else []
    command = [sys.executable, *program.flags, *prefix, *what, *program.args]
    if program.line:
        command = ["bash", "-c", program.line.format(run=" ".join(command))]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHWATT_STORE": str(folder / "store"), **program.env}
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        first, failed = _ready(process, program.send)
        out, err = process.communicate(program.stdin.encode(), timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    encoding = program.env.get("PYTHONIOENCODING", "utf-8").partition(":")[0]
    own, report = _apart((failed + err).decode(encoding, "backslashreplace"))
    text = (first + out).decode(encoding, "backslashreplace")
    return Ended(process.returncode, _same(text, folder), _same(own, folder), report)


def _ready(process: subprocess.Popen[bytes], send: Sequence[int]) -> tuple[bytes, bytes]:
    """Send signals once a program is ready; TRACEBACK waits until it has ended its traceback."""
    assert process.stdout is not None
    assert process.stderr is not None
    out = process.stdout.readline() if send else b""
    err = b""
    for number in send:
        while number == TRACEBACK and b"Error: " not in err.rpartition(b"\n")[0]:
            err += process.stderr.readline()
        if number == TRACEBACK:
            _until_it_rests(process.pid)  # it waits for its threads
        else:
            os.kill(process.pid, number)
    return out, err


def _until_it_rests(pid: int, rest_s: float = 1.0) -> None:
    """Wait until a process has slept, and used no CPU time, for a while: on a busy machine it is runnable meanwhile."""
    before, since_s = "", time.monotonic()
    while time.monotonic() < since_s + rest_s:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used = " ".join(rest[10:12])  # ticks of user and of system time
        if state != "S" or used != before:
            before, since_s = used, time.monotonic()
        time.sleep(0.02)


def _apart(err: str) -> tuple[str, str]:
    """Tell a script's own stderr from our report."""
    report = REPORT.search(err)
    text = report[0] if report else ""
    rest = err.replace(text, "", 1) if text else err
    notes = "".join(line for line in rest.splitlines(keepends=True) if line.startswith("torchwatt: "))
    own = "".join(line for line in rest.splitlines(keepends=True) if not line.startswith("torchwatt: "))
    return own, text + notes


def _same(text: str, folder: Path) -> str:
    """Take out what differs between two runs of plain Python, or with the depth of the stack."""
    text = text.replace(str(folder), "<folder>")
    text = re.sub(r'  File "<frozen runpy>".*\n', "", text)
    text = re.sub(r"0x[0-9a-f]+|(?<=object refcount : )\d+", "<number>", text)
    text = re.sub(r'  File "[^"]*threading.py", line \d+, in .*\n(?:    .*\n)*', "", text)  # where an interrupt came
    return re.sub(r"Previous line repeated \d+ more times", "Previous line repeated many times", text)
