# SPDX-License-Identifier: BSD-2-Clause
"""netmap.sock: opening, sharing and closing ports, and every wrong way to ask.

    program --- connection ---+
                              +--- valed: one connection is one open of /dev/netmap
    program --- connection ---+

A switch is there from its first port to its last; a port from its first descriptor to its last.
"""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from lib import native
from lib.native import (
    BROADCAST,
    LIST_BODY,
    OPTION,
    PORT_INFO_GET,
    REGISTER,
    VALE_LIST,
    AttachError,
    Port,
    fetch,
    message,
    numbered,
    post,
    register,
    register_body,
    request,
    station,
)
from lib.valed import ROOT, Valed, check_books, eventually, sanitizer

pytestmark = pytest.mark.blackbox

A, B = station(1), station(2)
VECTORS = json.loads((ROOT / "tests/vectors/names.json").read_text())["vectors"]


def refused(valed: Valed, name: str, **body: int) -> int:
    """The errno of a REGISTER that must fail."""
    with pytest.raises(AttachError) as caught:
        Port.open(valed.rundir, name, **body)
    assert caught.value.errno is not None
    return caught.value.errno


# ------------------------------------------------------------------------------------------- life


def test_switches_and_ports_appear_and_vanish(valed: Valed) -> None:
    """a and b come, a goes, b goes; the events tell it in order."""
    qmp = valed.qmp()
    a, b = valed.open("vale1:a"), valed.open("vale1:b")
    (switch,) = qmp.execute("query-switches")
    assert (switch["name"], switch["ports"], switch["stations"]) == ("vale1", 2, 0)
    a.close()
    told = [qmp.event() for _ in range(4)]
    b.close()
    told += [qmp.event() for _ in range(2)]
    assert [(name, data["name"]) for name, data in told] == [
        ("SWITCH_ADDED", "vale1"),
        ("PORT_ADDED", "vale1:a"),
        ("PORT_ADDED", "vale1:b"),
        ("PORT_REMOVED", "vale1:a"),
        ("PORT_REMOVED", "vale1:b"),
        ("SWITCH_REMOVED", "vale1"),
    ]
    assert told[1][1]["kind"] == "native"
    assert told[3][1]["reason"] == told[4][1]["reason"] == "closed by its client"
    assert qmp.execute("query-switches") == qmp.execute("query-ports") == []


def test_last_counters_come_with_the_removal(valed: Valed) -> None:
    qmp = valed.qmp()
    a = valed.open("vale1:a")
    a.send(numbered(BROADCAST, A, 7))
    a.flush()
    a.close()
    while (event := qmp.event())[0] != "PORT_REMOVED":
        pass
    assert event[1]["rx"]["frames"] == 7


def test_port_says_who_opened_it(valed: Valed) -> None:
    valed.open("vale1:a")
    port = valed.qmp().port("vale1:a")
    assert port["peer"] == {"uid": os.getuid(), "pid": os.getpid()}
    assert (port["kind"], port["exclusive"], port["rings"]) == ("native", True, 1)


def test_register_answers_with_the_layout(valed: Valed) -> None:
    """What REGISTER says, the control block repeats, and netmap's structures agree."""
    a = valed.open("vale1:a", tx_rings=3, rx_rings=2, tx_slots=128, rx_slots=256, extra_bufs=5)
    assert a.region[0] == native.REGION_MAGIC
    assert a.region[1:8] == (1, a.memsize, a.offset, 3, 2, 128, 256)
    assert os.fstat(a.mem_fd).st_size == a.memsize
    assert a.buf_count == 2 + 3 * 128 + 2 * 256 + 5
    assert [r.num_slots for r in (*a.tx, *a.rx)] == [128] * 3 + [256] * 2
    assert [r.ringid for r in (*a.tx, *a.rx)] == [0, 1, 2, 0, 1]
    assert [r.dir for r in (*a.tx, *a.rx)] == [1] * 3 + [0] * 2
    indexes = [r.slot(i)[0] for r in (*a.tx, *a.rx) for i in range(r.num_slots)]
    extra = struct.unpack_from("<I", a.mem, a.offset + 32)[0]
    while extra:
        indexes.append(extra)
        extra = struct.unpack_from("<I", a.mem, a.tx[0].buffer(extra))[0]
    assert sorted(indexes) == list(range(2, a.buf_count))  # each buffer belongs to one place
    last = a.tx[0].buffer(a.buf_count - 1) + a.tx[0].buf_size
    assert last <= a.memsize
    assert [(r.hwcur, r.hwtail) for r in a.tx] == [(0, 127)] * 3
    assert [(r.hwcur, r.hwtail) for r in a.rx] == [(0, 0)] * 2


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({}, (1024, 1024, 1, 1, 0)),
        ({"tx_slots": 1, "rx_slots": 9999}, (64, 4096, 1, 1, 0)),
        ({"tx_rings": 99, "rx_rings": 16, "tx_slots": 64, "rx_slots": 64}, (64, 64, 16, 16, 0)),
        ({"extra_bufs": 2**32 - 1}, (1024, 1024, 1, 1, 4096)),
    ],
)
def test_wishes_are_clamped(
    valed: Valed, asked: dict[str, int], given: tuple[int, int, int, int, int]
) -> None:
    a = valed.open("vale1:a", **asked)
    assert (a.tx_slots, a.rx_slots, a.tx_rings, a.rx_rings, a.extra_bufs) == given


def test_region_cannot_be_resized_nor_resealed(valed: Valed) -> None:
    a = valed.open("vale1:a")
    for size in (0, a.memsize - 4096, a.memsize + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(a.mem_fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(a.mem_fd, 1033, 0x8)  # F_ADD_SEALS, F_SEAL_WRITE


def test_254_ports_fit_and_the_255th_does_not(valed: Valed) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2200:
        pytest.skip("needs a hard limit (ulimit -Hn) of 2200 descriptors: a port takes eight")
    ports = [valed.open(f"vale1:p{i}", tx_slots=64, rx_slots=64) for i in range(254)]
    assert refused(valed, "vale1:one_more") == errno.ENOMEM
    valed.open("vale2:elsewhere")
    ports[0].send([native.frame(BROADCAST, A)])
    for port in ports[1:]:
        assert len(port.receive(1)) == 1
    ports[100].close()
    eventually("a free place", lambda: len(valed.qmp().ports("vale1")) == 253)
    valed.open("vale1:one_more")
    assert refused(valed, "vale1:and_another") == errno.ENOMEM


def test_max_bridges() -> None:
    with Valed.run("--max-bridges", "2") as valed:
        valed.open("vale1:a")
        valed.open("vale2:a")
        assert refused(valed, "vale3:a") == errno.ENOMEM
        valed.open("vale2:b")


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: repr(v["text"]))
def test_names(valed: Valed, vector: dict[str, str | bool]) -> None:
    name = str(vector["text"])
    if vector.get("ok", True):
        valed.open(name)
        assert list(valed.qmp().ports()) == [vector["full"]]
    else:
        assert refused(valed, name) == errno.EINVAL
        assert valed.qmp().ports() == {}


def test_name_of_an_interface_is_refused(valed: Valed) -> None:
    assert refused(valed, "vale1:lo") == errno.EINVAL
    assert valed.qmp().execute("query-switches") == []


def test_name_without_its_end_is_refused(valed: Valed) -> None:
    with native.connect(valed.rundir) as sock:
        assert register(sock, b"vale1:" + b"a" * 58).error == errno.EINVAL
        assert register(sock, b"v" * 64).error == errno.EINVAL


# ---------------------------------------------------------------------------------------- sharing


def test_exclusive_and_shared(valed: Valed) -> None:
    """NR_EXCLUSIVE on either side is EBUSY; without, two descriptors are one port."""
    valed.open("vale1:x")
    assert refused(valed, "vale1:x") == errno.EBUSY
    assert refused(valed, "vale1:x", flags=0) == errno.EBUSY
    first = valed.open("vale1:s", flags=0)
    assert refused(valed, "vale1:s") == errno.EBUSY
    second = valed.open("vale1:s", flags=0)
    qmp = valed.qmp()
    assert len(qmp.ports()) == 2
    assert second.memsize == first.memsize
    first.mem[first.tx[0].buffer(2)] = 77
    assert second.mem[second.tx[0].buffer(2)] == 77  # the same memory
    first.close()
    assert len(qmp.ports()) == 2
    second.send(numbered(BROADCAST, A, 1))
    second.flush()
    second.close()
    eventually("the port to go", lambda: list(qmp.ports()) == ["vale1:x"])


def test_second_register_on_one_descriptor_is_busy(valed: Valed) -> None:
    a = valed.open("vale1:a", flags=0)
    assert register(a.sock, "vale1:b", flags=0).error == errno.EBUSY
    assert register(a.sock, "vale1:a", flags=0).error == errno.EBUSY
    assert list(valed.qmp().ports()) == ["vale1:a"]


@pytest.mark.another_user
def test_other_user_cannot_share(valed: Valed) -> None:
    """A port opened shared by uid 0 is EBUSY for uid 65534, who may have ports of its own."""
    valed.open("vale1:a", flags=0)

    def try_both() -> int:
        busy = refused(valed, "vale1:a", flags=0)
        with Port.open(valed.rundir, "vale1:mine", flags=0):
            return 0 if busy == errno.EBUSY else 2

    assert valed.as_nobody(try_both) == 0


# ---------------------------------------------------------------------------------------- closing


def test_close_then_open_never_fails(valed: Valed) -> None:
    """200 times the same name in a row, with frames under way: REGISTER waits for the name."""
    witness = valed.open("vale1:witness")
    for i in range(200):
        with Port.open(valed.rundir, "vale1:a", tx_slots=64, rx_slots=64) as port:
            port.send(numbered(BROADCAST, A, 3, first=3 * i))
        if i % 50 == 0:
            witness.drain()
    witness.drain()
    eventually("the last one to go", lambda: len(valed.qmp().ports()) == 1)


def test_waiting_register_may_be_given_up(valed: Valed) -> None:
    """A REGISTER that had to wait for a name whose client leaves before it is served."""
    for _ in range(50):
        port = Port.open(valed.rundir, "vale1:a")
        port.send(numbered(BROADCAST, A, 1000), batch=1000)
        sock = native.connect(valed.rundir)
        port.close()
        post(sock, message(REGISTER, "vale1:a", register_body())).close()
        sock.close()
    eventually("all to go", lambda: valed.qmp().ports() == {})


def test_hang_up_forwards_everything_published_before(valed: Valed) -> None:
    """The sender publishes half a ring without a kick being needed, and is gone at once."""
    b = valed.open("vale1:b")
    for lap in range(50):
        with Port.open(valed.rundir, "vale1:a") as a:
            for data in numbered(BROADCAST, A, 600, first=600 * lap):
                a.tx[0].put(data)
            a.tx[0].publish()
        got = [native.number(data) for data in b.receive(600)]
        assert got == list(range(600 * lap, 600 * lap + 600))


CLIENT = """
import sys
from pathlib import Path
from lib.native import *
port = Port.open(Path(sys.argv[1]), sys.argv[2])
print("ready", flush=True)
while True:
    port.send(numbered(BROADCAST, station(5), 200))
    port.drain()
"""


def test_client_killed_in_mid_traffic(valed: Valed) -> None:
    """SIGKILL leaves no port, no descriptor and no thread busy behind."""
    b = valed.open("vale1:b")
    qmp = valed.qmp()
    before = valed.fds()
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(valed.rundir), "vale1:a"],
            stdout=subprocess.PIPE,
            cwd=ROOT / "tests",
        )
        with child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            for _ in range(5):
                b.receive(500)
            child.send_signal(signal.SIGKILL)
        eventually("the port to go", lambda: list(qmp.ports()) == ["vale1:b"])
        b.drain()
    eventually("descriptors to be closed", lambda: valed.fds() <= before)
    check_books(qmp.ports())


def test_no_descriptor_nor_memory_leaks(valed: Valed) -> None:
    """After 200 opens and closes there are as many descriptors, and hardly more memory."""

    def cycle(times: int) -> None:
        for _ in range(times):
            with Port.open(valed.rundir, "vale1:a") as port:
                port.send(numbered(BROADCAST, A, 20))
        eventually("the port to go", lambda: valed.qmp().ports() == {})
        valed.close_clients()

    start = valed.fds()
    cycle(50)
    rss = valed.status("VmRSS")
    cycle(200)
    eventually("descriptors to be closed", lambda: valed.fds() <= start)
    if not sanitizer():
        assert valed.status("VmRSS") < rss + 1024  # kB


def test_client_sees_its_port_taken_away(valed: Valed) -> None:
    """port-del, then quit: connection and pipes hang up, and nobody stumbles over the remains."""
    qmp = valed.qmp()
    a, b = valed.open("vale1:a", flags=0), valed.open("vale1:b")
    shared = valed.open("vale1:a", flags=0)
    qmp.execute("port-del", name="vale1:a")
    assert a.hung_up()
    assert shared.hung_up()
    a.close()
    shared.close()
    again = valed.open("vale1:a")
    again.send(numbered(BROADCAST, A, 2))
    assert len(b.receive(2)) == 2
    qmp.execute("quit")
    assert b.hung_up()
    assert again.hung_up()
    assert valed.wait() == 0


# --------------------------------------------------------------------------- information, options


def test_list_walks_over_all_ports(valed: Valed) -> None:
    names = ["vale1:a", "vale1:b", "vale2:x", "vale3:y"]
    for name in names:
        valed.open(name)
    with native.connect(valed.rundir) as sock:
        found, at = [], (0, 0)
        while True:
            answer = request(sock, message(VALE_LIST, "", LIST_BODY.pack(*at)))
            if answer.error:
                assert answer.error == errno.ENOENT
                break
            switch, port = LIST_BODY.unpack_from(answer.body)
            found.append((answer.name, switch, port))
            at = (switch, port + 1)
        assert found == list(zip(names, (0, 0, 1, 2), (0, 1, 0, 0), strict=True))
        for name, switch, port in found:
            answer = request(sock, message(VALE_LIST, name, LIST_BODY.pack(7, 7)))
            assert (answer.error, LIST_BODY.unpack_from(answer.body)) == (0, (switch, port))
        nobody = message(VALE_LIST, "vale1:z", LIST_BODY.pack(0, 0))
        assert request(sock, nobody).error == errno.ENOENT
        wrong = message(VALE_LIST, "eth0", LIST_BODY.pack(0, 0))
        assert request(sock, wrong).error == errno.EINVAL
        far = message(VALE_LIST, "", LIST_BODY.pack(0xFFFF, 0xFFFFFFFF))
        assert request(sock, far).error == errno.ENOENT


def test_port_info(valed: Valed) -> None:
    a = valed.open("vale1:a", tx_rings=2, rx_slots=256)
    with native.connect(valed.rundir) as sock:
        body = bytes(native.INFO_BODY.size)
        answer = request(sock, message(PORT_INFO_GET, "vale1:a", body))
        assert answer.error == 0
        assert native.INFO_BODY.unpack_from(answer.body)[:5] == (a.memsize, 1024, 256, 2, 1)
        answer = request(sock, message(PORT_INFO_GET, "vale9:nobody", body))
        assert answer.error == 0
        assert native.INFO_BODY.unpack_from(answer.body)[1:5] == (1024, 1024, 1, 1)
        assert request(sock, message(PORT_INFO_GET, "nonsense", body)).error == errno.EINVAL
    assert list(valed.qmp().ports()) == ["vale1:a"]


def test_unknown_options_get_their_status(valed: Valed) -> None:
    """Each option gets EOPNOTSUPP written into it, the request fails, nothing is opened."""
    first_at = native.HEADER.size + native.REGISTER_BODY.size
    options = OPTION.pack(first_at + OPTION.size, 1, 0, 72) + OPTION.pack(0, 5, 0, 32)
    with native.connect(valed.rundir) as sock:
        data = message(REGISTER, "vale1:a", register_body(), options=options)
        answer = request(sock, data)
        assert (answer.error, answer.fds) == (errno.EOPNOTSUPP, [])
        status = [
            OPTION.unpack_from(answer.message, first_at + i * OPTION.size)[2] for i in range(2)
        ]
        assert status == [errno.EOPNOTSUPP] * 2
        assert register(sock, "vale1:a").error == 0


def test_options_that_are_wrong(valed: Valed) -> None:
    at = native.HEADER.size + native.REGISTER_BODY.size
    wrong = {
        "type 0": (OPTION.pack(0, 0, 0, 0), errno.EINVAL),
        "a loop": (OPTION.pack(at, 9, 0, 0), errno.EMSGSIZE),
        "outside": (OPTION.pack(4000, 9, 0, 0), errno.EINVAL),
        "before the header's end": (OPTION.pack(8, 9, 0, 0), errno.EINVAL),
        "not aligned": (OPTION.pack(at + 1, 9, 0, 0), errno.EINVAL),
        "huge": (OPTION.pack(2**64 - 8, 9, 0, 0), errno.EINVAL),
    }
    with native.connect(valed.rundir) as sock:
        for what, (options, expected) in wrong.items():
            data = message(REGISTER, "vale1:a", register_body(), options=options)
            assert request(sock, data).error == expected, what
    assert valed.qmp().ports() == {}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"x", errno.EINVAL),
        (b"\0" * 87, errno.EINVAL),
        (message(REGISTER, "vale1:a", b""), errno.EINVAL),
        (message(REGISTER, "vale1:a", register_body()[:-1]), errno.EINVAL),
        (message(REGISTER, "vale1:a", register_body(), version=13), errno.EINVAL),
        (message(REGISTER, "vale1:a", register_body(), version=16), errno.EINVAL),
        (message(REGISTER, "vale1:a", register_body(), reserved=1), errno.EINVAL),
        (message(REGISTER, "vale1:a", register_body(mode=2)), errno.EINVAL),
        (message(REGISTER, "vale1:a", register_body(mode=4)), errno.EINVAL),
        (message(0, "vale1:a", register_body()), errno.EOPNOTSUPP),
        (message(999, "vale1:a", register_body()), errno.EOPNOTSUPP),
        (message(REGISTER, "vale1:a", register_body()).ljust(4096, b"\0"), 0),
        (message(REGISTER, "vale1:a", register_body(), version=15), 0),
    ],
)
def test_requests_that_are_wrong(valed: Valed, data: bytes, expected: int) -> None:
    with native.connect(valed.rundir) as sock:
        answer = request(sock, data)
        assert answer.error == expected
        assert len(answer.fds) == (4 if expected == 0 else 0)
        assert len(answer.message) == len(data)
        answer.close()
        assert (valed.qmp().ports() != {}) == (expected == 0)


# ----------------------------------------------------------------------------------- hostile peers


def test_what_is_no_request_hangs_up(valed: Valed) -> None:
    """No reply socket, too long, or empty: the connection ends, others live on."""
    start = valed.fds()
    for data, fds in ((b"x" * 100, 0), (b"x" * 5000, 1), (b"", 1), (b"", 3), (b"x" * 200, 12)):
        with native.connect(valed.rundir) as sock:
            files = [os.open("/dev/null", os.O_RDONLY) for _ in range(fds)]
            if fds:
                socket.send_fds(sock, [data], files)
            else:
                sock.send(data)
            for fd in files:
                os.close(fd)
            if fds != 12:
                assert sock.recv(1) == b"", (len(data), fds)
        eventually("it to be let go", lambda: valed.fds() <= start)


def test_reply_goes_where_nobody_reads(valed: Valed) -> None:
    """As reply sockets: a full one, a closed one, a file, a listening socket. Then a real one."""
    null = os.open("/dev/null", os.O_RDWR)
    ours, full = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    full.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            full.send(b"x" * 1000)
    gone, closed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gone.close()
    with native.connect(valed.rundir) as sock, socket.socket(socket.AF_UNIX) as listening:
        for fd in (null, full.fileno(), closed.fileno(), listening.fileno()):
            for _ in range(3):
                data = message(PORT_INFO_GET, "vale1:a", bytes(native.INFO_BODY.size))
                socket.send_fds(sock, [data], [fd])
        assert register(sock, "vale1:a").error == 0
    os.close(null)
    for end in (ours, full, closed):
        end.close()


def test_replies_that_are_never_read(valed: Valed) -> None:
    """300 answers with descriptors lie in sockets that nobody reads; an honest client is served."""
    held = []
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            sock = stack.enter_context(native.connect(valed.rundir))
            body = register_body(flags=0, tx_slots=64, rx_slots=64)
            held.append(stack.enter_context(post(sock, message(REGISTER, "vale1:a", body))))
        assert len(valed.open("vale1:b").tx) == 1
        assert fetch(held[150]).error == 0
    eventually("all to go", lambda: list(valed.qmp().ports()) == ["vale1:b"])


def test_connections_without_a_request(valed: Valed) -> None:
    start = valed.fds()
    idle = [native.connect(valed.rundir) for _ in range(300)]
    valed.open("vale1:a").close()
    for sock in idle:
        sock.close()
    eventually("all to go", lambda: valed.fds() <= start)


def test_flood_of_requests_does_not_starve_others(valed: Valed) -> None:
    """One client keeps its socket full of requests; another is served meanwhile."""
    with native.connect(valed.rundir) as sock:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = os.fork()
        if child == 0:
            data = message(PORT_INFO_GET, "vale1:a", bytes(native.INFO_BODY.size))
            with contextlib.suppress(OSError):
                while True:
                    socket.send_fds(sock, [data], [theirs.fileno()])
            os._exit(0)
        try:
            for i in range(20):
                valed.open(f"vale1:p{i}").close()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        ours.close()
        theirs.close()


def test_random_messages(valed: Valed) -> None:
    """2000 messages made of a good request with some bytes changed; each has an answer."""
    dice = random.Random(2)
    good = message(
        REGISTER,
        "vale1:a",
        register_body(tx_slots=64, rx_slots=64),
        options=OPTION.pack(0, 1, 0, 0),
    )
    for _ in range(100):
        with native.connect(valed.rundir) as sock:
            for _ in range(20):
                data = bytearray(good[: dice.choice([len(good), dice.randrange(1, len(good))])])
                if dice.random() < 0.5 and len(data) > 80:
                    data[72:80] = bytes(8)  # without options it gets further
                for _ in range(dice.randrange(4)):
                    data[dice.randrange(len(data))] = dice.randrange(256)
                answer = request(sock, bytes(data))
                assert 0 <= answer.error < 200
                answer.close()
    eventually("all to go", lambda: valed.qmp().ports() == {})


def test_valed_runs_out_of_descriptors() -> None:
    """64 of them: ports are refused, clients hung up, and all is well again when some leave."""
    with Valed.run(under=("prlimit", "--nofile=64:64")) as valed:
        start = valed.fds()
        ports, errors = [], set()
        for i in range(20):
            try:
                ports.append(Port.open(valed.rundir, f"vale1:p{i}", tx_slots=64, rx_slots=64))
            except (AttachError, ConnectionError, BrokenPipeError) as error:
                errors.add(error.errno)
        assert 4 <= len(ports) <= 8
        assert errors <= {errno.EMFILE, errno.ECONNRESET, errno.EPIPE, None}
        idle = [native.connect(valed.rundir) for _ in range(64)]
        ticks = valed.cpu_ticks()
        signal.sigtimedwait([], 0.5)
        assert valed.cpu_ticks() - ticks <= 5  # it does not spin over clients it cannot take
        for sock in idle:
            sock.close()
        for port in ports:
            port.close()
        eventually("all to go", lambda: valed.fds() <= start)
        valed.open("vale1:a")
        valed.close_clients()
        valed.process.send_signal(signal.SIGTERM)
        assert valed.wait() == 0
        lines = valed.errors().splitlines()
        assert set(lines) == {"valed: out of descriptors: a client is refused"}
        valed.log.write_text("")


def test_mapping_survives_the_port(valed: Valed) -> None:
    """The client keeps its memory after everything else is closed; valed has let go of it."""
    port = Port.open(valed.rundir, "vale1:a")
    mine = mmap.mmap(port.mem_fd, port.memsize)
    port.close()
    eventually("the port to go", lambda: valed.qmp().ports() == {})
    maps = Path(f"/proc/{valed.pid}/maps").read_text()
    assert "vale1:a" not in maps
    mine[0:4] = b"\0\0\0\0"
    mine.close()
