"""A run of rapbench is a run of Weights & Biases: a step per cell as it gets finished, and one table of all cells at the end."""

from rapbench import hookimpl

NAMES = ("dataset", "attack", "defense", "victim", "seed", "protocol", "frr")
FIGURES = ("frr_test", "far", "auroc", "asr", "clean_metric")


@hookimpl
def rapbench_cell_finished(record):
    cell = record.file_name.removesuffix(".json")
    _run().log({f"{cell}/{name}": value for name in FIGURES if (value := getattr(record, name, None)) is not None})


@hookimpl
def rapbench_run_finished(records, folder):
    import wandb

    columns = [*NAMES, "status", "reason", *FIGURES]
    rows = [[getattr(record, name, None) for name in columns] for record in records]
    with _run() as run:  # its end is the run's end
        run.config["folder"] = str(folder)
        run.log({"cells": wandb.Table(columns=columns, data=rows)})


def _run():
    import wandb  # here, and not above: rapbench imports this module for every command

    return wandb.run or wandb.init(project="rapbench")  # WANDB_MODE=offline keeps it on this machine
