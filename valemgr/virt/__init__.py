# SPDX-License-Identifier: BSD-2-Clause
"""libvirt: VALE ports on domains that others made, and labs whose guests are domains.

    connection   libvirt-python behind types and errors of ours; events
    bridge       a console of libvirt's as a socket
    domxml       what a domain's XML says that matters here (pure)
    portxml      the elements that we write: <interface>, <vale:ports> (pure)
    mending      what a domain lacks for a NIC, and how it is added (pure)
    domain       a guest of a topology as a domain (pure)
    export       what `libvirt xml` prints
    ports        ports of valed for domains, and whether QEMU may open their sockets
    attach       attach, detach, move, sync
    inventory    which domains sit on which switch
    hook         what libvirt runs when a domain starts and ends; hookfile: where it is installed
    machine      a guest of a lab that libvirt runs; access: its QEMU may be another user's
"""
