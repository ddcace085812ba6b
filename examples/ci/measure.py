# SPDX-License-Identifier: BSD-2-Clause
"""A lab from Python: how long a ping takes on an idle line, and on a full one."""

import asyncio
import re
from pathlib import Path

from valemgr import Lab
from valemgr.ssh import RemoteResult

HERE = Path(__file__).parent
PING = "ping -c 10 -i 0.2 198.19.0.1"


def main() -> None:
    with Lab(HERE / "ci.lab.yml", say=print).sync as lab:  # up now, down at the end
        print("idle:", milliseconds(lab.run("client", PING)), "ms")
        print("full:", asyncio.run(under_load(lab.lab)), "ms")


async def under_load(lab: Lab) -> float:
    """The same lab with asyncio, for what is to happen at the same time."""
    pinged, trial = await asyncio.gather(
        lab.run("client", PING),
        lab.udp("client", "server", frame=1518, rate=2500, seconds=4),  # more than the line takes
    )
    print(f"{100 * trial.loss:.0f} % of the datagrams were lost")
    return milliseconds(pinged)


def milliseconds(pinged: RemoteResult) -> float:
    """The mean of busybox's ping."""
    found = re.search(r"min/avg/max = [\d.]+/([\d.]+)/", pinged.stdout)
    if found is None:
        raise SystemExit(f"no answer: {pinged.stdout}{pinged.stderr}")
    return float(found[1])


if __name__ == "__main__":
    main()
