"""Runs OpenVINO GenAI's continuous batching for `benchmarks.peers`, with the Python that has it.

    VENV/bin/python benchmarks/_peer_openvino.py MODEL_DIR CACHE_GIB

Each line of stdin is ``{"prompts": [[token, ...], ...], "num_tokens": N}``; each line of stdout says
how many tokens came and when, in seconds.
"""

import json
import sys
import time
from itertools import count

import numpy as np
import openvino
import openvino_genai


def main() -> None:
    directory, cache_gib = sys.argv[1:]
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = int(cache_gib)
    scheduler.max_num_seqs = 64
    scheduler.max_num_batched_tokens = 2048
    scheduler.enable_prefix_caching = False
    scheduler.dynamic_split_fuse = True
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        directory, scheduler, "CPU", {"INFERENCE_NUM_THREADS": 2}
    )
    numbers = count()
    for line in sys.stdin:
        asked = json.loads(line)
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = asked["num_tokens"]
        config.ignore_eos, config.do_sample = True, False
        began = time.perf_counter()
        handles = [
            pipeline.add_request(
                next(numbers), openvino.Tensor(np.array([prompt], np.int64)), config
            )
            for prompt in asked["prompts"]
        ]
        first = [0.0] * len(handles)
        num_tokens = 0
        while pipeline.has_non_finished_requests():
            pipeline.step()
            now = time.perf_counter() - began
            for index, handle in enumerate(handles):
                if handle.can_read():
                    first[index] = first[index] or now
                    num_tokens += sum(
                        len(output.generated_ids) for output in handle.read().values()
                    )
        seconds = time.perf_counter() - began
        answer = {"seconds": seconds, "num_tokens": num_tokens, "first": first}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
