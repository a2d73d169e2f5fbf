# SPDX-License-Identifier: Apache-2.0
"""One outside thing per module: what this machine has, and how the swarm takes hold of it.

::

    holder       the process that outlives the manager: memfds, ivshmem sockets, orphans    (stdlib only)
      ops          what it can be asked, what it keeps
      wire         its messages: JSON and file descriptors on a SOCK_SEQPACKET socket
      ivshmem      QEMU's ivshmem server protocol: who may ring whom
      supervisor   starts the manager, and again if it dies
    holder_client  the manager's side of it
    control      the control region of one instance
      assignment   what is told there, report: what is heard, clock: by which time
    doorbells    ringing instances, and being rung
    edges        the shared memory between two layers; edge_peer: a peer on one, for tests and tools
    hugepages    what edges are made of, of any node and of one; memory: by which descriptor processes share it
    namespaces   network namespaces; tap: an instance's interface in its own; nic: facts of the real interface
    router       the Front-End Router; vhost: where virtual machines meet it
      router_link  asking it; router_counters: what it counts
    classifier   the XDP program; pins: its maps, which outlive the manager
    hardware     the inventory of CPUs, NUMA nodes and PCI functions, out of a sysfs
    access       who may open a socket of ours; folder: who may look into a folder
    vfio         such functions for VMs: taken, reset, given back; in_use: why one can not be
      kernel       what it asks of the kernel; passthrough: in and out of a running VM
    accelerators  which running VM has which
    placer       puts what is started where policy says; cpus: how; wishes: what a configuration asks of a machine
    cgroups      what a virtual machine may take at most
    images       guest images; debs: the packages that they are made of, cpio: how they are packed
    processes    pidfds, and finding everything that belongs to a run-time folder
    certs        throw-away certificates and ticket keys

Importing this package imports none of them: the holder must start quickly.
"""
