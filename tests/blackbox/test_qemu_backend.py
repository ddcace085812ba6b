# SPDX-License-Identifier: BSD-2-Clause
"""Our netdev backend in a real QEMU, without a guest: see lib/backend.py."""

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest

from lib.backend import (
    ETH_ZLEN,
    MARKS,
    NO_GUEST,
    ROOT,
    SECONDS,
    Hub,
    Switch,
    clean_env,
    cpu_ticks,
    ended,
    frame,
    hub,
    qemu,
    refused,
    resources,
    running,
)
from lib.qmp import Qmp
from lib.valed import eventually

pytestmark = MARKS


@pytest.mark.parametrize("size", [14, 59, 60, 64, 1514, 2047, 2048, 2049, 4096, 9018, 32768, 65535])
async def test_frames_cross_both_ways(short_path: Path, switch: Switch, size: int) -> None:
    async with (
        hub(short_path, switch.env, "vale1:a") as a,
        hub(short_path, switch.env, "vale1:b") as b,
    ):
        for number, (source, sink) in enumerate([(a, b), (b, a)] * 3):
            sent = frame(size, number, source=1 + number % 2)
            await source.send(sent)
            assert await sink.receive() == sent.ljust(ETH_ZLEN, b"\0")


async def test_order_and_counters(short_path: Path, switch: Switch) -> None:
    total, window = 2000, 8  # what a unix datagram socket holds for us without waiting
    async with (
        hub(short_path, switch.env, "vale1:a") as a,
        hub(short_path, switch.env, "vale1:b") as b,
    ):
        for start in range(0, total, window):
            frames = [frame(100 + number, number) for number in range(start, start + window)]
            receiving = asyncio.create_task(b.receive_many(window))
            for sent_frame in frames:
                await a.send(sent_frame)
            assert await receiving == frames
        sent, received = await a.qemu.netdev(), await b.qemu.netdev()
        info = await a.qemu.info()
    octets = sum(100 + number for number in range(total))
    assert (sent["ifname"], sent["provider"], sent["state"]) == ("vale1:a", "user", "connected")
    assert (sent["tx-frames"], sent["tx-bytes"]) == (total, octets)
    assert (received["rx-frames"], received["rx-bytes"]) == (total, octets)
    assert sent["tx-dropped"] == received["rx-dropped"] == 0
    assert (info["ifname"], info["state"]) == ("vale1:a", "connected")
    assert int(info["tx_frames"]) == total
    assert int(info["tx_dropped"]) == 0


async def test_full_ring_holds_frames_back(short_path: Path, switch: Switch) -> None:
    total = 1200
    async with (
        hub(short_path, switch.env, "vale1:a") as a,
        hub(short_path, switch.env, "vale1:b") as b,
    ):
        await a.send(frame(60))
        await b.receive()
        switch.process.send_signal(signal.SIGSTOP)

        async def feed() -> None:
            for number in range(1, total):
                await a.send(frame(60, number))

        feeding = asyncio.create_task(feed())
        while (await a.qemu.netdev())["tx-full"] == 0:
            assert not feeding.done(), "1200 frames fit into a ring of 1024"
        switch.process.send_signal(signal.SIGCONT)
        numbers = [int.from_bytes(got[14:18], "big") for got in await b.receive_many(1000)]
        async with asyncio.timeout(SECONDS):
            await feeding
        sent = await a.qemu.netdev()
    # Not compared in order: QEMU's own hub swaps two frames when the dgram side had to wait.
    assert len(set(numbers)) == 1000
    assert sent["tx-frames"] == total


async def test_switch_that_dies_takes_the_link_not_qemu(short_path: Path, switch: Switch) -> None:
    async with hub(short_path, switch.env, "vale1:a") as a:
        await a.send(frame(60))
        await ended(switch.process)
        for number in range(100):
            await a.send(frame(1514, number))
        before = cpu_ticks(a.qemu.process.pid)
        await asyncio.sleep(0.5)
        assert cpu_ticks(a.qemu.process.pid) - before < 0.1 * os.sysconf("SC_CLK_TCK")
        assert await a.qemu.qmp.execute("query-status")
        warnings = [line for line in a.qemu.said().splitlines() if "hub 0" not in line]
        assert len(warnings) == 1
        assert "netdev n: the switch of vale1:a is gone" in warnings[0]


async def arrives(source: Hub, sink: Hub, number: int) -> None:
    """Frames go until this one has come out; without a link they are lost."""
    while True:
        await source.send(frame(100, number))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                while await sink.receive() != frame(100, number):
                    pass
                return


async def test_switch_that_is_restarted_is_used_again(short_path: Path, switch: Switch) -> None:
    """Three times, killed or ended, with traffic meanwhile; no descriptor is left behind."""
    process = switch.process
    async with (
        contextlib.AsyncExitStack() as stack,
        hub(short_path, switch.env, "vale1:a") as a,
        hub(short_path, switch.env, "vale1:b") as b,
    ):
        hubs = (a, b)
        fds = [len(os.listdir(f"/proc/{h.qemu.process.pid}/fd")) for h in hubs]  # noqa: PTH208
        for number in range(1, 4):
            (process.terminate if number == 2 else process.kill)()
            await process.wait()
            for _ in range(50):
                await a.send(frame(1514, number))
            process = (await stack.enter_async_context(running(switch.rundir))).process
            began = asyncio.get_running_loop().time()
            async with asyncio.timeout(SECONDS):
                await arrives(a, b, 100 + number)
                print(f"forwarding after {asyncio.get_running_loop().time() - began:.3f} s")
                await arrives(b, a, 200 + number)
        assert [len(os.listdir(f"/proc/{h.qemu.process.pid}/fd")) for h in hubs] == fds  # noqa: PTH208
        log = a.qemu.said()
        assert log.count("netdev n: the switch of vale1:a is gone") == 3
        assert log.count("netdev n: the switch of vale1:a is back") == 3
        found = await a.qemu.netdev()
        assert (found["state"], found["lost"]) == ("connected", 3)


async def test_switch_that_is_not_waited_for_stays_away(
    short_path: Path, switch: Switch
) -> None:
    async with hub(short_path, switch.env, "vale1:a", ",reconnect-ms=0") as a:
        await ended(switch.process)
        await asyncio.to_thread(eventually, "a warning", lambda: "is gone" in a.qemu.said())
        async with running(switch.rundir):
            await a.send(frame(60))
            found = await a.qemu.netdev()
            assert (found["state"], found["lost"], found["tx-frames"]) == ("removed", 1, 0)
            with Qmp(switch.rundir / "qmp.sock") as qmp:
                assert qmp.ports() == {}


async def test_port_that_is_taken_away_stays_away(short_path: Path, switch: Switch) -> None:
    async with hub(short_path, switch.env, "vale1:a") as a:
        with Qmp(switch.rundir / "qmp.sock") as qmp:
            qmp.execute("port-del", name="vale1:a")
            said = "vale1:a was taken away, the link stays down"
            log = a.qemu.log
            await asyncio.to_thread(eventually, said, lambda: said in log.read_text())
            assert qmp.ports() == {}
        await a.send(frame(60))
        assert await a.qemu.qmp.execute("query-status")


async def test_frames_published_before_a_stop_of_the_switch_are_not_lost(
    short_path: Path, switch: Switch
) -> None:
    async with (
        hub(short_path, switch.env, "vale1:a") as a,
        hub(short_path, switch.env, "vale1:b") as b,
    ):
        switch.process.send_signal(signal.SIGSTOP)
        for number in range(100):
            await a.send(frame(3000, number))
        switch.process.send_signal(signal.SIGCONT)
        assert set(await b.receive_many(100)) == {frame(3000, n) for n in range(100)}


@pytest.mark.parametrize("queues", [1, 4])
async def test_netdevs_come_and_go_without_a_trace(
    short_path: Path, switch: Switch, queues: int
) -> None:
    async with qemu(short_path, "q", switch.env, *NO_GUEST) as process:
        netdev = {"type": "netmap", "id": "n", "ifname": "vale1:a", "queues": queues}
        before = resources(process.process.pid)
        for _ in range(100):
            await process.qmp.execute("netdev_add", netdev)
            assert (await process.netdev())["queues"] == queues
            await process.qmp.execute("netdev_del", {"id": "n"})
        listed = await process.qmp.execute("qom-list", {"path": "/netmap"})
        assert [entry for entry in listed if entry["name"] == "n"] == []
        assert resources(process.process.pid) == before
        assert process.said() == ""


async def test_idle_costs_no_cpu(short_path: Path, switch: Switch) -> None:
    async with hub(short_path, switch.env, "vale1:a") as a:
        before = cpu_ticks(a.qemu.process.pid)
        await asyncio.sleep(1)
        assert cpu_ticks(a.qemu.process.pid) - before <= 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("", "Parameter 'ifname' is missing"),
        ("ifname=", "not a port name"),
        ("ifname=eth0", "eth0"),
        ("ifname=vale1:a:b", "vale1:a:b"),
        ("ifname=vale1:a b", "vale1:a b"),
        ("ifname=vale1:port-a", "vale1:port-a"),
        ("ifname=vale" + "x" * 20 + ":a", "x" * 20),
        ("ifname=vale1:" + "x" * 40, "x" * 40),
        ("ifname=vale1:a,devname=/nonexistent", "/nonexistent"),
        ("ifname=vale1:a,devname=/etc/passwd", "/etc/passwd"),
        ("ifname=vale1:a,devname=/" + "x" * 200, "x" * 20),
        ("ifname=vale1:a,colour=red", "colour"),
        ("ifname=vale1:a,queues=0", "queues=0: use 1 to 16"),
        ("ifname=vale1:a,queues=17", "queues=17: use 1 to 16"),
        ("ifname=vale1:a,queues=two", "queues"),
        ("ifname=vale1:a,reconnect-ms=-1", "reconnect-ms"),
        ("ifname=vale1:a,reconnect-ms=soon", "reconnect-ms"),
    ],
)
async def test_wrong_option_is_one_line(switch: Switch, options: str, says: str) -> None:
    assert says in await refused(switch.env, "-netdev", f"netmap,id=n,{options}".rstrip(","))


async def test_a_hub_has_no_queues(switch: Switch) -> None:
    argv = ("-net", "netmap,ifname=vale1:a,queues=2")
    assert "a hub knows only one queue" in await refused(switch.env, *argv)


async def test_no_switch_is_one_line(short_path: Path) -> None:
    if Path("/dev/netmap").exists():
        pytest.skip("this machine has /dev/netmap")
    line = await refused(clean_env(short_path), "-netdev", "netmap,id=n,ifname=vale1:a")
    assert "valed" in line
    assert str(short_path) in line


async def test_port_taken_is_one_line(short_path: Path, switch: Switch) -> None:
    async with hub(short_path, switch.env, "vale1:a"):
        line = await refused(switch.env, "-netdev", "netmap,id=n,ifname=vale1:a")
    assert "vale1:a" in line


async def test_full_switch_is_one_line(short_path: Path, switch: Switch) -> None:
    ports = [f"netmap,id=n{i},ifname=vale1:p{i}" for i in range(254)]
    async with contextlib.AsyncExitStack() as stack:
        for start in range(0, len(ports), 64):
            argv = [*NO_GUEST]
            for port in ports[start : start + 64]:
                argv += ["-netdev", port]
            await stack.enter_async_context(qemu(short_path, f"q{start}", switch.env, *argv))
        line = await refused(switch.env, "-netdev", "netmap,id=n,ifname=vale1:z")
    assert "vale1" in line


async def test_socket_that_is_not_valeds_is_one_line(short_path: Path) -> None:
    path = short_path / "netmap.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                _, fds, _, _ = socket.recv_fds(connection, 4096, 4)
                with socket.socket(fileno=fds[0]) as reply:
                    reply.send(b"garbage" * 40)

        answering = asyncio.create_task(asyncio.to_thread(answer))
        devname = f"netmap,id=n,ifname=vale1:a,devname={path}"
        assert str(path) in await refused(clean_env(short_path), "-netdev", devname)
        await answering


async def test_the_words_of_the_manual_page(short_path: Path, switch: Switch) -> None:
    argv = ["-machine", "pc", "-S", "-display", "none", "-net", "nic", "-net"]
    async with qemu(
        short_path, "nic", switch.env, *argv, "netmap,ifname=vale1:a", "-accel", "tcg"
    ) as guest:
        assert (await guest.info())["ifname"] == "vale1:a"
        assert guest.said() == ""


async def test_sources_pass_qemus_own_style_check() -> None:
    checkpatch = ROOT / "build/qemu/bookworm/src/scripts/checkpatch.pl"
    if not checkpatch.exists():
        pytest.skip(f"no {checkpatch}: run 'make qemu'")
    process = await asyncio.create_subprocess_exec(
        *("perl", str(checkpatch), "--no-tree", "--no-signoff", "--strict", "-f"),
        str(ROOT / "qemu-backend/netmap.c"),
        stdout=asyncio.subprocess.PIPE,
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
