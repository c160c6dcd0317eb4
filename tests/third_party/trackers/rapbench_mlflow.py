"""Every cell is a run of MLflow: its names are parameters, its figures metrics."""

from numbers import Real

from rapbench import hookimpl


@hookimpl
def rapbench_cell_finished(record):
    import mlflow  # here, and not above: rapbench imports this module for every command

    mlflow.set_experiment("rapbench")
    figures = {name: value for name, value in vars(record).items() if isinstance(value, Real) and name not in ("seed", "schema_version")}
    names = ("dataset", "attack", "defense", "victim", "seed", "protocol", "frr")
    with mlflow.start_run(run_name=record.file_name.removesuffix(".json")):
        mlflow.set_tags({"status": record.status, "reason": record.reason or ""})
        mlflow.log_params({name: getattr(record, name) for name in names if hasattr(record, name)})
        mlflow.log_metrics(figures)


@hookimpl
def rapbench_run_finished(records, folder):
    import mlflow

    mlflow.set_experiment("rapbench")
    with mlflow.start_run(run_name=f"all of {folder.name}"):
        statuses = [record.status for record in records]
        mlflow.log_metrics({f"cells_{status}": statuses.count(status) for status in set(statuses)})
