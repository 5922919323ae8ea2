"""Commands for the local stack."""

from cyclopts import App

app = App(
    name="stack",
    help="The local stack on loopback: Prefect, MLflow, an S3 endpoint, the work pool, a worker.",
    result_action="return_value",
)


@app.command
def up() -> int:
    """Start what does not run yet, from the repository root, and deploy the flows."""
    return _run("up")


@app.command
def down() -> int:
    """Stop everything; databases and logs stay."""
    return _run("down")


@app.command
def status() -> int:
    """Tell what runs, and whether it answers; exit code 3 when not all is healthy."""
    return _run("status")


@app.command
def env() -> int:
    """Print the file to source, which leads commands to the stack."""
    return _run("env")


def _run(command: str) -> int:
    from infra.stack import main

    return main([command])
