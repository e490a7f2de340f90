import type { MqttClient } from '../mqtt/mqtt-client.ts'

/** What Aedes hands over as the owner of stored state: its Client, or only the id of one. */
export type Owner = Pick<MqttClient, 'id'>

/** Aedes' Client, not only the id of one. */
export function isClient(owner: Owner): owner is MqttClient {
  return 'conn' in owner
}
