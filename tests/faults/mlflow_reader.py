"""Run by .venv-mlflow's Python: prints what the real MLflow client finds at a server, as JSON. Arguments: address, experiment."""

import json
import sys

import mlflow


def points(client, run, key):
    return [[point.step, point.timestamp, point.value] for point in client.get_metric_history(run.info.run_id, key)]


def main(address, experiment):
    client = mlflow.MlflowClient(address)
    found = client.get_experiment_by_name(experiment)
    runs = [] if found is None else list(client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]))
    print(json.dumps([{
        "name": run.info.run_name,
        "status": run.info.status,
        "params": dict(run.data.params),
        "tags": dict(run.data.tags),
        "metrics": {key: points(client, run, key) for key in run.data.metrics},
    } for run in runs]))


main(*sys.argv[1:])
