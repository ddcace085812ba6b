# SPDX-License-Identifier: BSD-2-Clause
"""Launch virtual machines, wire them to VALE switches, measure what passes between them.

Pure core, thin edges. Read in this order:

    names, topology     what a user asks for, validated and frozen; labfile: from a YAML file
    wiring, plan        what that means: backends, argv, MACs, addresses (no side effects)
    reconcile           the difference between what runs and what is wanted (no side effects)
    runner              carries a difference out: switches, guests, NICs; state: what is kept of it
    lifecycle, labs     up, apply, down; questions about labs that run
    guest, switchd      one virtual machine; one switch daemon
    bench, conservation one trial; do the counters add up
    results, output     kept in SQLite; shown as table, JSON or CSV
    cli, cli_*          the words a user types; lab: the same from Python
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from valemgr.lab import Lab as Lab

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Lab is imported when it is asked for: it costs what `--version` need not pay."""
    if name == "Lab":
        from valemgr.lab import Lab

        return Lab
    raise AttributeError(f"module 'valemgr' has no attribute '{name}'")
