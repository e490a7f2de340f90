import { isCleanText, isTopicFilter, isTopicName, levelsOf } from '../topic-syntax.ts'

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
  if (!OF_CLIENTS.has(packet.cmd)) return `${packet.cmd.toUpperCase()} from a client` // MQTT 3.1.1 section 2.2.1
  if (packet.messageId === 0) return 'packet identifier 0' // [MQTT-2.3.1-1]
  if (packet.messageId === -1) return 'no packet identifier' // so the parser says that the packet ends before it
  switch (packet.cmd) {
    case 'connect':
      return isCleanText(packet.username ?? '') ? null : 'malformed user name'
    case 'publish':
      return topicFault(packet.topic ?? '')
    case 'subscribe':
      return filtersFault((packet.subscriptions ?? []).map(({ topic }) => topic))
    case 'unsubscribe':
      return filtersFault(packet.unsubscriptions ?? [])
    default:
      return null
  }
}

/** Packets that a client sends. */
const OF_CLIENTS: ReadonlySet<string> = new Set([
  ...['connect', 'publish', 'puback', 'pubrec', 'pubrel', 'pubcomp', 'subscribe', 'unsubscribe'],
  ...['pingreq', 'disconnect'],
])

/** Most levels of a topic or of a filter, whatever a policy allows. */
const LEVELS = 100

function topicFault(topic: string): string | null {
  return isTopicName(topic) ? levelsFault(topic) : 'malformed topic name'
}

function levelsFault(text: string): string | null {
  const levels = levelsOf(text)
  return levels > LEVELS ? `${levels} levels, ${LEVELS} allowed` : null
}

/** Most topic filters of one packet; each is judged, and stored or taken out, before anybody else has a turn. */
const FILTERS = 1_000

/** At least one filter [MQTT-3.8.3-3], all of them well-formed. */
function filtersFault(filters: readonly string[]): string | null {
  if (filters.length === 0) return 'no topic filter'
  if (filters.length > FILTERS) return `${filters.length} topic filters, ${FILTERS} allowed`
  if (!filters.every(isTopicFilter)) return 'malformed topic filter'
  return filters.map(levelsFault).find((fault) => fault !== null) ?? null
}
