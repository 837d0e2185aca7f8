"""The alert when a scheduled run fails: an automation of Prefect's server, which calls a webhook.

BIGR_ALERT_URL names the webhook when `flows/deploy.py` or `flows/pools.py` runs; set to nothing, it removes the alert.
The server calls it with the JSON `{"text": …}`, which chat programs take, and keeps the URL as a secret.
"""

import os
from datetime import timedelta

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from bigr.runtime.errors import BigrError

VARIABLE = "BIGR_ALERT_URL"
BLOCK, AUTOMATION = "bigr-alert", "bigr: a scheduled run failed"
ENDS = {"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"}
PAYLOAD = (
    '{"text": {{ (flow.name ~ "/" ~ deployment.name ~ ": the scheduled run " ~ flow_run.name ~ " ended as "'
    ' ~ flow_run.state.name ~ ": " ~ flow_run.state.message ~ " " ~ (flow_run | ui_url or "")) | tojson }}}'
)


def register(client: SyncPrefectClient, flow: str) -> None:
    """Have the server tell the webhook of scheduled runs of `flow` that fail or crash, once for each in ten minutes.

    Without the variable, nothing changes. Raises `BigrError` where it is not an address on the web.
    """
    url = os.environ.get(VARIABLE)
    if url is None:
        return
    if url and not url.startswith(("http://", "https://")):
        raise BigrError(f"{VARIABLE} must be an address that starts with http:// or https://")
    known = client.read_automations_by_name(AUTOMATION)
    if not url:
        for old in known:
            client.delete_automation(old.id)
        return
    block = Webhook(url=url, headers={"Content-Type": "application/json"})
    automation = AutomationCore(
        name=AUTOMATION,
        description=f"Tells the webhook of the block {BLOCK}",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect=ENDS,
            match_related=[
                {"prefect.resource.role": "flow", "prefect.resource.name": flow},
                {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.auto-scheduled"},
            ],
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(minutes=10),  # a crash is said twice: flows/whereabouts.py adds the remedy
        ),
        actions=[CallWebhook(block_document_id=block.save(BLOCK, overwrite=True), payload=PAYLOAD)],
    )
    if known:
        client.update_automation(known[0].id, automation)
    else:
        client.create_automation(automation)
