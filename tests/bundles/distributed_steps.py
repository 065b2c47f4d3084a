"""A training with ``multi_gpu_train.yaml`` that notes what each process did; run by ``torchrun``.

Its one argument is what to override, as JSON. Each process writes ``process_<rank>.json`` into ``output_dir``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed
from ignite.engine import Events
from monai.bundle import ConfigWorkflow


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """Return a hash of all values."""
    result = hashlib.sha256()
    for tensor in tensors:
        result.update(tensor.detach().float().contiguous().numpy().tobytes())
    return result.hexdigest()


def main() -> None:
    """Train, and write down what was seen."""
    settings = json.loads(sys.argv[1])
    configs = ["configs/train.yaml", "configs/multi_gpu_train.yaml"]
    workflow = ConfigWorkflow(configs, logging_file=False, workflow_type="train", **settings)
    workflow.initialize()
    get = workflow.parser.get_parsed_content
    trainer, evaluator, average = get("train#trainer"), get("validate#evaluator"), get("ema").ema_model
    seen = {"rank": torch.distributed.get_rank(), "start": digest(get("network_def").parameters())}
    seen["seed"] = torch.initial_seed()
    seen |= {"patients": [], "drawn": [], "rates": [], "dice": [], "averages": []}

    def note_patients(engine):
        entries = get("train#dataset#data")
        seen["patients"].append([entries[index]["subject"] for index in get("train#sampler")])

    def note_iteration(engine):
        seen["drawn"].append(digest(output["image"] for output in engine.state.output))
        seen["rates"].append(engine.optimizer.param_groups[0]["lr"])

    def note_validation(engine):
        seen["dice"].append(engine.state.metrics["val_mean_dice"])
        seen["averages"].append(digest(average.state_dict().values()))

    trainer.add_event_handler(Events.EPOCH_STARTED, note_patients)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, note_iteration)
    evaluator.add_event_handler(Events.COMPLETED, note_validation)
    workflow.run()
    seen["best"] = get("validate#save_best").state_dict()
    seen["early_stop"] = get("validate#early_stop").state_dict()
    torch.distributed.barrier()  # the first process writes
    seen["saved"] = digest(torch.load(Path(settings["output_dir"], "model_final.pt"), weights_only=True).values())
    workflow.finalize()
    Path(settings["output_dir"], f"process_{seen['rank']}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
