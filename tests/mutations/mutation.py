"""What a mutation is, and the tests that notice one."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str
    tests: tuple


FAULTS = ("serving_sim_test", "ServingSim.WithFaultsNothingIsWrongAndEverythingEnds")
HEALTHY = ("serving_sim_test", "ServingSim.WithoutFaultsEverythingArrives")
ENGINES = ("engine_sim_test", "EngineSim.WithFaultsNothingIsWrongAndEverythingEnds")
HEALTHY_ENGINES = ("engine_sim_test", "EngineSim.WithoutFaultsEverythingArrives")
POOL = ("kvcache_pool_test", "*")
HANDOFF = ("kvcache_handoff_test", "*")
BOOTSTRAP = ("router_bootstrap_test", "*")
LEASES = ("kvcache_bootstrap_test", "LeaseKeeper.*")
CORE = ("core_test", "*")
FENCES = ("core_test", "*Fence*")
CONFORMANCE = ("conformance_test", "*")
TCP = ("tcp_test", "*")
SHM = ("shm_test", "*")
AUTH = ("core_test", "Handshake.*:Channel.*:SecureControlNet.*")
SIGNATURES = ("base_test", "HttpToken.*:HttpSignature.*")
LISTENERS = ("base_test", "Listeners.*")
TLS = ("router_tls_test", "*")
ETCD = ("router_bootstrap_test", "Etcd*")
SECRETS = ("base_test", "Secrets.*")
