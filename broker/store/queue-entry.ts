/** One message, however many queues it is in. */
export interface Message {
  readonly seq: number
  readonly topic: string
  /** Null when it is only on disk. */
  payload: Buffer | string | null
  readonly bytes: number
  readonly qos: number
  /** Queues that it is in, or about to be in. */
  refs: number
  /** As Aedes numbers it, for its contract. */
  readonly brokerId: string | undefined
  readonly brokerCounter: number
}

/** A message on its way to one client. */
export interface Entry {
  readonly message: Message
  readonly qos: number
  /** Chosen when it is queued, so that the same one is used however often it is sent [MQTT-4.4.0-1]. */
  messageId: number | null
  /** `released`: the client has it (QoS 2), PUBREL is owed. */
  state: 'queued' | 'released'
  /** It was sent to the connection that is open now. */
  isSent: boolean
  /** It may have been sent before, so that DUP is set [MQTT-3.3.1-1]. */
  mayBeRepeated: boolean
  isLeaving: boolean
  /** PUBREC has come, and that is being written. */
  isReleasing: boolean
}

/** What waits for one client. */
export interface Queue {
  readonly entries: Map<number, Entry>
  readonly byMessageId: Map<number, Entry>
  /** With what is not on disk yet, and without what is about to leave. */
  messages: number
  bytes: number
  nextId: number
  /** Messages that found it full since it was empty last. */
  dropped: number
}

export interface QueueLimits {
  readonly queueTotalMessages: number
  readonly queueTotalBytes: number
  /** Octets of payload that are kept in memory; what is beyond is read when it is sent. */
  readonly queueResidentBytes: number
}

/** Packet identifiers of queued messages end here; those above are left to what Aedes sends by itself. */
export const LAST_QUEUE_ID = 32_767

/** An entry as it comes into a queue. */
export function newEntry(
  message: Message,
  given: Pick<Entry, 'qos' | 'messageId' | 'state' | 'mayBeRepeated'>,
): Entry {
  return { message, ...given, isSent: false, isLeaving: false, isReleasing: false }
}

/** As Aedes' contract has it. */
export function asPacket({ message, messageId, state }: Entry, payload: Buffer | string): object {
  if (state === 'released') return { cmd: 'pubrel', messageId }
  const { brokerId, brokerCounter, topic, qos } = message
  const known = { cmd: 'publish', brokerId, brokerCounter, topic, payload, qos, retain: false, dup: false }
  return { ...known, messageId: messageId ?? undefined }
}
