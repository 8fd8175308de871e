"""A merchant's client, written for the Python gateway without knowledge of cTrip, which works with it unchanged.

Takes API_URL and API_KEY from the environment and, for payments in a token, TOKEN_ADDRESS. Prints a line of JSON for each
payment that it created, for the test to pay, and then waits until each is confirmed.
"""

import json
import os
import sys
import time
import urllib.request
from datetime import datetime

URL = os.environ["API_URL"] + "/api/v1/payments/"
KEY = os.environ["API_KEY"]


def request(url, body=None):
    headers = {"X-Api-Key": KEY, "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=data, headers=headers), timeout=30) as response:
        return json.load(response)


def create(**order):
    payment = request(URL, order)
    # The fields that the gateway's clients read.
    expires_at = datetime.fromisoformat(payment["expires_at"].replace("Z", "+00:00"))
    assert payment["status"] == "pending", payment
    assert expires_at.timestamp() > time.time(), payment
    shown = {"id": payment["id"], "address": payment["address"], "amount": order["amount"], "token": "chain_id" not in order}
    print(json.dumps(shown), flush=True)
    return payment["id"]


def confirmed(payment_id):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        payment = request(URL + str(payment_id))
        if payment["status"] == "confirmed":
            return
        assert payment["status"] in ("pending", "detected"), payment
        time.sleep(0.1)
    sys.exit(f"not confirmed within a minute: {payment}")


token = os.environ["TOKEN_ADDRESS"]
payments = [
    create(chain_id=31337, amount=100000000000000),
    create(chain="anvil", token_id=f"eip155:31337/erc20:{token}", amount=2500000),
    create(chain="anvil", token_contract_address=token, amount=1500000),
]
for payment in payments:
    confirmed(payment)
