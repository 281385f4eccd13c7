#!/bin/sh
# Trigger the day's run and wait until it has ended.   deploy/nightly.sh [YYYY-MM-DD]
# nightly.log gets every line, with date and time. What this prints is the alarm: cron mails it.
cd "$(dirname "$0")/.." || exit
day=${1:-$(date +%F)}
stamp() { while IFS= read -r line; do printf '%s %s\n' "$(date '+%F %T')" "$line"; done; }

# Cron sets none of the variables that the unit has.
set -a
. /etc/churn-flow.env
set +a

# The key names the event: if this runs twice, the pipeline runs once.
end=$({
  .venv/bin/python trigger.py churn-flow/nightly -p user_id=101 -p "day=$day" \
    --idempotency-key "churn-101-$day" --wait --timeout 3600
  echo "exit code $?"
} 2>&1 | stamp | tee -a nightly.log | tail -n 2)

case $end in
*"exit code 0") exit ;;
esac
printf 'churn-flow of %s did not complete:\n%s\n' "$day" "$end"
case $end in
*"exit code 1") # the run ended: under the same key, another trigger only returns it again
  echo "Correct the cause, then run it again by its name:"
  echo "cd $PWD && PREFECT_API_URL=$PREFECT_API_URL .venv/bin/python -m prefect flow-run retry NAME"
  ;;
esac
exit 1
