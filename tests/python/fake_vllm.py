"""As much of vLLM as `kvlane.vllm` imports, so that the connector is tested where no vLLM is installed:
the base class's plumbing, nothing of its mind. `install()` puts it where vLLM would be. What the real one
says of its connectors' methods is in vllm_signatures.json (0.32.0: name, parameters, which are abstract);
tests/engines.sh runs the real one."""

import enum
import logging
import sys
from dataclasses import dataclass, field
from types import ModuleType

rank, size = 0, 1  # of the worker that is made next: the test says it


@dataclass
class KVConnectorTransferResults:
    finished_sending: set = field(default_factory=set)
    finished_recving: set = field(default_factory=set)
    failed_recving: set = field(default_factory=set)


class SupportsHMA:
    pass


class KVConnectorRole(enum.Enum):
    SCHEDULER = 0
    WORKER = 1


class KVConnectorMetadata:
    pass


class KVConnectorBase_V1:
    def __init__(self, vllm_config, role, kv_cache_config):
        self._vllm_config, self._role, self._kv_cache_config = vllm_config, role, kv_cache_config
        self._kv_transfer_config = vllm_config.kv_transfer_config
        self._connector_metadata = None

    def bind_connector_metadata(self, connector_metadata):
        self._connector_metadata = connector_metadata

    def _get_connector_metadata(self):
        assert self._connector_metadata is not None
        return self._connector_metadata

    def get_finished(self, finished_req_ids):
        return None, None

    def get_transfer_results(self, finished_req_ids):
        sending, recving = self.get_finished(finished_req_ids)
        return KVConnectorTransferResults(set(sending or ()), set(recving or ()))


class RequestStatus(enum.Enum):
    FINISHED_STOPPED = 1
    FINISHED_LENGTH_CAPPED = 2
    FINISHED_ABORTED = 3


MODULES = {
    "vllm.distributed.kv_transfer.kv_connector.v1.base": {
        "KVConnectorBase_V1": KVConnectorBase_V1,
        "KVConnectorMetadata": KVConnectorMetadata,
        "KVConnectorRole": KVConnectorRole,
        "SupportsHMA": SupportsHMA,
    },
    "vllm.distributed.parallel_state": {
        "get_tensor_model_parallel_rank": lambda: rank,
        "get_tensor_model_parallel_world_size": lambda: size,
    },
    "vllm.logger": {"init_logger": logging.getLogger},
    "vllm.v1.request": {"RequestStatus": RequestStatus},
}


def install():
    for name, contents in MODULES.items():
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:i]), ModuleType(".".join(parts[:i])))
        vars(sys.modules[name]).update(contents)
