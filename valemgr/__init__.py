# SPDX-License-Identifier: BSD-2-Clause
"""Launch virtual machines, wire them to VALE switches, measure what passes between them.

Pure core, thin edges. Read in this order:

    names, topology     what a user asks for, validated and frozen
    plan                what that means: argv, MACs, addresses (no side effects)
    runner              makes a plan run: lab directory, switch, guests; undoes it
    guest, switchd      one virtual machine; one switch daemon
    bench, conservation one trial; do the counters add up
    results, output     kept in SQLite; shown as table, JSON or CSV
    cli                 the words a user types
"""

__version__ = "0.1.0"
