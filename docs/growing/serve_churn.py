"""Serve both flows: training once a month, scoring on demand.

Run:    python docs/growing/serve_churn.py
        python 12_trigger_deployment_by_id_name_lookup.py score-users/on-demand \
            -p 'user_ids=[101,102,103]' --wait
Notice: run the second command in another terminal; it scores with the published model.
"""

from typing import Any

from prefect import serve
from score_users import score_users
from train_churn import train_churn

if __name__ == "__main__":
    # On the first day of each month at 6:00 UTC.
    monthly: Any = train_churn.to_deployment("monthly", cron="0 6 1 * *")
    on_demand: Any = score_users.to_deployment("on-demand")
    serve(monthly, on_demand)
