# SPDX-License-Identifier: Apache-2.0
"""What should be: decisions without effects.

Nothing in here reads a file, a clock or a socket; time and text are parameters, so all of it is tested
without root.

::

    config    TOML text            -> Config, or every problem of the file at once
    model     the nouns: Service, Chain, Layer, Instance, Edge, VMStatus, RoutingTable, Swarm
    plan      (actual, wanted)     -> desired Swarm -> diff -> actions, in order
    routing   VMStatus             -> RoutingTable -> Maglev table
    scaling   load samples         -> how many instances a layer should have
    affinity  hardware of a VM     -> how well it suits a layer
    hardware  the nouns of a machine: Cpu, Node, Function, Machine; accelerators.toml: PCI numbers
    placement (machine, wishes)    -> cores, nodes and accelerators, each with its reason

    errors <- model <- {affinity <- {routing, hardware <- placement}, config, scaling} ; {model, routing} <- plan
"""
