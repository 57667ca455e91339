"""What a real deployment costs on one machine: real nginx, SuperLink, server and site processes on loopback.

``latency``  rounds of a masked private heart federation at the sites' own runner, beside the same ClientApp on Flower's stock SuperNode, in turn
``sites``    so many sites for five rounds: seconds a round, memory of a site and of the server's parts, bytes
``large``    an update of so many MB from each of three sites: that it arrives, and the memory of each part over what it holds before

Both contestants of ``latency`` have the same server, the same SuperLink and the same coordinator; only what answers at the sites differs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from measuring import Noise, hand_in, machine, median, options, say, table, target_table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from cloister.core.spec import load_federation
from cloister.privacy.identity import Role
from cloister.privacy.identity.kit import load_kit
from cloister.privacy.request import JobRequest
from cloister.server.deployment.desk import Desk
from cloister.server.deployment.running import Office, open_office, run_job
from consortium import Deployment, deployed, free_port

#: Times faster than the stock executor; seconds of a masked round with two sites.
FASTER = 2.5
#: Units of the layers before and behind the wide one of ``large``.
_NARROW = 1000
HOSPITALS = ("cleveland", "hungarian", "long-beach-va", "switzerland")
_STOCK = '''\
from pathlib import Path
from flwr.clientapp import ClientApp
from cloister.client import message_form
from cloister.client.app import make_client_app
from cloister.client.deployed import DeployedSite
from cloister.client.site_config import load_site
from cloister.privacy.identity import Role
from cloister.privacy.identity.kit import load_kit
from cloister.privacy.manifest import Floors


class Late:
    """The site, found by the node's configuration at the first message."""

    def __init__(self):
        self._made = None

    def site(self, context, bench):
        return self._of().site(context, bench)

    def workbench(self, federation):
        return self._of().workbench(federation)

    def _of(self):
        if self._made is None:
            import os

            folder = Path(os.environ["CLOISTER_SITE"])
            self._made = DeployedSite(
                folder, load_site(folder), load_kit(folder, Role.SITE), dataset_for=lambda _: "heart", floors=Floors
            )
        return self._made


class Unpacking(ClientApp):
    """The same ClientApp, over messages whose records travel as one."""

    def __call__(self, message, context):
        message.content = message_form.unpack(message.content)
        reply = made(message, context)
        reply.content = message_form.pack(reply.content)
        return reply


made = make_client_app(Late())
app = Unpacking()
'''


def main() -> None:
    parser = options(__doc__, repetitions=1)
    parser.add_argument("--rounds", type=int, default=4, help="timed rounds of each contestant (4)")
    parser.add_argument("--sites", type=int, default=20, help="sites of ``sites`` (20)")
    parser.add_argument("--megabytes", type=int, default=100, help="of one update of ``large`` (100)")
    parser.add_argument("--what", nargs="*", default=["latency", "sites", "large"])
    given = parser.parse_args()
    noise = Noise(given.patience)
    answer: dict[str, Any] = {"benchmark": "deployment", "machine": machine(), "targets": []}
    texts = []
    for what in given.what:
        say(what)
        noise.sample()
        found, text, targets = {"latency": latency, "sites": many, "large": large}[what](given)
        answer[what] = found
        answer["targets"] += targets
        texts.append(text)
    answer["noise"] = noise.report()
    if answer["targets"]:
        texts.append(target_table(answer["targets"]))
    hand_in(
        given,
        answer,
        "\n\n".join(texts),
        missed=[target["what"] for target in answer["targets"] if not target["met"]],
    )


def latency(given: Any) -> tuple[dict[str, Any], str, list[dict[str, Any]]]:
    """Time rounds at our runner and at the stock SuperNode."""
    sites = HOSPITALS[:3]
    ours, stock = [], []
    for _ in range(given.repetitions):
        with tempfile.TemporaryDirectory() as folder, deployed(Path(folder), sites) as one:
            ours += seconds(one, one.submit(rounds=given.rounds + 1))
        with tempfile.TemporaryDirectory() as folder, Deployment(Path(folder), sites) as one:
            stock += on_stock_nodes(one, given.rounds + 1)
    ratio = median(stock) / median(ours)
    rows = [
        ["site runner", f"{median(ours):.2f}", "1"],
        ["stock SuperNode", f"{median(stock):.2f}", f"{ratio:.2f}"],
    ]
    targets = [
        {
            "what": "a round on the stock executor over ours",
            "target": f">= {FASTER}",
            "found": ratio,
            "met": ratio >= FASTER,
        }
    ]
    return (
        {"ours": ours, "stock": stock},
        "A masked private round of three hospitals over nginx and TLS\n\n"
        + table(["", "s a round", "ratio"], rows),
        targets,
    )


def many(given: Any) -> tuple[dict[str, Any], str, list[dict[str, Any]]]:
    """Time rounds of many sites, and look at their memory."""
    sites = [f"site-{number:02d}" for number in range(given.sites)]
    with tempfile.TemporaryDirectory() as folder, Deployment(Path(folder), sites) as one:
        for number, name in enumerate(sites):
            file = one.site(name) / "site.toml"
            file.write_text(
                file.read_text().replace(f'owner = "{name}"', f'owner = "{HOSPITALS[number % 4]}"')
            )
        one.start_all()
        run = one.submit(rounds=5, wait_s=300)
        each = seconds(one, run, skip=0, limit=3600)
        memory = [peak(process) for name, process in one.processes().items() if name in sites]
        rounds = [event for event in one.events(run) if event["kind"] == "round"]
    figures = {
        "seconds": each,
        "site_mib": memory,
        "bytes_up": rounds[-1]["bytes_up"],
        "bytes_down": rounds[-1]["bytes_down"],
    }
    rows = [
        ["seconds a round, median", f"{median(each):.1f}"],
        ["memory of a site, MiB, median and largest", f"{median(memory):.0f}, {max(memory):.0f}"],
        ["bytes of a round, down and up", f"{figures['bytes_down']:,}, {figures['bytes_up']:,}"],
    ]
    return figures, f"{given.sites} site processes on this machine\n\n" + table(["", ""], rows), []


def large(given: Any) -> tuple[dict[str, Any], str, list[dict[str, Any]]]:
    """Send large updates."""
    width = int(
        given.megabytes * 1e6 / 4 / (2 * _NARROW)
    )  # a site refuses a layer of more than 16 units for each of its inputs
    with tempfile.TemporaryDirectory() as folder, Deployment(Path(folder), HOSPITALS[:3]) as one:
        for name in one.sites:
            site = one.site(name)
            text = (site / "site.toml").read_text().split("[data.heart]")[0]
            text = text.replace("most_bytes = 33554432\n", "")  # tests set it low
            (site / "site.toml").write_text(text + '[data.digits]\ntask = "digits"\n')
            policy = (
                (site / "policy.toml")
                .read_text()
                .replace("[data.heart]\nepsilon_cap = 10.0\ndelta_cap = 1e-3\n", "")
            )
            (site / "policy.toml").write_text(
                policy.replace("heart", "digits").replace(
                    'units = ["record", "record-distributed"]', 'units = ["none"]'
                )
            )
        one.start_all()
        before = {name: resident(process) for name, process in one.processes().items()}
        run = one.submit_file(
            f"""
[federation]
name = "large"
rounds = 2
seed = 1
[task]
use = "digits"
model = {{ name = "mlp", hidden = [{_NARROW}, {width}, {_NARROW}] }}
[cohort]
min_sites = 3
wait_s = 600
[training]
local_steps = 1
batch_size = 8
optimizer = {{ name = "sgd", lr = 0.01 }}
[evaluation]
sites = false
central = false
"""
        )
        each = seconds(one, run, skip=0, limit=3600)
        parts = {
            name: peak(process) - before[name]
            for name, process in one.processes().items()
            if name in one.sites
        }
        rounds = [event for event in one.events(run) if event["kind"] == "round"]
    up = rounds[-1]["bytes_up"] / 3 / 1e6
    figures = {"seconds": each, "megabytes_up": up, "added_mib": parts}
    rows = [
        ["MB of one site's update", f"{up:.0f}"],
        ["seconds a round", f"{median(each):.0f}"],
        ["memory of a site over what it held before, MiB", f"{max(parts.values()):.0f}"],
        ["the same in updates", f"{max(parts.values()) * 1.048576 / up:.1f}"],
    ]
    return figures, "Large updates, masked\n\n" + table(["", ""], rows), []


def seconds(one: Deployment, run: str, *, skip: int = 1, limit: float = 900) -> list[float]:
    """Wait for a run's end and return each round's seconds, without the first ``skip``."""
    job = one.ended(run, limit)
    if job["state"] != "done":
        raise SystemExit(f"{job}\n{one.work_log(run)[-3000:]}")
    return [sum(event["seconds"].values()) for event in one.events(run) if event["kind"] == "round"][skip:]


class StockOffice(Office):
    """A server whose runs bring a bundle that stock SuperNodes run."""

    def desk(self) -> Desk:
        """Return the desk, with that bundle."""
        return replace(super().desk(), app=_STOCK.encode(), stock=True)


def on_stock_nodes(one: Deployment, rounds: int) -> list[float]:
    """Run the same federation with Flower's own SuperNodes, which fetch the run's bundle and start a process for each message."""
    one.start("superlink")
    office = open_office(one.server)
    office = StockOffice(folder=office.folder, config=office.config, kit=office.kit, register=office.register)
    one.until((office.state / "superlink.secret").exists, 120, "superlink")
    office.desk().wait_ready(120)
    office.desk().admit(office.node_keys.values())
    nodes = []
    for name in one.sites:
        site = one.site(name)
        command = [
            str(Path(sys.executable).parent / "flower-supernode"),
            "--superlink",
            office.config.server.superlink,
        ]
        command += [
            "--root-certificates",
            str(site / "tls" / "root.pem"),
            "--auth-supernode-private-key",
            str(site / "node.key"),
        ]
        command += ["--port", str(free_port())]
        with (one.folder / f"{name}.log").open("ab") as log:
            home = {
                "FLWR_HOME": str(site / "flwr"),
                "FLWR_TELEMETRY_ENABLED": "0",
                "FLWR_DISABLE_UPDATE_CHECK": "1",
            }
            home["PATH"] = (
                f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # it starts flower-superexec by name
            )
            environment = {**os.environ, **home, "CLOISTER_SITE": str(site), "OMP_NUM_THREADS": "1"}
            nodes.append(
                subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
            )
    try:
        loaded = load_federation(one.write_heart(rounds=rounds, wait_s=600))
        user = load_kit(one.user(), Role.USER).identity
        request = JobRequest.new(loaded.spec.federation.name, loaded.digest())
        run_job(office, request.signed(user), json.dumps(loaded.effective()))
        return [
            sum(event["seconds"].values()) for event in one.events(request.run) if event["kind"] == "round"
        ][1:]
    finally:
        for node in nodes:
            node.terminate()
            node.wait()


def peak(process: subprocess.Popen[bytes]) -> float:
    """Return the most memory that a process ever held, MiB."""
    return _status(process.pid, "VmHWM")


def resident(process: subprocess.Popen[bytes]) -> float:
    """Return what a process holds now, MiB."""
    return _status(process.pid, "VmRSS")


def _status(pid: int, key: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
