# SPDX-License-Identifier: BSD-2-Clause
"""Labs when things go wrong: kills at every step, two commands at once, what dies, what lies.

    a  vale0 virtio vhost-user ── vale1:a ┐           eth1 ── link ── eth1 of b
       vale1 virtio stream ────── vale2:a │ ┐
    b  vale0 virtio netmap ────── vale1:b ┴ │ [ vale1 ]
       vale1 e1000  netmap ────── vale2:b ──┴ [ vale2 ]

Tests go on where the one before has left this lab; those behind it have a place of their own. The
killed valemgr is lib/killed.py: it ends by SIGKILL behind each thing that it does, once; here
behind every second one, unless VALE_EVERY_STEP is set.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.place import Place, finish, missing, until_said
from lib.qmp import Qmp

pytestmark = pytest.mark.guest

if missing():
    pytest.skip(missing(), allow_module_level=True)

LAB = """
switches: {vale1: {age: 100s}, vale2: }
guests:
  a:
    startup: ["echo started >> /tmp/started"]
    nics:
      - {switch: vale1, backend: vhost-user}
      - {switch: vale2, backend: stream, impair: {in: {delay: 1ms}}}
  b:
    nics:
      - {switch: vale1, impair: {out: {delay: 1ms}}}
      - {switch: vale2, model: e1000}
links: [{endpoints: ["a:eth1", "b:eth1"]}]
"""
PORTS = {"vale1:a": "vhost-user", "vale2:a": "stream", "vale1:b": "native", "vale2:b": "native"}
# Of everything above: a goes to another switch, b changes in place, the link goes, c comes.
OTHER = """
switches: {vale1: {age: 50s}, vale2: , vale3: }
guests:
  a:
    startup: ["echo started >> /tmp/started"]
    nics:
      - {switch: vale1, backend: vhost-user, impair: {out: {delay: 2ms}}}
      - {name: x, switch: vale3, backend: stream}
  b:
    nics:
      - {switch: vale1, addresses: [198.18.0.20/24]}
      - {switch: vale2, model: e1000}
      - {name: x, switch: vale3, addresses: [10.3.0.2/24]}
  c: {nics: [{switch: vale1, backend: stream, addresses: [198.18.0.30/24]}]}
"""
STEPS_MAX = 60


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("p"))
    try:
        yield place
    finally:
        place.close()


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("p"))
    yield made
    made.close()


def killed(place: Place, steps: Path, *words: str) -> bool:
    """Run a command that is killed behind a new step; False: there was none, and it succeeded."""
    done = finish(place.start(*words, killed=steps))
    if done.returncode == -signal.SIGKILL:
        return True
    assert done.returncode == 0, done.stderr
    return False


def repeat(place: Place, name: str, *words: str) -> list[str]:
    """The command, killed behind every step, until it is done; the steps."""
    steps = place.root / name
    place.env["VALE_STEPS_SKIPPED"] = "0" if os.environ.get("VALE_EVERY_STEP") else "1"
    for _ in range(STEPS_MAX):
        if not killed(place, steps, *words):
            found = steps.read_text().splitlines()
            print(f"killed {len(found)} times:", *found, sep="\n  ")
            return found
    raise AssertionError(f"{words} still finds new steps: {steps.read_text()}")


def kinds(place: Place) -> dict[str, str]:
    ports = place.ports()
    return {name: p["kind"] for name, p in ports.items() if not name.startswith("valeL")}


def everything_works(place: Place) -> None:
    """Frames pass over every kind of port of the first lab."""
    place.ping("a", "198.18.0.2")
    place.ping("a", "198.18.1.2")
    place.ping("b", "198.19.0.1")


def states(place: Place) -> dict[str, str]:
    return {name: row["state"] for name, row in place.status().items()}


def pids(place: Place) -> dict[str, int]:
    return {name: guest["pid"] for name, guest in place.state("hard")["guests"].items()}


def test_up_killed_behind_every_step_goes_on(hard: Place) -> None:
    steps = repeat(hard, "up.steps", "up", hard.write("hard", LAB))
    for least in ("start valed", "write id_ed25519", "state: 0 switches; no guests",
                  "valed: switch-set vale1", "valed: port-add vale1:a", "start hard/a",
                  "valed: port-set vale2:a", "ssh a: echo sta"):  # fmt: skip
        assert least in steps
    assert any("a launched" in step for step in steps)
    assert any("a set up" in step for step in steps)
    assert states(hard) == {"a": "running", "b": "running"}
    assert len(hard.guests()) == 2
    assert kinds(hard) == PORTS
    everything_works(hard)
    assert hard.json("apply", hard.write("hard", LAB))["changes"] == []


def test_apply_killed_behind_every_step_ends_right(hard: Place) -> None:
    before = pids(hard)
    steps = repeat(hard, "apply.steps", "apply", hard.write("hard", OTHER))
    # A kill behind one guest's step may come before the answer to another's, which is done then
    # and not repeated: such a one is not written.
    expected = {"guest a: device_add x-nic", "guest b: device_add x-nic",
                "valed: port-del vale2:a", "valed: port-add vale3:a", "start hard/c",
                "valed: port-set vale1:a", "valed: switch-set vale1"}  # fmt: skip
    assert len(expected - set(steps)) <= 1
    after = pids(hard)
    assert {name: after[name] for name in "ab"} == before
    assert sorted(hard.guests()) == sorted(after.values())
    assert hard.json("apply", hard.write("hard", OTHER))["changes"] == []
    assert kinds(hard) == {
        "vale1:a": "vhost-user", "vale1:b": "native", "vale1:c": "stream", "vale2:b": "native",
        "vale3:a": "stream", "vale3:b": "native",
    }  # fmt: skip
    assert set(hard.switches()) == {"vale1", "vale2", "vale3"}
    assert hard.ports()["vale1:a"]["out"]["delay"] == 2000
    for guest, nics in (("a", "lo mgmt vale0 x"), ("b", "lo mgmt vale0 vale1 x")):
        assert hard.ok("exec", guest, "ls /sys/class/net").split() == nics.split()
    hard.ping("a", "198.18.0.20")
    hard.ping("a", "10.3.0.2")
    hard.ping("c", "198.18.0.20")
    hard.ok("apply", hard.write("hard", LAB))
    assert pids(hard) == before
    assert kinds(hard) == PORTS
    everything_works(hard)


def test_two_applies_at_once_both_happen(hard: Place) -> None:
    """One behind the other: what is left is what one of them says, and no mixture."""
    delays = (3, 4)
    files = [hard.write(f"hard{ms}", late(ms)) for ms in delays]
    started = [hard.start("apply", file) for file in files]
    assert [finish(process).returncode for process in started] == [0, 0]
    port = hard.ports()["vale2:a"]
    assert port["in"]["delay"] in [1000 * ms for ms in delays]
    changes = [hard.json("apply", file, "--dry-run")["changes"] for file in files]
    assert sorted(map(len, changes)) == [0, 2]  # two NICs are late


def late(ms: int) -> str:
    return LAB.replace("delay: 1ms", f"delay: {ms}ms").replace("switches:", "name: hard\nswitches:")


def test_valed_killed_is_said_and_started_again(hard: Place) -> None:
    valed = hard.valed()
    os.kill(valed, signal.SIGKILL)
    hard.wait_for("end of valed", lambda: not hard.valed_runs())
    assert states(hard) == {"a": "no switch", "b": "no switch"}
    before = pids(hard)
    hard.ok("apply", hard.write("hard", LAB))
    assert hard.valed() != valed
    assert pids(hard) == before
    assert states(hard) == {"a": "running", "b": "running"}
    hard.wait_for("all ports", lambda: kinds(hard) == PORTS)
    everything_works(hard)
    assert hard.ports()["vale2:a"]["in"]["delay"] == 1000
    assert hard.ports()["vale1:b"]["out"]["delay"] == 1000
    (private,) = [name for name in hard.switches() if name.startswith("valeL")]
    assert hard.switches()[private]["p2p"] is True


def test_a_valed_that_forgot_gets_everything_again(hard: Place) -> None:
    """It was told to end, and so removed what it keeps; another one knows nothing."""
    with Qmp(hard.rundir / "qmp.sock") as qmp:
        qmp.execute("quit", forget=True)
    hard.wait_for("end of valed", lambda: not hard.valed_runs())
    done = hard.run("up", hard.write("hard", LAB))
    assert done.returncode == 0
    assert "port vale1:a: made again" in done.stderr
    assert "port vale1:b: impaired again" in done.stderr
    hard.wait_for("all ports", lambda: kinds(hard) == PORTS)
    everything_works(hard)
    assert hard.ports()["vale2:a"]["in"]["delay"] == 1000
    assert hard.ports()["vale1:b"]["out"]["delay"] == 1000
    (private,) = [name for name in hard.switches() if name.startswith("valeL")]
    assert hard.switches()[private]["p2p"] is True


def test_guests_that_panic_or_are_killed_come_back_by_up(hard: Place) -> None:
    before = pids(hard)
    panic = hard.start("exec", "a", "echo c > /proc/sysrq-trigger")
    os.kill(before["b"], signal.SIGKILL)
    hard.wait_for("their ends", lambda: not hard.guests())
    finish(panic)
    assert states(hard) == {"a": "dead", "b": "dead"}
    assert "Kernel panic" in hard.ok("logs", "a")
    assert "guest a of lab hard is dead" in hard.fails(125, "exec", "a", "true")
    done = hard.run("up", hard.write("hard", LAB))
    assert done.returncode == 0, done.stderr
    assert states(hard) == {"a": "running", "b": "running"}
    assert not set(before.values()) & set(pids(hard).values())
    assert kinds(hard) == PORTS
    everything_works(hard)


def test_a_frozen_guest_is_not_answering(hard: Place) -> None:
    pid = pids(hard)["a"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert states(hard) == {"a": "not answering", "b": "running"}
    finally:
        os.kill(pid, signal.SIGCONT)
    assert states(hard) == {"a": "running", "b": "running"}


def test_a_state_file_of_no_use_starts_the_lab_afresh(hard: Place) -> None:
    before = hard.guests()
    hard.state_file("hard").write_text('{"schema": 2, "guests": ')
    said = hard.fails(1, "status", "hard")
    assert "lab hard: its state file is of no use: 'valemgr down hard' cleans up" in said
    assert "lab hard: its state file is of no use" in hard.run("status").stderr
    done = hard.run("up", hard.write("hard", LAB))
    assert done.returncode == 0, done.stderr
    assert "lab hard: its state file is of no use: what is left" in done.stderr
    assert not set(before) & set(hard.guests())
    assert len(hard.guests()) == 2
    assert kinds(hard) == PORTS


def test_another_boot_and_frozen_guests_are_cleaned_up(hard: Place) -> None:
    """The pids of a state file from before a reboot mean nothing; sockets tell who is there."""
    state = hard.state("hard")
    state["boot_id"] = "of another boot"
    hard.state_file("hard").write_text(json.dumps(state))
    assert set(states(hard).values()) == {"gone (the host was rebooted)"}
    for pid in hard.guests():
        os.kill(pid, signal.SIGSTOP)
    hard.ok("down", "hard")
    hard.assert_nothing_left()


def test_down_cleans_up_behind_any_step(place: Place) -> None:
    """Killed, and ended by `down`: behind the steps of `up` that make something."""
    steps, file = place.root / "steps", place.write("hard", LAB)
    told = ["write id_ed25519", "write id_ed25519.pub", "write a.json", "write b.json"]
    told += [f"state: {n} switches; no guests" for n in (1, 2, 3)]
    steps.write_text("\n".join([*told, ""]))
    for _ in range(STEPS_MAX):
        assert killed(place, steps, "up", file)
        place.ok("down", "hard")
        place.assert_nothing_left()
        if "ssh" in steps.read_text():
            break
    found = steps.read_text().splitlines()[len(told) :]
    print("killed behind", *found, sep="\n  ")
    assert {"state: 0 switches; no guests", "valed: port-add vale1:a", "start hard/a"} <= {*found}


def test_a_killed_down_is_repeated(place: Place) -> None:
    """Guests that were just launched do: their processes and ports are all there."""
    up = place.start("up", place.write("hard", LAB))
    for _ in "ab":
        until_said(up, "booting")
    up.kill()
    finish(up)
    found = repeat(place, "down.steps", "down", "hard")
    for least in ("stop hard/", "valed: port-del vale1:a", "delete hard"):
        assert any(least in step for step in found)
    place.assert_nothing_left()


def test_who_comes_second_is_told_who_works_and_may_end_it(place: Place) -> None:
    file = place.write("hard", LAB)
    first = place.start("up", file)
    until_said(first, "booting")
    first.send_signal(signal.SIGSTOP)  # it works for longer than others wait
    others = [place.start(*words) for words in (("down", "hard"), ("apply", file), ("up", file))]
    for done in map(finish, others):
        assert done.returncode == 1
        busy = f"lab hard is busy: held by 'up' (pid {first.pid}); wait for it, or end it and the"
        assert busy in done.stderr
    assert set(place.status("hard")) == {"a", "b"}  # who only reads does not wait
    down = place.start("down", "hard", "--force")
    pending = Path(f"/proc/{first.pid}/status")
    told = f"{1 << signal.SIGTERM - 1:016x}"
    place.wait_for("SIGTERM", lambda: f"ShdPnd:\t{told}" in pending.read_text())
    first.send_signal(signal.SIGCONT)
    assert finish(down).returncode == 0
    assert finish(first).returncode == 130
    place.assert_nothing_left()


def test_a_panic_at_startup_shows_the_console(place: Place) -> None:
    panic = "echo c > /proc/sysrq-trigger; sleep 60"
    file = place.write("hard", f"guests: {{a: {{startup: ['{panic}']}}}}")
    said = place.fails(1, "up", file)
    assert "valemgr: guest a: its kernel panicked: sysrq triggered crash\n    [" in said
    place.assert_nothing_left()


def test_a_directory_without_a_state_file(place: Place) -> None:
    folder = place.labs / "hard"
    folder.mkdir(parents=True, mode=0o700)
    place.labs.chmod(0o700)
    (folder / "a.ctl").write_text("no socket")
    assert "lab hard: its state file is of no use" in place.fails(1, "status", "hard")
    place.ok("down", "hard")
    place.assert_nothing_left()
