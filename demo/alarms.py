"""The demo's durable subscriber: prints every alert of the weather, and acknowledges it when it is printed.

    TOKEN=$(datasette create-token root) python demo/alarms.py http://127.0.0.1:8001/weather

The subscription ``alarms`` is in the database. It begins with the next alert; after that, it first prints what came
while this program was away.
"""

import os
import sys

from datasette_pubsub.client import Client


def main(address: str) -> None:
    with (
        Client(address, token=os.environ["TOKEN"]) as client,
        client.subscribe(patterns=["alerts/*"], subscription="alarms", start="latest", ack="explicit") as alerts,
    ):
        for alert in alerts:
            print(f"alarms: {alert.channel} {alert.payload}", flush=True)
            alerts.ack(alert)


if __name__ == "__main__":
    main(sys.argv[1])
