"""The files for a Jetson, as far as they can be held to account without one."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from perception.cli import app
from perception.config import load_config

ROOT = Path(__file__).parents[1]
JETSON = ROOT / "launch/jetson"
TOOLS = ("bash", "cat", "dirname", "env", "grep", "id", "ls", "mkdir", "readlink", "sed", "tr", "chmod", "cp")
ORIN = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
THOR = "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, DATE: Fri Aug 22 00:55:42 UTC 2025\n"

# python3 on the board, and what a virtual environment makes of it. Each writes down what it is asked.
PYTHON = """
echo "python3 $*" >> "$LOG"
case "$*" in
*version_info*) echo "${PYTHON_VERSION:-3.10}" ;;
*"import tensorrt"* | *'m.version("tensorrt")'*)
    [ "${TENSORRT:-10.3.0}" != none ] && echo "${TENSORRT:-10.3.0}" && exit
    echo "Traceback ..." >&2; echo "ModuleNotFoundError: No module named 'tensorrt'" >&2; exit 1 ;;
"-m venv "*)
    mkdir -p "$4/bin"; echo "include-system-site-packages = true" > "$4/pyvenv.cfg"
    cp "$0" "$4/bin/python" ;;
"-m pip install --no-binary pycuda "*)
    echo "pycuda with CUDA_ROOT=$CUDA_ROOT LIBRARY_PATH=$LIBRARY_PATH" >> "$LOG"
    [ -z "$PYCUDA_FAILS" ] ;;
"-m pip install --upgrade "*)
    here=$(dirname "$0")
    printf '#!/bin/bash\\necho "freespace $*" >> "$LOG"\\n[ -z "$DOCTOR_FAILS" ]\\n' > "$here/freespace"
    chmod +x "$here/freespace" ;;
esac
"""


class Board:
    """A root and a PATH that look like those of a Jetson; what is done to it is in `calls`."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.log, self.prefix = folder / "root", folder / "bin", folder / "log", folder / "opt/freespace"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        self.fake("python3", PYTHON)
        for name in ("apt-get", "useradd", "systemctl", "install", "sudo"):
            self.fake(name, f'echo "{name} $*" >> "$LOG"')
        self.fake("dpkg-query", '[ -z "$NO_PACKAGES" ] && echo "install ok installed"')
        self.write("etc/nv_tegra_release", ORIN)
        self.write("proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0")
        self.write(
            "usr/local/cuda/bin/nvcc", '#!/bin/bash\necho "Cuda compilation tools, release ${CUDA:-12.6}, V12.6.68"\n', 0o755
        )

    def fake(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def install(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        variables = {"PATH": str(self.bin), "LOG": str(self.log), "FREESPACE_ROOT": str(self.root), "HOME": str(self.root)}
        given = options if "--service" in options else ("--prefix", str(self.prefix), *options)
        command = [str(JETSON / "install.sh"), *given]
        return subprocess.run(
            ["/bin/bash", *command], env={**variables, **environment}, capture_output=True, text=True, timeout=30
        )

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_a_bare_board(board: Board) -> None:
    done = board.install()
    assert done.returncode == 0, done.stderr
    assert "NVIDIA Jetson AGX Orin Developer Kit, Jetson Linux 36.4" in done.stdout
    changes = [call for call in board.calls if not call.startswith("python3 -c")]
    cuda = board.root / "usr/local/cuda"
    assert changes == [
        f"python3 -m venv --system-site-packages {board.prefix}",
        "python3 -m pip install --no-binary pycuda --no-cache-dir --force-reinstall --no-deps pycuda>=2024.1",
        f"pycuda with CUDA_ROOT={cuda} LIBRARY_PATH={cuda}/lib64/stubs:",
        "python3 -m pip install pycuda>=2024.1",
        f"python3 -m pip install --upgrade --constraint {ROOT}/constraints.txt {ROOT}[web]",
        "freespace doctor",
    ]


def test_again_it_leaves_what_fits_and_after_an_update_of_cuda_it_does_not(board: Board) -> None:
    assert board.install().returncode == 0
    assert board.install().returncode == 0
    assert not [call for call in board.calls if "venv" in call or "pycuda" in call]
    assert board.calls[-1] == "freespace doctor"
    assert board.install(CUDA="13.0").returncode == 0
    assert [call for call in board.calls if "--no-binary pycuda" in call]


def test_pycuda_that_does_not_build_is_built_again(board: Board) -> None:
    assert board.install(PYCUDA_FAILS="1").returncode != 0
    assert "freespace doctor" not in board.calls
    assert board.install().returncode == 0
    assert [call for call in board.calls if "--no-binary pycuda" in call]


def test_packages_that_are_missing_are_installed(board: Board) -> None:
    assert board.install(NO_PACKAGES="1").returncode == 0
    apt = [call.removeprefix("sudo ") for call in board.calls if "apt-get" in call]
    assert apt == ["apt-get update", "apt-get install -y --no-install-recommends python3-venv python3-dev build-essential"]


def test_the_documentation_says_what_is_installed_beside_the_folder() -> None:
    (packages,) = re.findall(r"for package in (.*); do", (JETSON / "install.sh").read_text())
    text = (ROOT / "docs/jetson.md").read_text()
    assert not [package for package in packages.split() if f"`{package}`" not in text]


@pytest.mark.parametrize("options", [(), ("--service",)])
def test_dry_run_changes_nothing_and_says_all(board: Board, tmp_path: Path, options: tuple[str, ...]) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = board.install("--dry-run", *options, NO_PACKAGES="1")
    assert done.returncode == 0, done.stderr
    assert [call for call in board.calls if not call.startswith("python3 -c")] == []
    assert sorted(path for path in tmp_path.rglob("*") if path != board.log) == [p for p in before if p != board.log]
    planned = "\n".join(line for line in done.stdout.splitlines() if line.startswith("+"))
    for part in ("apt-get update", "-m venv --system-site-packages", "--no-binary pycuda", r"\[web\]", "doctor"):
        assert part in planned
    assert ("systemctl enable freespace-build freespace" in planned) == bool(options)
    assert ("freespace.service.d/jetson.conf" in planned) == bool(options)


def no_nvcc(board: Board) -> None:
    (board.root / "usr/local/cuda/bin/nvcc").unlink()


def wrong_nvcc(board: Board) -> None:
    board.write("usr/local/cuda/bin/nvcc", "#!/bin/bash\nexit 1\n", 0o755)


def no_jetson(board: Board) -> None:
    (board.root / "etc/nv_tegra_release").unlink()


def release(text: str) -> Callable[[Board], None]:
    return lambda board: board.write("etc/nv_tegra_release", text)


def hiding_environment(board: Board) -> None:
    (board.prefix / "bin").mkdir(parents=True)
    shutil.copy(board.bin / "python3", board.prefix / "bin/python")
    (board.prefix / "pyvenv.cfg").write_text("include-system-site-packages = false\n")


def other_folder(board: Board) -> None:
    board.prefix.mkdir(parents=True)
    (board.prefix / "mine.txt").touch()


def no_root(board: Board) -> None:
    (board.bin / "sudo").unlink()
    (board.bin / "id").unlink()
    board.fake("id", "echo 1000")


@pytest.mark.parametrize(
    ("spoil", "environment", "message"),
    [
        (no_jetson, {}, "this is no Jetson"),
        (release("# R35 (release), REVISION: 4.1, GCID: 1\n"), {}, "35.4 is too old"),
        (release("# R36 (release), REVISION: 3.0, GCID: 1\n"), {}, "36.3 is too old"),
        (release("what?\n"), {}, "says no release"),
        (no_nvcc, {}, "no nvcc: the CUDA toolkit is not installed. sudo apt install nvidia-jetpack"),
        (wrong_nvcc, {}, "nvcc does not work"),
        (None, {"TENSORRT": "none"}, "no TensorRT that works (ModuleNotFoundError: No module named 'tensorrt')"),
        (None, {"TENSORRT": "8.6.2"}, "TensorRT 8.6.2 is too old"),
        (None, {"PYTHON_VERSION": "3.8"}, "python3 is 3.8"),
        (hiding_environment, {}, "hides JetPack's TensorRT"),
        (other_folder, {}, "is no virtual environment"),
        (no_root, {"NO_PACKAGES": "1"}, "needs root"),
        (None, {"DOCTOR_FAILS": "1"}, "does not work here yet"),
    ],
)
def test_what_is_wrong_is_said(
    board: Board, spoil: Callable[[Board], None] | None, environment: dict[str, str], message: str
) -> None:
    if spoil:
        spoil(board)
    done = board.install(**environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    if "DOCTOR_FAILS" not in environment:
        assert not [call for call in board.calls if "pip" in call]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--what",), "unknown option --what"),
        (("--extras",), "--extras wants a value"),
        (("--prefix", "here"), "absolute path"),
        (("--service", "--container"), "exclude each other"),
        (("--service", "--prefix", "/elsewhere"), "leave --prefix out"),
    ],
)
def test_wrong_usage(board: Board, options: tuple[str, ...], message: str) -> None:
    done = board.install(*options)
    assert (done.returncode, board.calls) == (2, [])
    assert message in done.stderr


def test_jetpack_7(board: Board) -> None:
    board.write("etc/nv_tegra_release", THOR)
    done = board.install(PYTHON_VERSION="3.12", TENSORRT="10.13.3.9", CUDA="13.0")
    assert done.returncode == 0, done.stderr
    assert "Jetson Linux 38.2" in done.stdout


def test_within_an_image_there_is_no_board_and_no_driver(board: Board) -> None:
    no_jetson(board)
    assert board.install("--container").returncode == 0
    assert not [call for call in board.calls if "import tensorrt" in call], "without a driver it does not load"
    assert not [call for call in board.calls if "doctor" in call]
    assert [call for call in board.calls if "--no-binary pycuda" in call]


# -- Containers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((JETSON / "compose.yaml").read_text()))


def test_compose_builds_what_it_runs_and_the_plan_comes_first(compose: dict[str, Any]) -> None:
    plan, node = compose["services"]["plan"], compose["services"]["freespace"]
    folder = (JETSON / plan["build"]["context"]).resolve()
    assert folder == ROOT
    assert (folder / plan["build"]["dockerfile"]).is_file()
    assert node["depends_on"] == {"plan": {"condition": "service_completed_successfully", "required": False}}
    assert plan["restart"] == "no"
    assert node["restart"] == "unless-stopped"
    cache = "/var/cache/freespace"
    assert f"XDG_CACHE_HOME={cache}" in (JETSON / "Containerfile").read_text()
    for service in (plan, node):
        assert service["image"] == "freespace:jetson"
        assert service["runtime"] == "nvidia"
        assert service["environment"]["NVIDIA_VISIBLE_DEVICES"] == "all"
        assert f"cache:{cache}" in service["volumes"]
    assert {volume.partition(":")[0] for volume in node["volumes"] if not volume.startswith(".")} == set(compose["volumes"])
    for source in (volume.partition(":")[0] for volume in node["volumes"] if volume.startswith(".")):
        assert (JETSON / source).is_file()


def test_a_board_without_a_camera_of_its_own_is_told_what_to_say(compose: dict[str, Any]) -> None:
    (device,) = compose["services"]["freespace"]["devices"]
    assert device == "${CAMERA:-/dev/video0}:/dev/video0"
    assert "CAMERA=/dev/null" in (ROOT / "docs/jetson.md").read_text()


def test_compose_and_units_ask_for_options_that_exist(compose: dict[str, Any]) -> None:
    import typer

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    asked = [service["command"] for service in compose["services"].values()]
    for unit in (ROOT / "launch/freespace.service", JETSON / "freespace-build.service"):
        asked += [
            match.split() for match in re.findall(r"^ExecStart=/opt/freespace/bin/freespace (.*)", unit.read_text(), re.M)
        ]
    assert len(asked) == 4
    for name, *options in asked:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {option for option in options if option.startswith("--")} <= known


@pytest.fixture
def health_page() -> Iterator[tuple[ThreadingHTTPServer, list[int], list[str]]]:
    """A stand-in for the node's page: answers with the first status, keeps what it was shown."""
    status, shown = [200], list[str]()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(f"{self.path} {self.headers.get('Authorization')}")
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server, status, shown
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_healthcheck_passes_and_fails(
    compose: dict[str, Any], health_page: tuple[ThreadingHTTPServer, list[int], list[str]]
) -> None:
    server, status, shown = health_page
    kind, python, flag, code = compose["services"]["freespace"]["healthcheck"]["test"]
    assert (kind, python, flag) == ("CMD", "/opt/freespace/bin/python", "-c")
    assert "127.0.0.1:8080" in compose["services"]["freespace"]["command"], "the page it asks for"
    code = code.replace(":8080", f":{server.server_port}")
    environment = {**os.environ, "FREESPACE_TOKEN": "secret-secret-secret", "no_proxy": "127.0.0.1"}

    def check() -> int:
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=20).returncode

    assert check() == 0
    status[0] = 503
    assert check() != 0
    assert shown == ["/healthz Bearer secret-secret-secret"] * 2


def test_the_image_has_all_that_the_package_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (JETSON / "Containerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (.*)", text, re.M) for word in line.split()[:-1]}
    ignored = (JETSON / "Containerfile.dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    assert {"setup.py", "perception", "engine", "calibration", "training", "launch"} <= copied
    for name in copied:
        assert (ROOT / name).exists(), name
    wanted: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", wanted.update)
    runpy.run_path(str(ROOT / "setup.py"))
    assert {Path(file).parts[0] for _, files in wanted["data_files"] for file in files} <= copied  # else pip refuses


def test_what_lies_beside_the_launch_files_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a container has a token in it."""
    for name in ("setup.py", "README.md", "perception/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "launch", tmp_path / "launch", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    kept = {str(path.relative_to(tmp_path)) for path in (tmp_path / "launch").rglob("*") if path.is_file()}
    (tmp_path / "launch/jetson/.env").write_text("FREESPACE_TOKEN=secret")
    (tmp_path / "launch/jetson/__pycache__").mkdir()
    wanted: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", wanted.update)
    runpy.run_path(str(tmp_path / "setup.py"))
    assert {file for _, files in wanted["data_files"] for file in files if file.startswith("launch/")} == kept


def test_secrets_and_leftovers_do_not_get_into_the_image_or_the_repository() -> None:
    ignored = (JETSON / "Containerfile.dockerignore").read_text().splitlines()
    taken_in = max(number for number, line in enumerate(ignored) if line.startswith("!"))
    assert set(ignored[taken_in + 1 :]) == {"**/__pycache__", "**/.env"}  # the last line that matches counts
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_settings_are_settings() -> None:
    config = load_config(JETSON / "freespace.yaml", {})
    assert config.capture.source == "v4l2:///dev/video0"
    assert config.output.append
    assert Path(str(config.output.polygons)).is_relative_to("/var/lib/freespace")


# jetson_clocks as it is: asks before it replaces a file, and fails where nobody answers.
CLOCKS = """
case "$1" in
--store) if [ -e "$2" ]; then read -r answer || exit 1; fi; echo old > "$2" ;;
--restore) [ -e "$2" ] ;;
esac
"""


def test_the_clocks_can_be_started_again(board: Board, tmp_path: Path) -> None:
    board.fake("jetson_clocks", CLOCKS)
    unit = (JETSON / "freespace-clocks.service").read_text()
    unit = unit.replace("/usr/bin/jetson_clocks", str(board.bin / "jetson_clocks")).replace("/run/", f"{tmp_path}/")
    start, stop = (re.findall(rf"^{key}=(.*)$", unit, re.M) for key in ("Exec(?:StartPre|Start)", "ExecStop"))
    for command in (*start, *stop, *start):  # systemctl restart
        assert subprocess.run(command.split(), stdin=subprocess.DEVNULL, timeout=10).returncode == 0, command


# -- Lints ------------------------------------------------------------------------------------------------------------


def tool(name: str) -> str:
    """Path of a program, in PATH or beside this Python; the test is skipped where there is none."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def test_shellcheck() -> None:
    optional = ["-o", "all", "-e", "SC2250,SC2310,SC2311,SC2312"]  # braces everywhere; set -e within conditions, as meant here
    done = subprocess.run([tool("shellcheck"), *optional, JETSON / "install.sh"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    assert (JETSON / "install.sh").stat().st_mode & stat.S_IXUSR


def test_hadolint() -> None:
    done = subprocess.run([tool("hadolint"), JETSON / "Containerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


UNITS = ("freespace.service", "freespace-build.service", "freespace-clocks.service")


def test_systemd_takes_the_units_together(tmp_path: Path) -> None:
    for name in UNITS:
        text = (ROOT / "launch/freespace.service" if name == UNITS[0] else JETSON / name).read_text()
        for program in ("/opt/freespace/bin/freespace", "/usr/bin/jetson_clocks"):
            text = text.replace(program, sys.executable)
        (tmp_path / name).write_text(re.sub(r"^(User|SupplementaryGroups)=.*$", r"", text, flags=re.M))
    (tmp_path / "freespace.service.d").mkdir()
    shutil.copy(JETSON / "jetson.conf", tmp_path / "freespace.service.d")
    command = [tool("systemd-analyze"), "verify", "--man=no", *(str(tmp_path / name) for name in UNITS)]
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    said = [line for line in done.stderr.splitlines() if "freespace" in line or "jetson.conf" in line]
    assert (done.returncode, said) == (0, [])
