"""The local stack: object storage, Prefect, MLflow and one worker as processes of this machine."""
