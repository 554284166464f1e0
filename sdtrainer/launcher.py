"""Start sdtrainer: prepare the project's own `.venv` once, then hand over to the app.

Owns the choice of the PyTorch build, the `.venv` folder, and the stamps that say it is complete.
`launch.sh` and `launch.bat` only find a Python and run this file with `-I`, so that no module beside
it can stand in for one of the standard library.  Nothing is installed yet when it runs: it imports the
standard library alone, in syntax that Python 3.6 still reads, so that an old Python gets a sentence
instead of a SyntaxError.  Every word goes to stderr; stdout belongs to the command that is started.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

PROJECT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON = (3, 14)
EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130
TORCH_INDEX = "https://download.pytorch.org/whl/"

Version = Tuple[int, ...]
CudaBuild = NamedTuple(
    "CudaBuild",
    [
        ("tag", str),
        ("cuda", str),
        ("linux_driver", Version),
        ("windows_driver", Version),
        ("capability_from", Version),
        ("capability_below", Version),
    ],
)
# Newest first.  PyTorch 2.13 is published for CUDA 12.6, 13.0 and 13.2 (its RELEASE.md; 12.8 ended with
# 2.11); 13.2 is called experimental and reaches no card that 13.0 does not, so it is left out.
# Capabilities are the architectures in those builds (5.0-9.0 and 7.5-12.0); code for x.y also runs on any
# later x.z, hence the bounds at the next major number.  Drivers are NVIDIA's minimums for running any
# CUDA of that major number.  Not verified: either build on its oldest driver, anything on Windows (for
# CUDA 13 NVIDIA names 580 without a figure for Windows), and Linux on ARM, whose 12.6 build holds code
# for 8.0 and 9.0 only.
CUDA_BUILDS = (
    CudaBuild("cu130", "13.0", (580,), (580,), (7, 5), (13, 0)),
    CudaBuild("cu126", "12.6", (525, 60, 13), (528, 33), (5, 0), (10, 0)),
)

Gpu = NamedTuple("Gpu", [("driver", str), ("capability", Optional[Version]), ("name", str)])
TorchChoice = NamedTuple("TorchChoice", [("build", str), ("attempts", List[List[str]]), ("reason", str)])
PipOutcome = NamedTuple("PipOutcome", [("code", int), ("no_such_torch", bool)])


class SetupFailed(Exception):
    """Preparing `.venv` failed in an orderly way; the text is the sentence to show."""


class Place:
    """The paths of one copy of the project."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requirements = root / "requirements.txt"
        self.test_requirements = root / "tests" / "requirements.txt"
        self.venv = root / ".venv"
        self.python = self.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.stamp = self.venv / ".installed.json"
        self.test_stamp = self.venv / ".installed-tests.json"
        self.unfinished = self.venv / ".unfinished"
        self.lock = root / ".venv.lock"


def main(arguments: List[str], root: Path = PROJECT) -> int:
    """Prepare `.venv` where needed, run what the arguments name, and return its exit code."""
    refusal = python_refusal(sys.version_info[:2], bool(importlib.util.find_spec("ensurepip")))
    if refusal:
        say(refusal)
        return EXIT_REFUSED
    place = Place(root)
    try:
        prepare(place, testing=arguments[:1] == ["test"])
    except SetupFailed as failure:
        say(str(failure))
        return EXIT_FAILED
    except OSError as error:
        say(f"Cannot prepare {place.venv} ({error}): close every running sdtrainer and try again.")
        return EXIT_FAILED
    except KeyboardInterrupt:
        say("Interrupted; the next start installs again.")
        return EXIT_INTERRUPTED
    return hand_over(place, arguments)


def python_refusal(version: Version, has_ensurepip: bool) -> str:
    """The sentence that turns this Python away, empty when it is fit."""
    found = dotted(version)
    if not OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        return "Install Python {} to {} from python.org or your system's packages: this is Python {}.".format(
            dotted(OLDEST_PYTHON), dotted(NEWEST_PYTHON), found
        )
    if not has_ensurepip:
        packages = f"the package python{found}-venv, or Python from python.org"
        return f"Install {packages}: this Python {found} cannot make a virtual environment."
    return ""


def command_for(arguments: List[str], root: Path) -> List[str]:
    """What to give to the venv's Python: the app for no verb, pytest for `test`, else the package."""
    if is_verb(arguments):
        # Without -P a folder named sdtrainer where the user stands would be run instead of this one.
        return ["-P", "-m", "sdtrainer"] + arguments
    if arguments[:1] == ["test"]:
        return ["-m", "pytest"] + arguments[1:]
    return [str(root / "app.py")] + arguments


def parse_gpus(text: str) -> List[Gpu]:
    """The cards in nvidia-smi's `driver_version[,compute_cap],name` lines; other lines are skipped."""
    gpus = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if numbers(fields[0]) and len(fields) > 1:
            gpus.append(Gpu(fields[0], numbers(fields[1]) if len(fields) > 2 else None, fields[-1]))
    return gpus


def choose_torch(version: str, system: str, machine: str, gpus: Optional[List[Gpu]]) -> TorchChoice:
    """The PyTorch build for a machine and the pip arguments to try in turn; `gpus` None: no driver."""
    if system == "Darwin":
        return TorchChoice("cpu", [["torch==" + version]], took(version, "macOS", "there is only one build"))
    if gpus is None:
        return cpu_choice(version, system, "no NVIDIA driver was found")
    if not gpus:
        return cpu_choice(version, system, "nvidia-smi reports no working card, so check the NVIDIA driver")
    # The strongest card is the one to train on: it must run, and of the builds that run it the one that
    # reaches most of the others is taken, so that a second, older card is not lost without need.
    strongest = max(gpus, key=lambda gpu: gpu.capability or ())
    fitting = [build for build in CUDA_BUILDS if runs(build, strongest, system)]
    if not fitting:
        return cpu_choice(version, system, what_is_missing(strongest, system))
    build = max(fitting, key=lambda build: sum(runs(build, gpu, system) for gpu in gpus))
    reason = took(version, "CUDA " + build.cuda, why_it_fits(build, strongest, gpus, system))
    return TorchChoice(build.tag, cuda_attempts(version, build, system, machine), reason)


def is_current(stamp: Dict[str, str], requirements: str, build: str) -> bool:
    """Whether the last complete installation had these requirements and this PyTorch build."""
    return stamp.get("requirements") == requirements and stamp.get("torch") == build


def fingerprint(*files: Path) -> str:
    """A hash of the files' text that does not depend on git's choice of line endings."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


def prepare(place: Place, testing: bool) -> None:
    """Bring `.venv` up to date; when it is already, return at once without pip and without network."""
    if app_is_ready(place) and (not testing or tests_are_ready(place)):
        return
    with only_launcher(place.lock):
        # Another launcher may have finished the work while this one waited for the lock.
        if not app_is_ready(place):
            install_app(place)
        if testing and not tests_are_ready(place):
            install_tests(place)


def say(text: str) -> None:
    """Show one line to the user, away from stdout."""
    sys.stderr.write("sdtrainer: " + text + "\n")
    sys.stderr.flush()


def dotted(version: Version) -> str:
    return ".".join(str(number) for number in version)


def numbers(text: str) -> Optional[Version]:
    """`580.95.05` as numbers; None for `[N/A]` and other words."""
    if not re.match(r"\d+(\.\d+)*$", text):
        return None
    return tuple(int(part) for part in text.split("."))


def is_verb(arguments: List[str]) -> bool:
    return bool(arguments) and not arguments[0].startswith("-") and arguments[0] != "test"


def took(version: str, target: str, because: str) -> str:
    return f"PyTorch {version} for {target}: {because}."


def cpu_choice(version: str, system: str, because: str) -> TorchChoice:
    plain = ["torch==" + version]
    # Windows' ordinary build is the CPU build.  Linux' ordinary one brings gigabytes of CUDA libraries,
    # so it comes last, for machines that can reach neither a mirror nor PyTorch's index with +cpu.
    attempts = [plain]
    if system == "Linux":
        cpu = ["torch==" + version + "+cpu"]
        attempts = [cpu, cpu + ["--extra-index-url", TORCH_INDEX + "cpu"], plain]
    return TorchChoice("cpu", attempts, took(version, "the CPU", because))


def cuda_attempts(version: str, build: CudaBuild, system: str, machine: str) -> List[List[str]]:
    own_index = [f"torch=={version}+{build.tag}", "--extra-index-url", TORCH_INDEX + build.tag]
    if build is CUDA_BUILDS[0] and system == "Linux" and machine == "x86_64":
        # Three equals signs: two would also accept, and prefer, a +cpu build that pip has at hand.
        return [["torch===" + version], own_index]
    return [own_index]


def why_it_fits(build: CudaBuild, strongest: Gpu, gpus: List[Gpu], system: str) -> str:
    left_out = [gpu.name for gpu in gpus if not runs(build, gpu, system)]
    others = ", {} cannot".format(" and ".join(left_out)) if left_out else ""
    return f"{strongest.name} with driver {strongest.driver} can use it{others}"


def runs(build: CudaBuild, gpu: Gpu, system: str) -> bool:
    return (numbers(gpu.driver) or ()) >= least_driver(build, system) and reaches(build, gpu)


def least_driver(build: CudaBuild, system: str) -> Version:
    return build.windows_driver if system == "Windows" else build.linux_driver


def reaches(build: CudaBuild, gpu: Gpu) -> bool:
    # Old drivers (470 is one) do not tell the capability; then the driver alone decides.
    return gpu.capability is None or build.capability_from <= gpu.capability < build.capability_below


def what_is_missing(gpu: Gpu, system: str) -> str:
    for build in CUDA_BUILDS:
        if reaches(build, gpu):
            return "update the NVIDIA driver from {} to {} or newer and start again to use {}".format(
                gpu.driver, dotted(least_driver(build, system)), gpu.name
            )
    return f"no CUDA build is made for {gpu.name} (compute capability {dotted(gpu.capability or ())})"


def app_is_ready(place: Place) -> bool:
    stamp = read_stamp(place.stamp)
    if not is_whole(place) or not stamp:
        return False
    build = stamp.get("torch", "")
    # A driver may have come or been updated since the CPU build was taken; without one this costs nothing.
    if build == "cpu" and find_nvidia_smi():
        choice = detect_torch(place)
        if choice.build == "cpu":
            say(choice.reason)
        build = choice.build
    return is_current(stamp, fingerprint(place.requirements), build)


def tests_are_ready(place: Place) -> bool:
    wanted = fingerprint(place.requirements, place.test_requirements)
    return read_stamp(place.test_stamp).get("requirements") == wanted


def read_stamp(file: Path) -> Dict[str, str]:
    try:
        stamp = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def is_whole(place: Place) -> bool:
    """Whether `.venv` was finished and its Python is still there and the one it was made with."""
    if place.unfinished.exists() or not place.python.exists():
        return False
    try:
        made_with = (place.venv / "pyvenv.cfg").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    home = re.search(r"(?m)^home *= *(.+)$", made_with)
    version = re.search(r"(?m)^version(?:_info)? *= *(\d+)\.(\d+)", made_with)
    if not home or not version or not Path(home.group(1).strip()).exists():
        return False
    minor = (int(version.group(1)), int(version.group(2)))
    # A system upgrade can turn the linked Python into the next one, which sees none of the packages.
    same = not runs_inside(place) or minor == sys.version_info[:2]
    return same and OLDEST_PYTHON <= minor <= NEWEST_PYTHON


def runs_inside(place: Place) -> bool:
    return os.path.realpath(sys.prefix) == os.path.realpath(str(place.venv))


def find_nvidia_smi() -> Optional[str]:
    # WSL and old Windows drivers keep it outside the search path.
    elsewhere = r"C:\Program Files\NVIDIA Corporation\NVSMI" if os.name == "nt" else "/usr/lib/wsl/lib"
    return shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=elsewhere)


def detect_torch(place: Place) -> TorchChoice:
    smi = find_nvidia_smi()
    gpus = read_gpus(smi) if smi else None
    return choose_torch(torch_version(place.requirements), platform.system(), platform.machine(), gpus)


def read_gpus(smi: str) -> List[Gpu]:
    # Old drivers (470 is one) refuse the whole query because of compute_cap, hence the second one.
    for fields in ("driver_version,compute_cap,name", "driver_version,name"):
        try:
            answer = subprocess.run(
                [smi, "--query-gpu=" + fields, "--format=csv,noheader"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=30,
            )
        except (OSError, subprocess.TimeoutExpired):
            return []
        gpus = parse_gpus(answer.stdout.decode("utf-8", "replace"))
        if gpus:
            return gpus
    return []


def torch_version(requirements: Path) -> str:
    pinned = re.search(r"(?m)^torch==([\w.]+)", requirements.read_text(encoding="utf-8"))
    if not pinned:
        raise SetupFailed("Restore requirements.txt: it no longer pins torch.")
    return pinned.group(1)


@contextlib.contextmanager
def only_launcher(file: Path) -> Iterator[None]:
    """Hold the lock that keeps two launchers from installing at once; the system frees it on death."""
    with open(str(file), "a") as handle:
        waiting = False
        while not try_lock(handle.fileno()):
            if not waiting:
                say("Another launcher is installing; waiting for it.")
            waiting = True
            time.sleep(0.2)
        yield


def try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def install_app(place: Place) -> None:
    """Install PyTorch and the requirements; a crash on the way leaves the mark that forces a new venv."""
    choice = detect_torch(place)
    wanted = fingerprint(place.requirements)
    if not is_whole(place) or not has_pip(place):
        make_venv(place)
    with marked_unfinished(place):
        for stamp in (place.stamp, place.test_stamp):
            remove(stamp)
        say(choice.reason)
        install_torch(place, choice)
        if pip(place, ["-r", str(place.requirements)]).code:
            raise SetupFailed("Installing failed: mend what pip says above, then start again.")
        check_imports(place)
        write_stamp(place.stamp, {"requirements": wanted, "torch": choice.build})


def install_tests(place: Place) -> None:
    wanted = fingerprint(place.requirements, place.test_requirements)
    with marked_unfinished(place):
        # The constraint keeps the tests' packages from moving what the app runs on.
        if pip(place, ["-r", str(place.test_requirements), "-c", str(place.requirements)]).code:
            raise SetupFailed("Installing for the tests failed: mend what pip says above, then start again.")
        write_stamp(place.test_stamp, {"requirements": wanted})


def has_pip(place: Place) -> bool:
    try:
        return subprocess.call([str(place.python), "-I", "-c", "import pip"], stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def make_venv(place: Place) -> None:
    base_python = python_outside(place)
    if place.venv.exists():
        say("Replacing the incomplete folder .venv.")
        shutil.rmtree(str(place.venv))
    say("Installing into .venv; the first time this takes some minutes.")
    place.venv.mkdir()
    place.unfinished.touch()
    if subprocess.call([base_python, "-I", "-m", "venv", str(place.venv)], stdout=sys.stderr):
        raise SetupFailed("Python could not make .venv: mend what it says above, then start again.")


def python_outside(place: Place) -> str:
    """The Python to make `.venv` with; the running one may be the link inside it, about to be removed."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    return os.path.realpath(base) if place.venv in Path(base).parents else base


@contextlib.contextmanager
def marked_unfinished(place: Place) -> Iterator[None]:
    """Only an orderly end takes the mark away: what a killed pip leaves behind cannot be trusted."""
    place.unfinished.touch()
    try:
        yield
    except SetupFailed:
        remove(place.unfinished)
        raise
    remove(place.unfinished)


def remove(file: Path) -> None:
    if file.exists():
        file.unlink()


def install_torch(place: Place, choice: TorchChoice) -> None:
    for attempt in choice.attempts:
        if len(choice.attempts) > 1 and attempt == ["torch==" + torch_version(place.requirements)]:
            say("The CPU build is out of reach; the ordinary one brings gigabytes of CUDA libraries.")
        say("Trying " + " ".join(attempt) + ".")
        outcome = pip(place, attempt)
        if not outcome.code:
            return
        # Only "there is no such build" is a reason to try another; a full disk or a lost line is not.
        if not outcome.no_such_torch:
            break
    raise SetupFailed("Installing PyTorch failed: mend what pip says above, then start again.")


def pip(place: Place, arguments: List[str]) -> PipOutcome:
    command = [str(place.python), "-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    # Wheels only: a compiler is not to be expected here, and building fails in hundreds of lines.
    # Compiling every module took a third of the time; Python compiles what it imports anyway.
    command += ["--only-binary=:all:", "--no-compile"] + arguments
    no_such_torch = False
    child = subprocess.Popen(command, stdout=sys.stderr, stderr=subprocess.PIPE)
    with child:
        for line in child.stderr or []:
            text = line.decode("utf-8", "replace")
            no_such_torch = no_such_torch or "No matching distribution found for torch=" in text
            sys.stderr.write(text)
            sys.stderr.flush()
    return PipOutcome(child.returncode, no_such_torch)


def check_imports(place: Place) -> None:
    if subprocess.call([str(place.python), "-I", "-c", "import torch, gradio"], stdout=sys.stderr):
        hint = " (on Windows install Microsoft's Visual C++ Redistributable)" if os.name == "nt" else ""
        raise SetupFailed(
            f"The installed packages do not load{hint}: mend what is said above, then start again."
        )


def write_stamp(file: Path, stamp: Dict[str, str]) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(stamp), encoding="utf-8")
    os.replace(str(fresh), str(file))


def hand_over(place: Place, arguments: List[str]) -> int:
    command = [str(place.python)] + command_for(arguments, place.root)
    if is_verb(arguments):
        # Paths in a verb's arguments mean the folder the user stands in, so only the search path moves.
        known = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(place.root)] + ([known] if known else []))
    else:
        os.chdir(str(place.root))
    if os.name != "nt":
        os.execv(command[0], command)
    return wait_for(subprocess.Popen(command))


def wait_for(child: "subprocess.Popen[bytes]") -> int:
    """The child's exit code; Ctrl+C reaches the child too, which decides itself how to end."""
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
