# SPDX-License-Identifier: BSD-2-Clause
"""The words that a topology, a command and a domain choose from. Light: libvirt's hook reads it."""

from enum import StrEnum


class NicModel(StrEnum):
    """NIC models that the images have drivers for."""

    VIRTIO = "virtio-net-pci"
    E1000 = "e1000"
    E1000E = "e1000e"
    RTL8139 = "rtl8139"
    VMXNET3 = "vmxnet3"
    PCNET = "pcnet"


class Backend(StrEnum):
    """How a guest's NIC reaches its port."""

    AUTO = "auto"
    NETMAP = "netmap"
    VHOST_USER = "vhost-user"
    STREAM = "stream"


class Engine(StrEnum):
    """Who runs a lab's QEMUs: we, or libvirt."""

    QEMU = "qemu"
    LIBVIRT = "libvirt"


class Provider(StrEnum):
    """Who implements a switch."""

    USER = "user"
    KERNEL = "kernel"
