"""What a mutation is, and the tests that notice one."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str
    tests: tuple


# Narrow enough that nothing else in them fails on a busy machine.
FAULTS = ("serving_sim_test", "ServingSim.WithFaultsNothingIsWrongAndEverythingEnds")
HEALTHY = ("serving_sim_test", "ServingSim.WithoutFaultsEverythingArrives")
ENGINES = ("engine_sim_test", "EngineSim.WithFaultsNothingIsWrongAndEverythingEnds")
HEALTHY_ENGINES = ("engine_sim_test", "EngineSim.WithoutFaultsEverythingArrives")
POOL = ("kvcache_pool_test", "*")
HANDOFF = ("kvcache_handoff_test", "*")
BOOTSTRAP = ("router_bootstrap_test", "ServiceTest.*:LateService.*")
LEASES = ("kvcache_bootstrap_test", "LeaseKeeper.*")
FENCES = ("core_test", "*Fence*")
LIVENESS = ("core_test", "EngineLiveness.*")
BOUNDS = ("conformance_test", "*_plain_one_thread__target_checks_every_run")
VERBS = ("verbs_test", "*")
UCX = ("ucx_test", "UcxLinkTest.*:CopiesTest.*")
TCP = ("tcp_test", "RunFits.*:TcpGrants.*:TcpGreeting.*:TcpEncryption.*")
AUTH = ("core_test", "Handshake.*:Channel.*:SecureControlNet.*")
SIGNATURES = ("base_test", "HttpToken.*:HttpSignature.*")
LISTENERS = ("base_test", "Listeners.*")
TLS = ("router_tls_test", "RouterTls.*:RendezvousTls.*:RendezvousSecret.*:RouterSecret.*")
ETCD = ("router_bootstrap_test", "EtcdStoreTest.*:EtcdCache.*")
SECRETS = ("base_test", "Secrets.*")
FABRIC = ("libfabric_test", "*")
FABRIC_CONFORMANCE = ("conformance_test", "*fake_efa_plain_one_thread*")
STRANGERS = ("core_test", "TcpControlNet.*Stranger*")
