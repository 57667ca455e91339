"""Images and compose files: nobody is root, everything is pinned and watched, each container sees its own kit and no secret is in an environment."""

import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from cloister.core._version import __version__
from cloister.server.provision.consortium_file import load_consortium_file
from cloister.server.provision.making import provision
from consortia import make_consortium
from consortium import free_port

CLOISTER = [str(Path(sys.executable).parent / "cloister")]
IMAGES = ("server", "site", "authority")
PINNED = re.compile(r"[a-z/-]+:\d+\.\d+\.\d+(-[a-z0-9]+)*")
SECRET = re.compile(r"secret|passw|token|credential|private|\bkey\b|_key", re.IGNORECASE)


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


@pytest.fixture(params=IMAGES)
def dockerfile(repository: Path, request: pytest.FixtureRequest) -> list[tuple[str, str]]:
    return instructions(repository / "docker" / f"{request.param}.Dockerfile")


def last_stage(dockerfile: list[tuple[str, str]]) -> list[tuple[str, str]]:
    begin = max(place for place, (what, _) in enumerate(dockerfile) if what == "FROM")
    return dockerfile[begin:]


def test_an_image_s_base_is_pinned_and_slim(dockerfile: list[tuple[str, str]]) -> None:
    bases = [value.split()[0] for what, value in dockerfile if what == "FROM"]
    assert len(bases) == 2
    assert all(PINNED.fullmatch(base) and "slim" in base for base in bases)


def test_an_image_ends_as_a_user_that_is_not_root(dockerfile: list[tuple[str, str]]) -> None:
    stage = last_stage(dockerfile)
    users = [value for what, value in stage if what == "USER"]
    assert users[-1] == "10001:10001"
    after = [what for what, _ in stage[stage.index(("USER", users[-1])) :]]
    assert not {"RUN", "COPY", "ADD"} & set(after)


def test_an_image_is_watched_and_starts_without_a_shell(dockerfile: list[tuple[str, str]]) -> None:
    stage = dict(last_stage(dockerfile))
    assert "CMD [" in stage["HEALTHCHECK"]
    assert "healthcheck.py" in stage["HEALTHCHECK"]
    assert stage["ENTRYPOINT"] == '["cloister"]'
    assert stage["CMD"].startswith("[")


def test_packages_are_installed_at_the_versions_that_are_tested(dockerfile: list[tuple[str, str]]) -> None:
    installs = [value for what, value in dockerfile if what == "RUN" and "pip " in value]
    assert len(installs) == 3
    for value in installs:
        assert "onstraint" in value or ("--no-deps" in value and "cloister-" in value)
        assert "--no-cache-dir" in value
        assert "://" not in value


def test_an_image_holds_the_wheel_and_no_source_and_no_secret(
    dockerfile: list[tuple[str, str]], repository: Path
) -> None:
    assert not [value for what, value in dockerfile if what == "ADD"]
    copied = [value for what, value in last_stage(dockerfile) if what == "COPY"]
    assert [value.split()[-2] for value in copied] == ["constraints.txt", "/wheels", "docker/healthcheck.py"]
    for value in [value for what, value in dockerfile if what == "COPY" and "--from" not in value]:
        assert all((repository / source).exists() for source in value.split()[:-1]), value
    settings = [value for what, value in dockerfile if what in {"ENV", "ARG", "LABEL"}]
    assert not [value for value in settings if SECRET.search(value)]


def test_what_is_built_is_what_the_wheel_needs(dockerfile: list[tuple[str, str]], repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    target = project["build"]["targets"]["wheel"]
    copied = " ".join(value for what, value in dockerfile if what == "COPY").split()
    needed = [*(path.split("/")[0] for path in target["packages"]), *target["force-include"]]
    assert [one for one in needed if one not in copied] == []
    ignored = (repository / ".dockerignore").read_text(encoding="utf-8").split()
    assert [one for one in needed if f"!{one}" not in ignored] == []


ALONE = """
import importlib.metadata, pkgutil, re, sys

names, needed = sys.argv[1].split(), set()
while names:
    name = re.sub(r"[-_.]+", "-", names.pop()).lower()
    if name not in needed:
        needed.add(name)
        for line in importlib.metadata.requires(name) or ():
            if "extra ==" not in line:
                one = re.match(r"[A-Za-z0-9._-]+", line)[0]
                try:
                    importlib.metadata.version(one)
                except importlib.metadata.PackageNotFoundError:
                    continue  # for another platform
                names.append(one)
owners = importlib.metadata.packages_distributions()

class Absent:
    def find_spec(self, name, path=None, target=None):
        of = {re.sub(r"[-_.]+", "-", one).lower() for one in owners.get(name, ())}
        if of and not of & needed and "cloister" not in of:
            raise ModuleNotFoundError(f"not in the image: {name}", name=name)

sys.meta_path.insert(0, Absent())
from cloister.privacy import authority, homomorphic
for package in (authority, homomorphic):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        __import__(found.name)
homomorphic.vectors._tenseal()  # imported where it is used
sys.argv = ["cloister", "authority", "run", "--help"]
from cloister.core.command import main
sys.exit(main())
"""


def test_the_key_authority_runs_with_the_packages_of_its_image_alone(repository: Path) -> None:
    (install,) = [
        value
        for what, value in instructions(repository / "docker/authority.Dockerfile")
        if what == "RUN" and "--constraint /tmp" in value and "wheels" not in value
    ]
    names = install.split("/tmp/constraints.txt")[1]
    assert "tenseal" in names

    def ran(packages: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", ALONE, packages], capture_output=True, text=True, check=False
        )

    done = ran(names)
    assert (done.returncode, "--listen" in done.stdout) == (0, True), done.stderr
    for name in ("tenseal", "grpcio"):
        missing = ran(" ".join(one for one in names.split() if one != name))
        assert missing.returncode, "what is missing is found"
        assert f"not in the image: {name.removesuffix('io')}" in missing.stderr


@pytest.mark.slow
def test_what_an_image_starts_and_how_it_is_watched_is_tried_as_processes(
    repository: Path, tmp_path: Path
) -> None:
    """Each image's own CMD, with the kit's folder for ``/kit``, until the image's own HEALTHCHECK says that it is well."""
    file = tmp_path / "consortium.toml"
    file.write_text(
        '[consortium]\nname = "images"\n[server]\nhost = "127.0.0.1"\nport = 8443\n[authority]\nhost = "127.0.0.1"\n'
        '[[sites]]\nname = "cleveland"\ndata.heart = { task = "heart", owner = "cleveland" }\n'
    )
    loaded, raw = load_consortium_file(file)
    provision(loaded, raw, tmp_path / "c")
    kits = {
        "server": tmp_path / "c/kits/server",
        "authority": tmp_path / "c/kits/authority",
        "site": tmp_path / "c/kits/sites/cleveland",
    }
    # The ports of this machine are others' too; of the kits' own it is only checked that they are those that the images ask.
    ports = {number: str(free_port()) for number in ("8443", "9092", "9095", "9443", "9464", "9465")}
    ports["8443"] = ports["9092"]  # no door: the site reaches the SuperLink
    asked = {"server": "9465", "authority": "9443", "site": "9464"}
    for path in (kits["server"] / "server.toml", kits["site"] / "site.toml"):
        path.write_text(moved(path.read_text(), ports))
    running: list[subprocess.Popen[bytes]] = []
    try:
        for image, kit in kits.items():
            written = dict(instructions(repository / "docker" / f"{image}.Dockerfile"))
            command = json.loads(written["CMD"])
            watch = json.loads(written["HEALTHCHECK"].partition("CMD ")[2])
            assert asked[image] in watch[-1]
            assert json.loads(written["ENTRYPOINT"]) == ["cloister"]
            with (tmp_path / f"{image}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        [*CLOISTER, *(moved(word.replace("/kit", str(kit)), ports) for word in command)],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
                )
            check = [sys.executable, str(repository / "docker/healthcheck.py"), moved(watch[-1], ports)]
            deadline = time.monotonic() + 120
            while subprocess.run(check, capture_output=True, check=False).returncode:
                assert running[-1].poll() is None, (tmp_path / f"{image}.log").read_text()
                assert time.monotonic() < deadline, (tmp_path / f"{image}.log").read_text()
                time.sleep(0.5)
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(60)


def moved(text: str, ports: dict[str, str]) -> str:
    """Return ``text`` with other ports."""
    return re.sub(r"(?<=:)\d{4}\b", lambda found: ports.get(found[0], found[0]), text)


@pytest.mark.skipif(
    not (shutil.which("hadolint") or (Path(sys.executable).parent / "hadolint").exists()),
    reason="hadolint is not installed",
)
def test_hadolint_finds_nothing(repository: Path) -> None:
    here = Path(sys.executable).parent / "hadolint"
    found = subprocess.run(
        [str(here) if here.exists() else "hadolint", *sorted((repository / "docker").glob("*.Dockerfile"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, "")


@pytest.fixture(scope="module")
def composed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Return each compose file, in the folder that it is used from: the demo's, and those in kits."""
    out = tmp_path_factory.mktemp("composed")
    make_consortium(out / "hospitals")
    folder = out / "docker"
    folder.mkdir()
    shutil.copyfile(repository / "docker/compose.yaml", folder / "compose.yaml")
    file, raw = load_consortium_file(repository / "docker/consortium.toml")
    provision(file, raw, folder / "consortium")
    kits = out / "hospitals/kits"
    files = {
        "demo": folder / "compose.yaml",
        "server": kits / "server/compose.yaml",
        "authority": kits / "authority/compose.yaml",
        "site": kits / "sites/cleveland/compose.yaml",
    }
    return {name: (path.parent, yaml.safe_load(path.read_bytes())) for name, path in files.items()}


NAMES = ("demo", "server", "authority", "site")


@pytest.mark.parametrize("name", NAMES)
def test_every_container_is_confined(composed: dict[str, tuple[Path, Any]], name: str) -> None:
    for service in composed[name][1]["services"].values():
        assert service["user"] == "10001:10001"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["pids_limit"] > 0
        assert not {
            "privileged",
            "cap_add",
            "devices",
            "pid",
            "ipc",
            "environment",
            "env_file",
            "secrets",
        } & set(service)
        assert service.get("network_mode", "service:server") == "service:server"


@pytest.mark.parametrize("name", NAMES)
def test_every_image_is_pinned_and_every_container_watched(
    composed: dict[str, tuple[Path, Any]], repository: Path, name: str
) -> None:
    for service in composed[name][1]["services"].values():
        image = service["image"]
        assert PINNED.fullmatch(image)
        ours = re.fullmatch(r"cloister-(\w+):(.*)", image)
        if ours:
            assert ours[2] == __version__
            written = dict(instructions(repository / "docker" / f"{ours[1]}.Dockerfile"))
            assert "HEALTHCHECK" in written
        else:
            assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", NAMES)
def test_a_container_sees_its_own_kit_only_and_writes_only_its_state(
    composed: dict[str, tuple[Path, Any]], name: str
) -> None:
    folder, file = composed[name]
    for title, service in file["services"].items():
        kit = folder
        if name == "demo":
            role, _, which = title.partition("-")
            kit = folder / "consortium/kits" / {"site": f"sites/{which}", "door": "server"}.get(role, role)
        for volume in service["volumes"]:
            source, target, *mode = volume.split(":")
            path = (folder / source).resolve()
            assert path.exists(), volume
            assert path.is_relative_to(kit.resolve()), volume
            assert mode == ["ro"] or path.name in {"state", "runs", "run"} or title == "authority", volume
            assert target.startswith(("/kit", "/door"))
        if title == "door":
            seen = [(folder / volume.split(":")[0]).resolve() for volume in service["volumes"]]
            assert not [
                path for path in seen if (path / "identity.key").exists() or path.name == "identity.key"
            ]


def test_in_the_demo_only_the_server_reaches_the_authority_and_only_the_door_is_published(
    composed: dict[str, tuple[Path, Any]],
) -> None:
    services = composed["demo"][1]["services"]
    assert [title for title, service in services.items() if "ports" in service] == ["server"]
    assert services["server"]["ports"] == ["127.0.0.1:8443:8443"]
    assert {title for title, service in services.items() if "keys" in service.get("networks", [])} == {
        "server",
        "authority",
    }
    assert "fleet" not in services["authority"]["networks"]


def test_the_health_check_tells_an_answer_from_silence(repository: Path) -> None:
    script = repository / "docker/healthcheck.py"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        port = served.server_port
        asked = {
            url: subprocess.run([sys.executable, script, url], capture_output=True, check=False).returncode
            for url in (
                f"http://127.0.0.1:{port}/health",
                f"http://127.0.0.1:{port}/ill",
                f"tcp://127.0.0.1:{port}",
            )
        }
        served.shutdown()
        thread.join()
    assert list(asked.values()) == [0, 1, 0]
    closed = subprocess.run(
        [sys.executable, script, f"tcp://127.0.0.1:{port}"], capture_output=True, check=False
    )
    assert closed.returncode == 1
