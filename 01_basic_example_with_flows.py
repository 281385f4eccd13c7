"""A flow is a decorated function: call it, and Prefect records the run.

Run:    python 01_basic_example_with_flows.py
Notice: the flow run gets a random name and ends in the state Completed().
"""

from prefect import flow


@flow
def hello_flow(name: str = "Prefect") -> str:
    """Return a greeting for `name`."""
    return f"Hello, {name}!"


if __name__ == "__main__":
    print(hello_flow())
