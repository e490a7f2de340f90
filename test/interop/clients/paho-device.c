/*
 * A device on Eclipse Paho for C: prints each message that it gets and echoes it, both at the QoS it is told.
 *
 * paho-device <port> <directory with root.pem, device.pem, device.key> <id> <qos>
 */
#include <MQTTClient.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH = 512, PATIENCE_MS = 1000 };

static int come_in(MQTTClient client, MQTTClient_connectOptions *options, const char *filter, int qos) {
  int code = MQTTClient_connect(client, options);
  if (code != MQTTCLIENT_SUCCESS) return code;
  printf("connected 0, session %s\n", options->returned.sessionPresent ? "present" : "new");
  return MQTTClient_subscribe(client, filter, qos);
}

int main(int count, char **arguments) {
  if (count != 5) return 2;
  const char *directory = arguments[2], *device = arguments[3];
  const int qos = atoi(arguments[4]);
  char url[PATH], root[PATH], chain[PATH], key[PATH], filter[PATH], telemetry[PATH];
  snprintf(url, PATH, "ssl://localhost:%s", arguments[1]);
  snprintf(root, PATH, "%s/root.pem", directory);
  snprintf(chain, PATH, "%s/device.pem", directory);
  snprintf(key, PATH, "%s/device.key", directory);
  snprintf(filter, PATH, "devices/%s/commands/#", device);
  snprintf(telemetry, PATH, "devices/%s/telemetry", device);
  setvbuf(stdout, NULL, _IOLBF, 0);

  MQTTClient client;
  MQTTClient_connectOptions options = MQTTClient_connectOptions_initializer;
  MQTTClient_SSLOptions tls = MQTTClient_SSLOptions_initializer;
  tls.trustStore = root;
  tls.keyStore = chain;
  tls.privateKey = key;
  tls.verify = 1;
  options.ssl = &tls;
  options.cleansession = 0;
  options.keepAliveInterval = 20;
  if (MQTTClient_create(&client, url, device, MQTTCLIENT_PERSISTENCE_NONE, NULL) != MQTTCLIENT_SUCCESS) return 1;

  int code = come_in(client, &options, filter, qos);
  if (code > 0) {
    printf("connected %d, session new\n", code); /* the return code of CONNACK */
    return 1;
  }
  for (;;) {
    char *topic = NULL;
    int length = 0;
    MQTTClient_message *message = NULL;
    if (MQTTClient_isConnected(client)) {
      MQTTClient_receive(client, &topic, &length, &message, PATIENCE_MS);
    } else if (come_in(client, &options, filter, qos) != MQTTCLIENT_SUCCESS) {
      usleep(PATIENCE_MS * 200);
    }
    if (message == NULL) continue;
    printf("got %.*s at %d\n", message->payloadlen, (char *)message->payload, message->qos);
    MQTTClient_deliveryToken token;
    MQTTClient_publish(client, telemetry, message->payloadlen, message->payload, qos, 0, &token);
    MQTTClient_waitForCompletion(client, token, PATIENCE_MS * 10);
    MQTTClient_freeMessage(&message);
    MQTTClient_free(topic);
  }
}
