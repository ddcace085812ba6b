# SPDX-License-Identifier: BSD-2-Clause
"""`valemgr pair` on real parts: our QEMU, real Linux guests, a real valed.

         guest a                         valed                        guest b
    vale-udp-send ── vale0 ── vale1:a ── [ vale1 ] ── vale1:b ── vale0 ── vale-udp-recv
                 └── vale1 ══════ QEMU's stream netdev, the baseline ══════ vale1 ┘

Every test has its own XDG directories and its own valed, prints what it ran, asserts numbers, and
ends by looking for what was left behind: no process, no socket, no state.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.place import VALEMGR, Place, missing, pids_with, until_said
from valemgr import image, locate

pytestmark = pytest.mark.guest

READY_MAX = 40.0  # seconds under TCG on a host that other things use; the aim is 6 on an idle one

if missing():
    pytest.skip(missing(), allow_module_level=True)


def until_trial(process: "subprocess.Popen[str]") -> None:
    """Read its progress until the first trial begins."""
    until_said(process, "trial:")


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("p"))
    yield made
    made.close()


def test_pair_with_baseline_measures_and_conserves(place: Place) -> None:
    report = place.json(
        "pair", "vale1", "--baseline", "stream", "--frame", "64,1518", "--seconds", "1.5"
    )
    assert report["schema_version"] == 1
    assert [(row["frame"], row["backend"], row["provider"]) for row in report["rows"]] == [
        (64, "netmap", "user"), (64, "stream", "none"),
        (1518, "netmap", "user"), (1518, "stream", "none"),
    ]
    for row, trial in zip(report["rows"], report["trials"], strict=True):
        counts = trial["counts"]
        assert row["conserved"], trial["violations"]
        assert row["received_kpps"] > 1
        assert row["mbit_s"] == pytest.approx(
            row["received_kpps"] * row["frame"] * 8 / 1e3, rel=0.01
        )
        assert counts["sent"] == trial["sender"]["sent"] == trial["receiver"]["sent_by_peer"]
        assert counts["received"] <= counts["sent"]
        if row["backend"] == "netmap":
            assert counts["port"]["rx_frames"] == counts["nic_tx"] >= counts["sent"]
            assert row["ratio"] == pytest.approx(
                trial["received_pps"] / report["trials"][report["trials"].index(trial) + 1][
                    "received_pps"], rel=0.01,
            )
    for stages in report["stages"].values():
        assert 0 < stages["qmp"] < stages["ssh"] < stages["links"] < READY_MAX
    place.assert_nothing_left()

    stored = place.json("results", "show")
    assert (stored["id"], stored["status"], stored["valid"]) == (1, "done", True)
    assert stored["trials"] == report["trials"]
    assert stored["provenance"]["versions"]["valed"]
    assert stored["provenance"]["images"]["micro"]["sha256"]


@pytest.mark.parametrize("model", ["e1000", "e1000e"])
def test_other_nic_models_at_a_given_rate(place: Place, model: str) -> None:
    report = place.json(
        "pair", "vale1", "--model", model, "--frame", "512", "--seconds", "2", "--rate", "2k"
    )
    (row,), (trial,) = report["rows"], report["trials"]
    assert row["conserved"], trial["violations"]
    assert row["received_kpps"] == pytest.approx(2, rel=0.2)
    assert row["loss_percent"] < 1
    place.assert_nothing_left()


def test_a_kept_pair_is_used_and_ended(place: Place) -> None:
    done = place.run("pair", "vale1", "--keep", "--frame", "512", "--seconds", "1")
    assert done.returncode == 0, done.stderr
    assert "valemgr down vale1" in done.stderr

    guests = {guest["guest"]: guest for guest in place.json("status")["guests"]}
    assert {name: guest["state"] for name, guest in guests.items()} == dict.fromkeys(
        "ab", "running"
    )
    assert guests["b"]["addresses"] == ["198.18.0.2/24"]

    ping = place.run("exec", "a", "--", "ping", "-c", "2", "-W", "5", "198.18.0.2")
    assert ping.returncode == 0
    assert " 0% packet loss" in ping.stdout
    assert place.run("exec", "b", "--", "hostname").stdout == "b\n"
    assert place.run("exec", "b", "--", "sh", "-c", "echo no >&2; exit 7").returncode == 7
    assert place.run("ssh", "b", stdin="hostname; exit 5\n").returncode == 5
    assert place.run("exec", "-i", "b", "cat", stdin="to and fro").stdout == "to and fro"

    ports = {port["name"]: port for port in place.json("switch", "vale1")["ports"]}
    assert set(ports) == {"vale1:a", "vale1:b"}
    assert ports["vale1:a"]["peer_pid"] == guests["a"]["pid"]
    assert ports["vale1:a"]["rx_frames"] >= 2
    assert place.json("switch")["switches"][0]["name"] == "vale1"

    again = place.run("pair", "vale1")
    assert again.returncode == 1
    assert "lab vale1 runs already (guests a, b" in again.stderr

    assert place.run("down", "vale1").returncode == 0
    assert place.run("down", "vale1").returncode == 0
    place.assert_nothing_left()
    assert place.run("exec", "a", "true").returncode == 125


def test_a_second_pair_meanwhile_is_refused_and_does_not_disturb(place: Place) -> None:
    first = place.start("pair", "vale1", "--frame", "64", "--seconds", "12")
    place.wait_for("guests", lambda: len(place.guests()) == 2)
    second = place.run("pair", "vale1")
    assert second.returncode == 1
    assert f"lab vale1 is busy: held by 'pair vale1' (pid {first.pid})" in second.stderr
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    assert "yes" in out
    place.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["boot", "trial"])
def test_interrupted_at_any_point_leaves_nothing(
    place: Place, number: signal.Signals, moment: str
) -> None:
    process = place.start("pair", "vale1", "--frame", "64", "--seconds", "30")
    place.wait_for("guests", lambda: len(place.guests()) == 2)
    if moment == "trial":
        until_trial(process)
    process.send_signal(number)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    place.assert_nothing_left()
    assert place.json("results", "show")["status"] == "interrupted"


def test_a_killed_valemgr_is_cleaned_up_by_the_next(place: Place) -> None:
    process = place.start("pair", "vale1", "--frame", "64", "--seconds", "30")
    place.wait_for("guests", lambda: len(place.guests()) == 2)
    process.kill()
    process.wait()
    before = place.guests()
    assert len(before) == 2
    assert "lab vale1 was abandoned" in place.run("doctor").stdout
    done = place.run("pair", "vale1", "--frame", "64", "--seconds", "1")
    assert done.returncode == 0, done.stderr
    place.assert_nothing_left()


def test_valed_killed_during_a_trial(place: Place) -> None:
    process = place.start("pair", "vale1", "--frame", "64", "--seconds", "30")
    until_trial(process)
    pid = place.valed()
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == 1
    assert f"valed (pid {pid}" in err
    assert "went away" in err
    place.assert_nothing_left()
    assert place.json("results", "show")["status"] == "failed"


def test_a_guest_killed_during_a_trial(place: Place) -> None:
    process = place.start("pair", "vale1", "--frame", "64", "--seconds", "30")
    until_trial(process)
    os.kill(pids_with(f"{place.labs}/vale1/b.ctl")[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "guest b: QEMU ended (killed by signal 9)" in err
    place.assert_nothing_left()


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """An image whose initrd has nothing to run: the kernel panics, and stays."""
    micro = image.load("micro")
    (tmp_path / "vmlinuz").symlink_to(micro.kernel)
    (tmp_path / "initrd.img").write_bytes(b"")
    manifest = {"append": "console=ttyS0", "ready": "vale: ready"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_a_guest_that_never_boots_shows_its_console(place: Place, broken: Path) -> None:
    done = place.run("pair", "vale1", "--image", str(broken), "--timeout", "12")
    assert done.returncode == 5
    first, *console = done.stderr[done.stderr.index("valemgr: ") :].splitlines()
    assert "is not ready within 12 s, waiting for its system to boot" in first
    assert len(console) > 3
    assert any("panic" in line or "[ " in line for line in console)
    place.assert_nothing_left()


def test_ssh_refused_is_named(place: Place, tmp_path: Path) -> None:
    """The same kernel and initrd, but a shell that says the word instead of an sshd."""
    micro = image.load("micro")
    (tmp_path / "vmlinuz").symlink_to(micro.kernel)
    (tmp_path / "initrd.img").symlink_to(micro.initrd)
    append = f"{micro.append} rdinit=/bin/busybox -- sh -c \"echo vale: ready; sleep 60\""
    (tmp_path / "manifest.json").write_text(json.dumps({"append": append, "ready": "vale: ready"}))
    done = place.run("pair", "vale1", "--image", str(tmp_path), "--timeout", "10")
    assert done.returncode == 5
    assert "waiting for its SSH server" in done.stderr
    place.assert_nothing_left()


def test_a_port_that_is_taken_is_refused_before_anything_starts(place: Place) -> None:
    rundir = place.root / "sw"
    rundir.mkdir(mode=0o700)
    valed = subprocess.Popen([locate.require("valed"), "--rundir", rundir, "--linger", "60"])
    place.wait_for("valed", lambda: (rundir / "netmap.sock").exists())
    pktgen = subprocess.Popen(
        [locate.require("vale-pktgen"), "-i", "vale1:b", "-f", "rx", "--seconds", "60"],
        env={**place.env, "VALE_DEV": str(rundir / "netmap.sock")}, stdout=subprocess.DEVNULL,
    )
    try:
        place.wait_for(
            "port", lambda: place.run("switch", "vale1", "--format", "csv").stdout.count("\n") > 1
        )
        done = place.run("pair", "vale1")
        assert done.returncode == 1
        assert f"port vale1:b is taken by pid {pktgen.pid}" in done.stderr
        assert place.guests() == []
        assert set(place.ports()) == {"vale1:b"}
    finally:
        pktgen.terminate()
        pktgen.wait()
        valed.terminate()
        valed.wait()


def test_no_space_for_the_store(place: Place) -> None:
    """A file system of its own, full: in a mount namespace where that is allowed."""
    script = (
        f"mount -t tmpfs -o size=64k none {place.env['XDG_STATE_HOME']} &&"
        f" head -c 1M /dev/zero > {place.env['XDG_STATE_HOME']}/fill;"
        f" exec {VALEMGR} pair vale1"
    )
    isolate = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*isolate, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine allows no user namespaces")
    done = subprocess.run(
        [*isolate, "sh", "-c", script], env=place.env, capture_output=True, text=True,
        check=False, timeout=60, stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("valemgr: ")
    assert "set XDG_STATE_HOME" in done.stderr
    place.assert_nothing_left()
