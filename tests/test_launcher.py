"""The launchers: their decisions as tables, and real starts of a small project in a difficult folder."""

import ast
import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from sdtrainer import launcher

ROOT = Path(__file__).resolve().parent.parent
posix_only = pytest.mark.skipif(os.name == "nt", reason="launch.sh is for Linux and macOS")

RTX_5090 = "580.95.05, 12.0, NVIDIA GeForce RTX 5090"
RTX_3090 = "580.95.05, 8.6, NVIDIA GeForce RTX 3090"
GTX_1060 = "580.95.05, 6.1, NVIDIA GeForce GTX 1060"


@pytest.mark.parametrize(
    ("smi", "gpus"),
    [
        ("", []),
        ("No devices were found\n", []),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", []),
        ('Field "compute_cap" is not a valid field to query.\n\n', []),
        (RTX_3090 + "\n", [("580.95.05", (8, 6), "NVIDIA GeForce RTX 3090")]),
        ("576.88, [N/A], NVIDIA RTX A6000\r\n", [("576.88", None, "NVIDIA RTX A6000")]),
        ("470.256.02, GeForce GTX 780\n", [("470.256.02", None, "GeForce GTX 780")]),
        (RTX_3090 + "\n" + GTX_1060, [("580.95.05", (8, 6)), ("580.95.05", (6, 1))]),
    ],
)
def test_reads_what_nvidia_smi_prints(smi, gpus):
    read = launcher.parse_gpus(smi)
    assert [gpu[: len(wanted)] for gpu, wanted in zip(read, gpus, strict=True)] == gpus


@pytest.mark.parametrize(
    ("system", "smi", "build", "said"),
    [
        ("Linux", RTX_5090, "cu130", "CUDA 13.0"),
        ("Linux", RTX_3090, "cu130", "NVIDIA GeForce RTX 3090"),
        ("Linux", "580.65.06, 7.5, Tesla T4", "cu130", "CUDA 13.0"),
        ("Linux", "580.65.06, 12.1, NVIDIA GB10", "cu130", "CUDA 13.0"),
        ("Linux", "580.65.06, 7.0, Tesla V100", "cu126", "CUDA 12.6"),
        ("Linux", "575.57.08, 8.9, NVIDIA GeForce RTX 4090", "cu126", "driver 575.57.08"),
        ("Linux", "525.60.13, 9.0, NVIDIA H100", "cu126", "CUDA 12.6"),
        ("Linux", "525.53, 8.6, NVIDIA GeForce RTX 3090", "cpu", "update the NVIDIA driver"),
        ("Linux", "570.86.10, 12.0, NVIDIA GeForce RTX 5090", "cpu", "from 570.86.10 to 580 or newer"),
        ("Linux", "470.256.02, GeForce GTX 780", "cpu", "update the NVIDIA driver"),
        ("Linux", "535.54.03, [N/A], NVIDIA RTX A6000", "cu126", "CUDA 12.6"),
        ("Linux", "470.256.02, 6.1, GeForce GTX 1060", "cpu", "to 525.60.13 or newer"),
        ("Linux", "525.60.13, 3.7, Tesla K80", "cpu", "no CUDA build is made for Tesla K80"),
        ("Linux", "", "cpu", "check the NVIDIA driver"),
        ("Windows", "528.33, 8.6, NVIDIA GeForce RTX 3060", "cu126", "CUDA 12.6"),
        ("Windows", "528.24, 8.6, NVIDIA GeForce RTX 3060", "cpu", "from 528.24 to 580 or newer"),
        ("Windows", "581.29, 8.6, NVIDIA GeForce RTX 3060", "cu130", "CUDA 13.0"),
        ("Linux", None, "cpu", "no NVIDIA driver was found"),
        ("Windows", None, "cpu", "no NVIDIA driver was found"),
        ("Darwin", None, "cpu", "macOS"),
    ],
)
def test_takes_the_newest_build_that_driver_and_card_support(system, smi, build, said):
    gpus = None if smi is None else launcher.parse_gpus(smi)
    choice = launcher.choose_torch("2.13.0", system, "x86_64", gpus)
    assert choice.build == build
    assert said in choice.reason
    assert choice.reason.count("\n") == 0


@pytest.mark.parametrize(
    ("cards", "build", "said"),
    [
        ([RTX_3090, RTX_5090], "cu130", "RTX 5090"),
        ([GTX_1060, RTX_3090], "cu126", "RTX 3090"),
        ([RTX_5090, GTX_1060], "cu130", "NVIDIA GeForce GTX 1060 cannot"),
        ([GTX_1060, GTX_1060, RTX_5090], "cu130", "GTX 1060 cannot"),
        (
            [RTX_5090.replace("580", "575"), RTX_3090.replace("580", "575")],
            "cpu",
            "to use NVIDIA GeForce RTX 5090",
        ),
        (["580.95.05, 3.5, GeForce GTX 780", RTX_3090], "cu130", "GeForce GTX 780 cannot"),
    ],
)
def test_several_cards_follow_the_strongest_and_keep_the_others_where_possible(cards, build, said):
    choice = launcher.choose_torch("2.13.0", "Linux", "x86_64", launcher.parse_gpus("\n".join(cards)))
    assert (choice.build, said in choice.reason) == (build, True), choice.reason


@pytest.mark.parametrize(
    ("system", "machine", "smi", "attempts"),
    [
        ("Linux", "x86_64", None, ["torch==2.13.0+cpu", "torch==2.13.0+cpu .../cpu", "torch==2.13.0"]),
        ("Linux", "x86_64", RTX_3090, ["torch===2.13.0", "torch==2.13.0+cu130 .../cu130"]),
        ("Linux", "x86_64", GTX_1060, ["torch==2.13.0+cu126 .../cu126"]),
        ("Linux", "aarch64", RTX_5090, ["torch==2.13.0+cu130 .../cu130"]),
        ("Windows", "AMD64", None, ["torch==2.13.0"]),
        ("Windows", "AMD64", RTX_3090, ["torch==2.13.0+cu130 .../cu130"]),
        ("Darwin", "arm64", None, ["torch==2.13.0"]),
    ],
)
def test_pip_is_asked_for_exactly_the_chosen_build(system, machine, smi, attempts):
    gpus = None if smi is None else launcher.parse_gpus(smi)
    index = "--extra-index-url " + launcher.TORCH_INDEX
    asked = [" ".join(attempt) for attempt in launcher.choose_torch("2.13.0", system, machine, gpus).attempts]
    assert asked == [attempt.replace(".../", index) for attempt in attempts]


@pytest.mark.parametrize(
    ("version", "has_ensurepip", "said"),
    [
        ((3, 6), True, "Install Python 3.11 to 3.14"),
        ((3, 10), True, "this is Python 3.10"),
        ((3, 11), True, ""),
        ((3, 14), True, ""),
        ((3, 15), True, "this is Python 3.15"),
        ((3, 12), False, "Install the package python3.12-venv"),
    ],
)
def test_an_unfit_python_is_told_what_to_install(version, has_ensurepip, said):
    refusal = launcher.python_refusal(version, has_ensurepip)
    assert said in refusal if said else refusal == ""


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ([], ["/p/app.py"]),
        (["--port", "7000", "--no-browser"], ["/p/app.py", "--port", "7000", "--no-browser"]),
        (["train", "my run.toml"], ["-P", "-m", "sdtrainer", "train", "my run.toml"]),
        (["demo", "--steps", "2"], ["-P", "-m", "sdtrainer", "demo", "--steps", "2"]),
        (["test"], ["-m", "pytest"]),
        (["test", "-k", "a or b"], ["-m", "pytest", "-k", "a or b"]),
    ],
)
def test_arguments_name_the_app_the_tests_or_a_verb(arguments, command):
    assert launcher.command_for(arguments, Path("/p")) == [part.replace("/", os.sep, 2) for part in command]


@pytest.mark.parametrize(
    ("stamp", "current"),
    [
        ({"requirements": "a", "torch": "cpu"}, True),
        ({"requirements": "b", "torch": "cpu"}, False),
        ({"requirements": "a", "torch": "cu130"}, False),
        ({}, False),
    ],
)
def test_installs_again_only_for_other_requirements_or_another_build(stamp, current):
    assert launcher.is_current(stamp, "a", "cpu") is current


def test_a_damaged_stamp_counts_as_none(tmp_path):
    for text in ("", "{", "[]"):
        (tmp_path / "stamp").write_text(text)
        assert launcher.read_stamp(tmp_path / "stamp") == {}


def test_line_endings_do_not_change_the_fingerprint(tmp_path):
    (tmp_path / "unix").write_bytes(b"a==1\nb==2\n")
    (tmp_path / "windows").write_bytes(b"a==1\r\nb==2\r\n")
    assert launcher.fingerprint(tmp_path / "unix") == launcher.fingerprint(tmp_path / "windows")


def test_an_old_python_can_read_the_launcher():
    ast.parse((ROOT / "sdtrainer" / "launcher.py").read_text(), feature_version=(3, 6))


def test_the_launcher_refuses_before_it_writes_anything(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda name: None)
    assert launcher.main([], tmp_path) == launcher.EXIT_REFUSED
    said = capfd.readouterr()
    assert (said.out, said.err.count("\n"), "-venv" in said.err) == ("", 1, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["requirements.txt", "tests/requirements.txt"])
def test_every_requirement_is_pinned_and_explained(name):
    lines = (ROOT / name).read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z-]+==[\d.]+  # .+", line)] == []


def test_both_scripts_look_for_the_pythons_that_the_launcher_takes():
    oldest, newest = launcher.OLDEST_PYTHON, launcher.NEWEST_PYTHON
    minors = {f"3.{minor}" for minor in range(oldest[1], newest[1] + 1)}
    shell, batch = (ROOT / "launch.sh").read_text(), (ROOT / "launch.bat").read_bytes().decode("ascii")
    assert set(re.findall(r"python(3\.\d+)", shell)) == minors
    assert f"{oldest} <= sys.version_info[:2] <= {newest}" in shell
    assert set(re.search(r"in \(([\d. ]+)\)", batch).group(1).split()) == minors
    assert batch.count("\n") == batch.count("\r\n"), "cmd needs CRLF to find its labels reliably"


@posix_only
@pytest.mark.parametrize(
    ("script", "driver"),
    [
        (f'echo "{RTX_3090}"', "580.95.05"),
        (
            'case $1 in *compute_cap*) exit 2;; esac; echo "470.256.02, GeForce GTX 780"',
            "470.256.02",
        ),
        ("echo No devices were found; exit 6", None),
        ("exit 9", None),
    ],
)
def test_asks_a_real_process_for_the_cards(tmp_path, script, driver):
    gpus = launcher.read_gpus(str(program(tmp_path / "nvidia-smi", script)))
    assert [gpu.driver for gpu in gpus] == ([driver] if driver else [])


@posix_only
@pytest.mark.parametrize(
    ("scripts", "said"),
    [
        ({}, "Install Python 3.11 to 3.14"),
        (
            {"python3": "exit 3", "python3.13": "echo broken shim >&2; exit 127"},
            "Install Python 3.11 to 3.14",
        ),
        ({"python3.12": 'case "$2" in -c) exit 4;; esac; echo "no ensurepip" >&2; exit 2'}, "no ensurepip"),
    ],
)
def test_the_shell_refuses_in_one_sentence_without_a_fit_python(tmp_path, scripts, said):
    project = make_project(tmp_path / "project")
    for name, script in scripts.items():
        program(tmp_path / name, script)
    (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
    answer = start(project, PATH=str(tmp_path))
    assert (answer.returncode, answer.stdout, answer.stderr.count("\n")) == (2, "", 1)
    assert said in answer.stderr
    assert not (project / ".venv").exists()


@posix_only
def test_a_real_older_python_is_refused():
    older = next((found for minor in (10, 9, 8, 7, 6) for found in pythons(minor)), None)
    if older is None:
        pytest.skip("no Python older than 3.11 here")
    answer = subprocess.run(
        [older, "-I", str(ROOT / "sdtrainer/launcher.py")], capture_output=True, text=True
    )
    assert (answer.returncode, answer.stdout, answer.stderr.count("\n")) == (2, "", 1)
    assert "Install Python 3.11 to 3.14" in answer.stderr


@posix_only
def test_first_start_installs_and_the_second_runs_no_pip(tmp_path):
    project = make_project(tmp_path / "Über straße (dir) & co")
    first = start(project, "train", "a b.toml", wheels=tmp_path)
    assert (first.returncode, first.stdout) == (0, "verb train|a b.toml\n"), first.stderr
    assert "PyTorch 2.13.0 for the CPU: no NVIDIA driver was found." in first.stderr
    assert installed(project) == {"torch-2.13.0+cpu", "gradio-1.0"}

    second = start(project, "--port", "7000")  # no wheels and no index: pip could only fail
    assert (second.returncode, second.stdout, second.stderr) == (7, "app --port|7000\n", "")


@posix_only
@pytest.mark.slow
def test_an_interrupted_or_damaged_venv_is_replaced(tmp_path):
    project = make_project(tmp_path / "project")
    for damage in ("", ".unfinished", "bin/python", "pyvenv.cfg"):
        if damage == ".unfinished":
            (project / ".venv" / damage).touch()
        elif damage:
            (project / ".venv" / damage).unlink()
        answer = start(project, "show", wheels=tmp_path)
        assert (answer.returncode, answer.stdout) == (0, "verb show\n"), answer.stderr
        assert ("Replacing" in answer.stderr) == bool(damage)
        assert not (project / ".venv" / ".unfinished").exists()


@posix_only
@pytest.mark.slow
def test_a_killed_installation_starts_over(tmp_path):
    project = make_project(tmp_path / "project")
    running = subprocess.Popen(
        [str(project / "launch.sh"), "show"], env=environment(wheels=tmp_path), start_new_session=True
    )
    while not (project / ".venv" / ".unfinished").exists():
        assert running.poll() is None
        time.sleep(0.05)
    os.killpg(running.pid, 9)
    running.wait()
    answer = start(project, "show", wheels=tmp_path)
    assert (answer.returncode, "Replacing" in answer.stderr) == (0, True), answer.stderr


@posix_only
@pytest.mark.slow
def test_a_failed_installation_is_reported_and_taken_up_again(tmp_path):
    project = make_project(tmp_path / "project")
    (project / "requirements.txt").write_text("torch==2.13.0\ngradio==2.0\n")
    failed = start(project, "show", wheels=tmp_path)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "Installing failed: mend what pip says above" in failed.stderr
    wheel(tmp_path, "gradio", "2.0", {"gradio.py": ""})
    resumed = start(project, "show", wheels=tmp_path)
    assert (resumed.returncode, "Replacing" in resumed.stderr) == (0, False), resumed.stderr


@posix_only
@pytest.mark.slow
def test_changed_requirements_and_a_new_driver_install_again(tmp_path):
    project = make_project(tmp_path / "project")
    assert start(project, "show", wheels=tmp_path).returncode == 0
    wheel(tmp_path, "gradio", "2.0", {"gradio.py": ""})
    (project / "requirements.txt").write_text("torch==2.13.0\ngradio==2.0\n")
    assert start(project, "show", wheels=tmp_path).returncode == 0
    assert "gradio-2.0" in installed(project)

    # The wheel for the driver has the plain version, which pip ranks below the +cpu one beside it.
    wheel(tmp_path, "torch", "2.13.0", {"torch.py": ""})
    bin_folder = tmp_path / "driver"
    bin_folder.mkdir()
    program(bin_folder / "nvidia-smi", f'echo "{RTX_3090}"')
    path = str(bin_folder) + os.pathsep + python_path(tmp_path)
    answer = start(project, "show", wheels=tmp_path, PATH=path)
    assert (answer.returncode, "CUDA 13.0" in answer.stderr) == (0, True), answer.stderr
    assert "torch-2.13.0" in installed(project)
    assert start(project, "show", PATH=path).stderr == ""


@posix_only
@pytest.mark.slow
def test_without_a_cpu_build_in_reach_the_ordinary_one_comes_last(tmp_path):
    project = make_project(tmp_path / "project")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "torch", "2.13.0", {"torch.py": ""})
    wheel(wheels, "gradio", "1.0", {"gradio.py": ""})
    answer = start(project, "show", wheels=tmp_path, PIP_FIND_LINKS=str(wheels))
    assert (answer.returncode, installed(project)) == (0, {"torch-2.13.0", "gradio-1.0"}), answer.stderr
    assert answer.stderr.count("sdtrainer: Trying torch==2.13.0") == 3
    assert "brings gigabytes" in answer.stderr


@posix_only
@pytest.mark.slow
def test_two_launchers_at_once_install_once(tmp_path):
    project = make_project(tmp_path / "project")
    log = tmp_path / "pip.log"
    command, env = [str(project / "launch.sh"), "show"], environment(wheels=tmp_path, PIP_LOG=str(log))
    both = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [launched.communicate()[1] for launched in both]
    assert [launched.returncode for launched in both] == [0, 0], said
    assert sorted("Another launcher is installing" in text for text in said) == [False, True]
    assert log.read_text().count("Successfully installed gradio-1.0") == 1


@posix_only
@pytest.mark.slow
def test_the_test_verb_installs_its_own_requirements_once(tmp_path):
    project = make_project(tmp_path / "project")
    wheel(tmp_path, "pytest", "1.0", {"pytest.py": "import sys; print('pytest', *sys.argv[1:]); sys.exit(5)"})
    for wheels in (tmp_path, None):
        answer = start(project, "test", "-k", "x", wheels=wheels)
        assert (answer.returncode, answer.stdout) == (5, "pytest -k x\n"), answer.stderr


def make_project(folder: Path) -> Path:
    """A project with the real launchers, and an app, a package and requirements small enough to install."""
    (folder / "sdtrainer").mkdir(parents=True)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "launch.sh", folder)
    shutil.copy(ROOT / "sdtrainer" / "launcher.py", folder / "sdtrainer")
    (folder / "sdtrainer" / "__init__.py").touch()
    tell = "import sys; print('{}', '|'.join(sys.argv[1:])); sys.exit({})"
    (folder / "sdtrainer" / "__main__.py").write_text(tell.format("verb", 0))
    (folder / "app.py").write_text(tell.format("app", 7))
    (folder / "requirements.txt").write_text("torch==2.13.0  # heavy\ngradio==1.0\n")
    (folder / "tests" / "requirements.txt").write_text("pytest==1.0\n")
    return folder


def start(project: Path, *arguments: str, wheels: Path | None = None, **more: str):
    command = [str(project / "launch.sh"), *arguments]
    env = environment(wheels, **more)
    return subprocess.run(command, env=env, cwd=project.parent, capture_output=True, text=True, timeout=300)


def environment(wheels: Path | None, **more: str) -> dict[str, str]:
    """A bare environment whose pip knows only the wheels made here, or nothing at all."""
    bare = {"HOME": os.environ.get("HOME", "/"), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    if wheels:
        wheel(wheels, "torch", "2.13.0+cpu", {"torch.py": ""})
        wheel(wheels, "gradio", "1.0", {"gradio.py": ""})
        bare.update(PIP_FIND_LINKS=str(wheels), PATH=python_path(wheels))
    return {"PATH": "/usr/bin:/bin", **bare, **more}


def python_path(folder: Path) -> str:
    """A search path on which this very Python, outside any venv, is the first one found."""
    found = folder / "bin" / "python3.13"
    found.parent.mkdir(exist_ok=True)
    if not found.exists():
        found.symlink_to(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    return f"{found.parent}:/usr/bin:/bin"


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    """Write the smallest wheel that pip installs."""
    info = f"{name}-{version}.dist-info/"
    content = dict(files)
    content[info + "METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    content[info + "WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = [f"{path},sha256={digest(text)},{len(text)}" for path, text in content.items()]
    content[info + "RECORD"] = "\n".join([*record, info + "RECORD,,"]) + "\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)


def digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def installed(project: Path) -> set[str]:
    (packages,) = (project / ".venv" / "lib").glob("python*/site-packages")
    found = {info.name.removesuffix(".dist-info") for info in packages.glob("*.dist-info")}
    return {name for name in found if not name.startswith(("pip-", "setuptools-"))}


def pythons(minor: int) -> list[str]:
    """Where a Python 3.`minor` that really runs may be: on the search path or among pyenv's."""
    places = [shutil.which(f"python3.{minor}"), *Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python")]
    return [str(place) for place in places if place and subprocess.run([place, "-c", ""]).returncode == 0]
