# SPDX-License-Identifier: Apache-2.0
"""What an instance is made of.

::

    driver       what every kind can do
    process      a sandboxed process
    qemu         a virtual machine
      qemu_argv    its command line; monitor: talking to it while it runs
      template     machines that have booted already
      guests       what it needs of this machine; kvm: whether KVM runs guests here
    conf         the settings of a layer, as an instance reads them
"""
