"""A device on Eclipse Paho for Python: prints each message that it gets and echoes it, both at the QoS it is told.

paho-device.py <port> <directory with root.pem, device.pem, device.key> <id> <qos>
"""
import sys
import paho.mqtt.client as mqtt

port, directory, device, qos = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])


def on_connect(client, userdata, flags, code):
    print("connected %d, session %s" % (code, "present" if flags["session present"] else "new"), flush=True)
    if code == 0:
        client.subscribe("devices/%s/commands/#" % device, qos)
    else:
        client.disconnect()


def on_message(client, userdata, message):
    print("got %s at %d" % (message.payload.decode(), message.qos), flush=True)
    client.publish("devices/%s/telemetry" % device, message.payload, qos)


client = mqtt.Client(client_id=device, clean_session=False)
client.tls_set(directory + "/root.pem", directory + "/device.pem", directory + "/device.key")
client.reconnect_delay_set(1, 1)
client.on_connect = on_connect
client.on_message = on_message
client.connect("localhost", port)
client.loop_forever()
