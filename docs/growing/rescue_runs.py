"""Two automations: a run that has lost its worker is run again, twice at most.

Run:    python docs/growing/rescue_runs.py      (once for each server, and after each edit)
Notice: `prefect automation ls` shows them; they work in the server, and this script ends.
"""

from datetime import timedelta

from prefect import get_client
from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

SILENT_SECONDS = 90  # three heartbeats of 30 s

ENDS = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Crashed", "Cancelled")}

# The server refuses the first one for a finished run, but not the second: `force` is not needed.
CRASHED = ChangeFlowRunState(
    state=StateType.CRASHED, name="Crashed", message="No heartbeat", force=False
)
AGAIN = ChangeFlowRunState(
    state=StateType.SCHEDULED, name="AwaitingRetry", message="It lost its worker", force=False
)

SILENT_RUN = Automation(
    name="A silent run has crashed",
    trigger=EventTrigger(
        after={"prefect.flow-run.Pending", "prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *ENDS},
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        within=timedelta(seconds=SILENT_SECONDS),
    ),
    actions=[CRASHED],
)
CRASHED_RUN = Automation(
    name="A crashed run is run again",
    trigger=EventTrigger(
        expect={"prefect.flow-run.Crashed"},
        match=ResourceSpecification(
            {"prefect.resource.id": "prefect.flow-run.*", "prefect.run-count": ["0", "1", "2"]}
        ),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
    ),
    actions=[AGAIN],
)

if __name__ == "__main__":
    for automation in (SILENT_RUN, CRASHED_RUN):
        with get_client(sync_client=True) as client:  # an earlier one of that name is replaced
            for earlier in client.read_automations_by_name(automation.name):
                client.delete_automation(earlier.id)
        automation.create()
