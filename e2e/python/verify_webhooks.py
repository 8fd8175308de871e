"""Verifies messages with the reference library of Standard Webhooks.

Reads one JSON object per line: `secret`, `headers`, `body`. Prints one line each: the type, or `refused`.
"""

import json
import sys

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

for line in sys.stdin:
    message = json.loads(line)
    try:
        print(Webhook(message["secret"]).verify(message["body"], message["headers"])["type"])
    except WebhookVerificationError:
        print("refused")
