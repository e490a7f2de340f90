import { isCleanText, isTopicFilter, isTopicName } from '../topic-syntax.ts'

/** The fields of a parsed packet that may be wrong in a way that neither the parser nor Aedes looks at. */
export interface ParsedPacket {
  readonly cmd: string
  readonly protocolVersion?: number
  readonly messageId?: number
  readonly topic?: string
  readonly username?: string
  readonly subscriptions?: readonly { readonly topic: string; qos: number }[]
  readonly unsubscriptions?: readonly string[]
}

/**
 * The rule of MQTT that a packet breaks, or null. Client id and will are not judged here: they are part of
 * admission, which answers with a CONNACK.
 */
export function packetFault(packet: ParsedPacket): string | null {
  if (packet.messageId === 0) return 'packet identifier 0' // [MQTT-2.3.1-1]
  if (packet.messageId === -1) return 'no packet identifier' // so the parser says that the packet ends before it
  switch (packet.cmd) {
    case 'connect':
      return isCleanText(packet.username ?? '') ? null : 'malformed user name'
    case 'publish':
      return isTopicName(packet.topic ?? '') ? null : 'malformed topic name'
    case 'subscribe':
      return filtersFault((packet.subscriptions ?? []).map(({ topic }) => topic))
    case 'unsubscribe':
      return filtersFault(packet.unsubscriptions ?? [])
    default:
      return null
  }
}

/** Most topic filters of one packet; each is judged, and stored or taken out, before anybody else has a turn. */
const FILTERS = 1_000

/** At least one filter [MQTT-3.8.3-3], all of them well-formed. */
function filtersFault(filters: readonly string[]): string | null {
  if (filters.length === 0) return 'no topic filter'
  if (filters.length > FILTERS) return `${filters.length} topic filters, ${FILTERS} allowed`
  return filters.every(isTopicFilter) ? null : 'malformed topic filter'
}
