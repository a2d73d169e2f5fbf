# SPDX-License-Identifier: Apache-2.0
"""What acts: each Action of the plan is carried out here, and nothing else changes the machine.

::

    actor        the Actor: from actions to those below; adopts a running swarm
      members      instances: started, given a layer, let go of it, stopped, watched
      routes       the RoutingTable, to the instances and into the classifier's maps
      front        the router, its addresses, and the ports of a first layer's instances
        fitting      what an instance is started with and given, worked out of the configuration
        tls_secrets  keys and certificates; kept: bytes that outlive the manager
          held         what the running swarm is made of, as the actor holds it
"""
