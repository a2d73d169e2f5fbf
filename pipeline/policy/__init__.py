# SPDX-License-Identifier: Apache-2.0
"""What should be: decisions without effects.

Nothing in here reads a file, a clock or a socket; time and text are parameters, so all of it is tested
without root.

::

    config    TOML text            -> Config, or every problem of the file at once
      settings  its tables; toml: reading one
    model     the nouns: Service, Chain, Layer, Instance, Edge, VMStatus, RoutingTable, Swarm
    intent    what the operator wants: the config file, and what was scaled, drained and assigned since
    desired   (actual, intent)     -> the Swarm to aim at now
      places    VMIDs and places in edges, given out and come back; probe: whether a ready instance may get flows
    plan      (actual, desired)    -> actions, in order
      actions   what can be done, and what the swarm is afterwards
    routing   VMStatus             -> RoutingTable -> Maglev table
    scaling   load samples         -> how many instances a layer should have
    health    heartbeats, deaths   -> who is silent, and how long the next start waits
    affinity  hardware of a VM     -> how well it suits a layer
    hardware  the nouns of a machine: Cpu, Node, Function, Machine; accelerators.toml: PCI numbers
    placement (machine, wishes)    -> cores, nodes and accelerators, each with its reason

    errors <- model <- {affinity, settings, places, probe} ; {affinity, settings} <- config <- intent
    affinity <- {routing, hardware <- placement} ; {intent, places, probe, routing} <- desired
    places <- actions ; {actions, probe, routing} <- plan
"""
