# SPDX-License-Identifier: BSD-2-Clause
"""What a machine offers to a lab, and what it lacks: in one line, with the remedy, exit code 4."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from valemgr import accel, emulator, environment
from valemgr.accel import AccelChoice, Accelerator
from valemgr.emulator import Emulator
from valemgr.environment import QEMU_MIB, Environment, available_mib, check_memory, find
from valemgr.errors import EnvironmentUnfitError
from valemgr.image import DISK_BOOT_SECONDS, Disk, DiskFormat, Identity
from valemgr.topology import Guest, Lab, Nic, Switch
from valemgr.words import Provider

pytestmark = pytest.mark.unit

OURS = Emulator(Path("/q/vale"), (7, 2), has_netmap=True)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Images in a folder of the test's, and an emulator that is not asked."""

    async def examine(path: Path) -> Emulator:
        return OURS

    monkeypatch.setenv("VALE_IMAGES", str(tmp_path))
    monkeypatch.setattr(emulator, "find", lambda wanted: Path(wanted or "/q/vale"))
    monkeypatch.setattr(emulator, "examine", examine)
    return tmp_path


@pytest.fixture
def image(machine: Path) -> Callable[..., None]:
    def make(name: str, **manifest: object) -> None:
        folder = machine / name
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps({"append": "quiet"} | manifest))
        for part in ("vmlinuz", "initrd.img"):
            (folder / part).touch()

    return make


def lab(*guests: Guest, provider: Provider = Provider.USER) -> Lab:
    return Lab(name="l", guests=guests, switches=(Switch(name="vale1", provider=provider),))


def guest_of(image: Path) -> Guest:
    return Guest(name="a", image=str(image), memory_mib=512)


async def refused(reason: str, wanted: Lab) -> None:
    with pytest.raises(EnvironmentUnfitError, match=reason) as caught:
        await find(wanted, AccelChoice.TCG)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


async def test_what_is_found(image: Callable[..., None]) -> None:
    image("one", memory_mib=64)
    image("two")
    wanted = lab(
        Guest(name="a", image="one", memory_mib=64), Guest(name="b", image="two", qemu="/q/other")
    )
    env = await find(wanted, AccelChoice.TCG)
    assert env.emulators == {"": OURS, "/q/other": OURS}
    assert {name: found.name for name, found in env.images.items()} == {"one": "one", "two": "two"}
    assert env.accelerator == Accelerator("tcg", "asked for")


async def test_each_emulator_is_asked_once(
    image: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def examine(path: Path) -> Emulator:
        asked.append(path)
        return OURS

    monkeypatch.setattr(emulator, "examine", examine)
    image("one")
    await find(lab(*(Guest(name=f"g{i}", image="one") for i in range(9))), AccelChoice.TCG)
    assert asked == [Path("/q/vale")]


async def test_an_image_that_needs_more_memory(image: Callable[..., None]) -> None:
    image("big", memory_mib=256)
    reason = "guest a: image big needs 256 MiB of memory, not 255: give it memory: 256M"
    await refused(reason, lab(Guest(name="a", image="big", memory_mib=255)))
    await find(lab(Guest(name="a", image="big", memory_mib=256)), AccelChoice.TCG)


async def test_a_file_is_a_disk_that_boots_itself(machine: Path) -> None:
    for name, start, form in (
        ("a.qcow2", b"QFI\xfb", "qcow2"), ("b.img", b"QFI\xfb", "qcow2"), ("c.raw", b"", "raw"),
    ):  # fmt: skip
        (machine / name).write_bytes(start)
        guest = Guest(name="a", image=str(machine / name), memory_mib=512)
        env = await find(lab(guest), AccelChoice.TCG)
        found = env.images[str(machine / name)]
        assert (found.disk, found.kernel) == (Disk(machine / name, DiskFormat(form)), None)
        assert (found.identity, found.boot_seconds) == (Identity.NOCLOUD, DISK_BOOT_SECONDS)
    small = Guest(name="a", image=str(machine / "a.qcow2"))
    await refused("a.qcow2 needs 512 MiB of memory, not 128", lab(small))
    (machine / "a.qcow2").write_bytes(b"MZ")
    await refused("a.qcow2: this is no qcow2 file", lab(guest_of(machine / "a.qcow2")))
    await refused("d.img: No such file", lab(guest_of(machine / "d.img")))


async def test_a_manifest_may_have_a_disk(image: Callable[..., None], machine: Path) -> None:
    image("one", disk="one.raw", format="raw", kernel="vmlinuz", boot_seconds=90)
    await refused("one.raw is missing", lab(Guest(name="a", image="one")))
    (machine / "one/one.raw").touch()
    found = (await find(lab(Guest(name="a", image="one")), AccelChoice.TCG)).images["one"]
    assert found.disk == Disk(machine / "one/one.raw", DiskFormat.RAW)
    assert (found.kernel, found.append) == (machine / "one/vmlinuz", "quiet")
    assert (found.identity, found.boot_seconds) == (Identity.NOCLOUD, 90)
    for number, wrong in enumerate(({"format": "vmdk"}, {"identity": "dns"}, {"disk": 1})):
        image(f"w{number}", **{"disk": "x.raw", "format": "raw"} | wrong)
        await refused("manifest.json is not usable", lab(Guest(name="a", image=f"w{number}")))


async def test_images_that_are_not_there_or_not_whole(
    image: Callable[..., None], machine: Path
) -> None:
    image("debian")
    misspelt = lab(Guest(name="a", image="debain"))
    await refused(r"no image 'debain' in .*did you mean 'debian'", misspelt)
    (machine / "debian" / "initrd.img").unlink()
    await refused("initrd.img is missing", lab(Guest(name="a", image="debian")))
    (machine / "debian" / "manifest.json").write_text("{}")
    await refused("manifest.json is not usable", lab(Guest(name="a", image="debian")))


async def test_an_emulator_that_is_not_there(
    image: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert emulator.find("/bin/sh") == Path("/bin/sh")
    with pytest.raises(EnvironmentUnfitError, match="/nowhere/qemu is no program"):
        emulator.find("/nowhere/qemu")


async def test_what_is_no_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    program = tmp_path / "fake"
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    with pytest.raises(EnvironmentUnfitError, match="--version: 'hello': is it a QEMU"):
        await emulator.examine(program)
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "QEMU emulator version 9.2.1" ||'
        ' printf "Available netdev types:\\nsocket\\nnetmap\\n"\n'
    )
    assert await emulator.examine(program) == Emulator(
        program, (9, 2), has_netmap=True, has_user=False
    )
    program.write_text("#!/bin/sh\necho QEMU emulator version 7.2.22 netmap-free\n")
    assert not (await emulator.examine(program)).has_netmap


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    guests = [Guest(name=f"g{i}", memory_mib=100) for i in range(3)]
    monkeypatch.setattr(environment, "available_mib", lambda: 3 * (100 + QEMU_MIB))
    check_memory(guests)
    check_memory([])
    monkeypatch.setattr(environment, "available_mib", lambda: 3 * (100 + QEMU_MIB) - 1)
    expected = "420 MiB of memory are needed for 3 guests, 419 MiB are available: give them less"
    with pytest.raises(EnvironmentUnfitError, match=expected):
        check_memory(iter(guests))
    check_memory(iter(guests), [guests[0].model_copy(update={"memory_mib": 1})])


def test_available_memory_is_read(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2097151 kB\nx: 1 kB\n")
    assert available_mib(tmp_path / "meminfo") == 2047


async def test_the_kernels_switch(
    image: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image("one")
    guest = Guest(name="a", image="one", nics=(Nic(name="eth1", port="vale1:a"),))
    kernel, user = lab(guest, provider=Provider.KERNEL), lab(guest)
    device = tmp_path / "netmap"
    monkeypatch.setattr(environment, "KERNEL_DEVICE", str(device))
    await refused(f"{device} is not here: load netmap.ko, or use provider: user", kernel)
    await find(user, AccelChoice.TCG)
    device.touch()
    await find(kernel, AccelChoice.TCG)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    await refused(f"{device} may not be opened: chmod or chgrp it", kernel)


async def test_kvm_in_vain(image: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    image("one")
    monkeypatch.setattr(accel, "kvm_obstacle", lambda: "no /dev/kvm")
    one = lab(Guest(name="a", image="one"))
    with pytest.raises(EnvironmentUnfitError, match="KVM is not usable here: no /dev/kvm"):
        await find(one, AccelChoice.KVM)
    assert (await find(one, AccelChoice.AUTO)).accelerator == Accelerator("tcg", "no /dev/kvm")


@pytest.mark.parametrize(("name", "cores", "boots"), [("tcg", 2, 2), ("kvm", 2, 8), ("tcg", 1, 1)])
def test_boots_at_once(
    monkeypatch: pytest.MonkeyPatch, name: str, cores: int, boots: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert Environment({}, Accelerator(name, ""), {}).boots_at_once == boots
