"""Create two automations that restart a flow run whose worker has died.

Run:    python docs/growing/rescue_runs.py      (once for each server, and after each edit)
Notice: the program ends at once. `prefect automation ls` lists the automations, which the server
        carries out for every flow run. So set PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30 wherever a flow
        runs, or a healthy flow run is taken for a dead one.
"""

from datetime import timedelta

from prefect import get_client
from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

SILENT_SECONDS = 90  # three heartbeats, if one is sent every 30 s

FINAL_EVENTS = {
    f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Crashed", "Cancelled")
}

# Without `force`, the server refuses the first change if the flow run has already finished.
CRASHED = ChangeFlowRunState(
    state=StateType.CRASHED, name="Crashed", message="No heartbeat", force=False
)
RETRY = ChangeFlowRunState(
    state=StateType.SCHEDULED, name="AwaitingRetry", message="The worker died", force=False
)

SILENT_RUN = Automation(
    name="Mark a silent flow run as Crashed",
    trigger=EventTrigger(
        after={"prefect.flow-run.Pending", "prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *FINAL_EVENTS},
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        within=timedelta(seconds=SILENT_SECONDS),
    ),
    actions=[CRASHED],
)
CRASHED_RUN = Automation(
    name="Restart a crashed flow run",
    trigger=EventTrigger(
        expect={"prefect.flow-run.Crashed"},
        match=ResourceSpecification(
            {"prefect.resource.id": "prefect.flow-run.*", "prefect.run-count": ["0", "1", "2"]}
        ),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
    ),
    actions=[RETRY],
)

if __name__ == "__main__":
    for automation in (SILENT_RUN, CRASHED_RUN):
        with get_client(sync_client=True) as client:  # replace an earlier version
            for earlier in client.read_automations_by_name(automation.name):
                client.delete_automation(earlier.id)
        automation.create()
