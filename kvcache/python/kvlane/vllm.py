"""vLLM's KV connector over kvlane: decode reads the blocks that prefill has computed.

    --kv-transfer-config '{"kv_connector": "KvlaneConnector",
                           "kv_connector_module_path": "kvlane.vllm",
                           "kv_role": "kv_both",
                           "kv_connector_extra_config": {"host": "10.0.0.1", "port": 21000}}'

Prefill answers a request with `do_remote_decode` by the parameters that decode needs (vLLM's names:
remote_engine_id, remote_request_id, remote_block_ids, remote_host, remote_port, tp_size) and keeps its
blocks under a lease. Each decode rank asks the prefill ranks that hold its heads for leave, reads all
layers in one transfer each, says that it is done. What was lost on the way is reported as a failed
load: vLLM fails or recomputes it, as kv_load_failure_policy says.

kv_connector_extra_config: host ("127.0.0.1") and port (21000; rank r has port + r) that the other side
reaches, lease_s (30), transfer_s (20; shorter than a lease), settings ({}: kvlane's own, by name).
"""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from typing import Any, Iterable, Optional

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.distributed.parallel_state import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from vllm.logger import init_logger
from vllm.v1.request import RequestStatus

from ._vllm_worker import Config, Load, Worker

logger = init_logger("vllm.kvlane")

# Of kv_transfer_params: what decode cannot do without.
NEEDED = ("remote_block_ids", "remote_request_id", "remote_host", "remote_port", "tp_size")


@dataclass
class Metadata(KVConnectorMetadata):
    loads: list[Load] = field(default_factory=list)
    leases: dict[str, float] = field(default_factory=dict)  # request to seconds


class KvlaneConnector(KVConnectorBase_V1, SupportsHMA):
    """See the module. The scheduler's half decides and names, the worker's half moves."""

    def __init__(self, vllm_config, role, kv_cache_config=None):
        super().__init__(vllm_config, role, kv_cache_config)
        self._config = Config.read(dict(self._kv_transfer_config.kv_connector_extra_config or {}))
        groups = getattr(kv_cache_config, "kv_cache_groups", None)
        if groups is not None and len(groups) > 1:
            raise ValueError(
                "kvlane.vllm moves models with one group of KV caches; this one is a hybrid"
            )
        _refuse_what_is_not_moved(vllm_config)
        self._bad: set[int] = set()
        self._engine_id = self._kv_transfer_config.engine_id
        self._loads: dict[str, Load] = {}
        self._leases: dict[str, float] = {}
        self._worker: Optional[Worker] = None
        if role == KVConnectorRole.WORKER:
            self._worker = Worker(
                self._config,
                get_tensor_model_parallel_rank(),
                get_tensor_model_parallel_world_size(),
            )

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config):
        """Heads before tokens, so that the heads of one rank are one piece of a block."""
        return "LBHNC"

    # ---- worker

    def register_kv_caches(self, kv_caches):
        self._worker.start(kv_caches)

    def start_load_kv(self, forward_context, **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        for request, seconds in metadata.leases.items():
            self._worker.lease(request, seconds)
        for load in metadata.loads:
            self._worker.load(load)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are over before their requests are scheduled."""

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs: Any) -> None:
        """Decode reads."""

    def wait_for_save(self):
        """Decode reads."""

    def get_finished(self, finished_req_ids):
        return set(_all(self._worker.sent)), set(_all(self._worker.received))

    def get_transfer_results(self, finished_req_ids):
        results = super().get_transfer_results(finished_req_ids)
        self._bad = set()
        for load in _all(self._worker.failed):
            results.finished_recving.add(load.request)
            results.failed_recving.add(load.request)
            self._bad.update(load.blocks)
        return results

    def get_block_ids_with_load_errors(self):
        bad, self._bad = self._bad, set()
        return bad

    def shutdown(self):
        if self._worker is not None:
            self._worker.close()

    # ---- scheduler

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        params = request.kv_transfer_params
        if params and params.get("do_remote_prefill"):
            missing = _missing(params)
            if missing:  # said here: a request whose load was promised would wait for it
                logger.warning(
                    "kv_transfer_params without %s: it is computed here", ", ".join(missing)
                )
                params["do_remote_prefill"] = False
                return 0, False
            count = request.num_prompt_tokens - num_computed_tokens
            if count > 0:
                return count, True
        return 0, False

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        params = request.kv_transfer_params
        if not (params and params.get("do_remote_prefill")):
            return
        params["do_remote_prefill"] = False
        ids: list[int] = []
        if num_external_tokens > 0:
            ids = list(blocks.get_unhashed_block_ids_all_groups()[0])
        self._loads[request.request_id] = Load(
            request.request_id, ids, dict(params), num_external_tokens > 0
        )

    def build_connector_meta(self, scheduler_output):
        metadata = Metadata(list(self._loads.values()), self._leases)
        self._loads, self._leases = {}, {}
        return metadata

    def get_loaded_kv_cache_group_ids(self, request):
        return self._kv_cache_config.transfer_group_ids

    def request_finished(self, request, block_ids):
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(self, request, block_ids):
        params = request.kv_transfer_params
        if params and params.get("do_remote_prefill") and not _missing(params):
            # Over before it had blocks: prefill need not keep its own for the whole lease.
            params["do_remote_prefill"] = False
            self._loads[request.request_id] = Load(request.request_id, [], dict(params), False)
            return False, None
        if not (params and params.get("do_remote_decode")):
            return False, None
        if request.status not in (
            RequestStatus.FINISHED_LENGTH_CAPPED,
            RequestStatus.FINISHED_STOPPED,
        ):
            return False, None
        self._leases[request.request_id] = self._config.lease_s
        return True, {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": self._engine_id,
            "remote_request_id": request.request_id,
            "remote_block_ids": [list(group) for group in block_ids],
            "remote_host": self._config.host,
            "remote_port": self._config.port,
            "tp_size": self._vllm_config.parallel_config.tensor_parallel_size,
            "remote_num_tokens": request.num_computed_tokens,
        }


def _refuse_what_is_not_moved(vllm_config) -> None:
    """Caches of these look like caches of heads, and would be moved wrongly."""
    if vllm_config.model_config.use_mla:
        raise ValueError("kvlane.vllm does not move MLA caches, which have no heads to share out")
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise ValueError("kvlane.vllm does not move caches of pipeline-parallel engines")


class NixlConnector(KvlaneConnector):
    """The same under the name that Dynamo's table of connectors knows."""


def _missing(params: dict) -> list[str]:
    return [name for name in NEEDED if params.get(name) is None]


def _all(values: "queue.SimpleQueue") -> Iterable:
    while True:
        try:
            yield values.get_nowait()
        except queue.Empty:
            return
